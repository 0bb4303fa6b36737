"""One step of a learner: what it changes, and what it must not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from slm_core import GPT, GPTConfig
from training.learner import Learner
from training.machine import CompilerFailed, Machine
from training.ranks import Ranks
from training.recipe import Recipe
from training.vocabulary import CompactVocabulary

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=60)


def learner(precision: Any = "fp32", **settings: Any) -> tuple[Learner, NDArray[np.int64]]:
    """A learner and rows for it."""
    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(0, 50, 5 * 17).astype(np.uint16)
    vocabulary = CompactVocabulary(tokens, CONFIG.vocab_size)
    recipe = Recipe(**{"batch": 5, "compile": False, **settings})
    machine = Machine(torch.device("cpu"), precision)
    made = Learner(recipe, GPT(vocabulary.config(CONFIG)), vocabulary, machine, Ranks())
    return made, vocabulary.encode(tokens.reshape(5, 17))


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_micro_batches_make_the_step_of_one_big_batch() -> None:
    results = []
    for accumulate in (1, 2, 5):
        made, rows = learner(accumulate=accumulate, optimizer="adamw")
        values = torch.stack([made.step(rows, 1.0, step) for step in (1, 2, 3)])
        results.append((values, made.model))
    for values, model in results[1:]:
        torch.testing.assert_close(values, results[0][0], rtol=1e-5, atol=1e-6)
        for name, weight in model.state_dict().items():
            expected = results[0][1].state_dict()[name]
            torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("name", ["h.0.mlp.c_fc.weight", "ln_f.bias"])  # Muon's, and AdamW's
def test_in_fp16_a_gradient_that_is_not_finite_changes_nothing_but_the_scale(
    name: str, clip: float
) -> None:
    made, rows = learner("fp16", clip=clip, ema=0.9)
    made.step(rows, 1.0, 1)
    before, scale = copied(made.tensors()), made.facts()["scaler"]["scale"]
    parameter = dict(made.model.named_parameters())[name]
    spoiled = parameter.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    _, norm = made.step(rows, 1.0, 2)
    assert not norm.isfinite()
    assert made.may_overflow
    assert made.facts()["scaler"]["scale"] == scale / 2
    after = made.tensors()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())
    spoiled.remove()
    _, norm = made.step(rows, 1.0, 3)
    assert norm.isfinite()
    after = made.tensors()
    assert all(tensor.isfinite().all() for tensor in after.values())
    for key in (f"model.{name}", "model.wte.weight", "model.h.1.attn.c_attn.weight"):
        assert not torch.equal(after[key], before[key])


def test_longer_gradients_are_cut_to_the_limit() -> None:
    for clip, expected in ((0.01, 0.01), (0.0, None), (1e9, None)):
        made, rows = learner(clip=clip, optimizer="adamw")
        lengths: list[float] = []

        def measure(optimizer: Any, *_: Any, lengths: list[float] = lengths) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            lengths.append(float(torch.cat([g.flatten() for g in gradients]).norm()))

        [optimizer] = made._optimizers
        optimizer.register_step_pre_hook(measure)
        _, norm = made.step(rows, 1.0, 1)
        assert norm.item() > 0.02
        assert lengths == [pytest.approx(expected or norm.item(), rel=1e-4)]


def test_what_the_compiler_cannot_do_is_told_apart_from_other_faults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, rows = learner()

    class InductorError(RuntimeError):
        __module__ = "torch._inductor.exc"

    class CppCompileError(InductorError):
        __module__ = "elsewhere"

    def fail(*_: Any) -> Tensor:
        raise CppCompileError("\nC++ compile error\n\nCommand: g++ ...")

    monkeypatch.setattr(made, "_loss", fail)
    with pytest.raises(CompilerFailed, match=r"^C\+\+ compile error$"):
        made.step(rows, 1.0, 1)

    def other(*_: Any) -> Tensor:
        raise RuntimeError("another")

    monkeypatch.setattr(made, "_loss", other)
    with pytest.raises(RuntimeError, match="another"):
        made.step(rows, 1.0, 1)
