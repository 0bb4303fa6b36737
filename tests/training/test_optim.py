"""Optimizers, rates, and what stays or is averaged."""

from __future__ import annotations

import pytest
import torch

from slm_core import GPT, GPTConfig
from training.optim import (
    Muon,
    build_optimizers,
    learning_rate_fraction,
    orthogonalize,
    set_learning_rate,
)
from training.recipe import Recipe
from training.weights import WeightAverage, freeze, initialise

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=64)


def test_orthogonalize_flattens_singular_values() -> None:
    matrix = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix).float())
    assert 0.6 < values.min() <= values.max() < 1.3


def test_muon_steps_by_the_rate_in_every_direction() -> None:
    """From zero, a matrix moves to about -rate times an orthogonal one; Q, K and V apart."""
    torch.manual_seed(0)
    shapes = ((96, 32), (32, 32), (32, 32), (128, 32), (32, 128))
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    Muon(params, lr=0.1).step()
    for p, scale in zip(params, (1, 1, 1, 2, 1), strict=True):
        parts = p.detach().chunk(3) if p.shape == (96, 32) else [p.detach()]
        for part in parts:
            values = torch.linalg.svdvals(part) / (0.1 * scale)
            assert 0.6 < values.median() <= values.max() < 1.3  # a few start near zero
    assert (params[1] * params[1].grad).sum() < 0
    alone = torch.nn.Parameter(torch.zeros(32, 32))
    alone.grad = params[2].grad
    Muon([alone], lr=0.1).step()
    torch.testing.assert_close(alone, params[2], atol=1e-3, rtol=0)


def test_muon_decays_weights_by_the_rate() -> None:
    start = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    plain, decayed = (torch.nn.Parameter(start.clone()) for _ in range(2))
    plain.grad = decayed.grad = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    Muon([plain], lr=0.1).step()
    Muon([decayed], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(plain - decayed, start * 0.1 * 0.5)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer(optimizer: str) -> None:
    model = GPT(CONFIG)
    recipe = Recipe(optimizer=optimizer, weight_decay=0.05)  # type: ignore[arg-type]
    optimizers = build_optimizers(model, recipe)
    owned = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    decayed = [
        p for o in optimizers for g in o.param_groups if g["weight_decay"] for p in g["params"]
    ]
    assert len(decayed) == 8
    assert all(p.ndim == 2 for p in decayed)
    assert any(isinstance(o, Muon) for o in optimizers) == (optimizer == "muon")


def test_rates_are_parts_of_their_peaks() -> None:
    optimizers = build_optimizers(GPT(CONFIG), Recipe())
    set_learning_rate(optimizers, 0.5)
    rates = sorted(g["lr"] for o in optimizers for g in o.param_groups)
    assert rates == pytest.approx([0.00015, 0.003, 0.005])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_the_rate_warms_up_and_decays(schedule: str, final: float) -> None:
    recipe = Recipe(schedule=schedule, final_lr=final)  # type: ignore[arg-type]
    rates = [learning_rate_fraction(i / 1000, recipe) for i in range(1001)]
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(final)
    assert max(rates) == 1.0
    assert rates.index(1.0) == 20
    assert rates[20:] == sorted(rates[20:], reverse=True)
    # A quarter and three quarters of the way from warm-up to end.
    early, late = {"linear": (0.75, 0.25), "cosine": (0.8536, 0.1464), "wsd": (1.0, 1.0)}[schedule]
    assert rates[265] == pytest.approx(early * (1 - final) + final, abs=1e-4)
    assert rates[755] == pytest.approx(late * (1 - final) + final, abs=1e-4)
    if schedule == "wsd":
        assert rates[900] == pytest.approx(0.5 * (1 - final) + final)


def test_without_warm_up_or_decay() -> None:
    assert learning_rate_fraction(0.0, Recipe(warmup=0)) == 1.0
    assert learning_rate_fraction(1.0, Recipe(schedule="wsd", decay=0)) == 1.0


def test_starts_are_orthogonal_and_change_nothing_yet() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    initialise(model)
    attention = model.h[0].get_submodule("attn")
    query = attention.get_parameter("c_attn.weight")[:32]
    torch.testing.assert_close(query @ query.T, torch.eye(32), atol=1e-5, rtol=0)
    assert not attention.get_parameter("c_proj.weight").any()
    assert model.wpe.weight.square().mean().sqrt().item() == pytest.approx(0.05, rel=1e-4)
    odd = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=7, context_length=4, vocab_size=8))
    initialise(odd)
    assert odd.wpe.weight.isfinite().all()


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["1"], {"wte", "wpe", "h.1", "ln_f"}),
        (["wte", "wpe"], {"h.0", "h.1", "ln_f"}),
        (["h.*"], {"wte", "wpe", "ln_f"}),
        (["2", "ln_f", "wpe"], {"wte"}),
    ],
)
def test_frozen_parameters_have_no_optimizer(patterns: list[str], left: set[str]) -> None:
    model = GPT(CONFIG)
    freeze(model, patterns)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[0] for name in trained} == {
        name.rsplit(".", 1)[0]
        for name, _ in model.named_parameters()
        if name.startswith(tuple(left))
    }
    optimizers = build_optimizers(model, Recipe())
    assert sum(len(g["params"]) for o in optimizers for g in o.param_groups) == len(trained)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["h.2"], "no parameter is named 'h.2'"),
        (["3"], "'h.2'"),
        (["*"], "nothing to train"),
        (["0"], "the first 0 blocks are none"),
    ],
)
def test_what_cannot_be_frozen_is_named(patterns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(GPT(CONFIG), patterns)


def test_an_average_forgets_its_start_and_follows() -> None:
    model = GPT(CONFIG)
    average = WeightAverage(model, 0.999)
    with torch.no_grad():
        for step in range(1, 200):
            model.ln_f.bias.fill_(step)
            average.update(model, step)
    mean = average.model.ln_f.bias[0].item()
    assert 150 < mean < 199
    assert torch.equal(average.model.wte.weight, model.wte.weight)
