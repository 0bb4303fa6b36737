"""Without a KV cache: the same texts, from the same seeds, by the naive way."""

from __future__ import annotations

import random

import pytest
import torch

from slm_core import GPT, Completion, Engine, GPTConfig, SamplingParams, save_checkpoint
from slm_core.errors import PromptTooLong
from slm_core.linear import Precision
from slm_core.model import untrained_model
from tests.slm_core.conftest import precisions, random_model, torch_threads
from tests.slm_core.test_engine import greedy, naive_greedy, random_prompts

PRECISIONS = precisions("none")


@pytest.mark.parametrize(
    ("config", "slots"),
    [
        (GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=128), 8),
        (GPTConfig(n_layer=1, n_head=1, n_embd=32, context_length=100, vocab_size=300), 5),
        (GPTConfig(n_layer=2, n_head=3, n_embd=96, context_length=70, vocab_size=50), 64),
    ],
)
def test_greedy_equals_the_naive_loop(config: GPTConfig, slots: int) -> None:
    model = random_model(config, seed=slots)
    engine = Engine(model, slots=slots, kv_cache=False)
    lengths = [n for n in (1, 15, 16, 17, 33, 63, 64, 65, 90) if n + 6 <= config.context_length]
    prompts = random_prompts(20, lengths, vocab=config.vocab_size)
    budgets = [1 + i % 6 for i in range(len(prompts))]
    completions = engine.generate(prompts, [greedy(n) for n in budgets])
    for prompt, budget, completion in zip(prompts, budgets, completions, strict=True):
        assert completion.token_ids == naive_greedy(model, prompt, budget)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_seed_gives_the_same_text_in_any_company(model: GPT, precision: Precision) -> None:
    rng = random.Random(0)
    prompts = random_prompts(20, [1, 5, 16, 30, 64, 70])
    params = [
        SamplingParams(
            max_tokens=rng.choice([1, 7, 20]),
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_k=rng.choice([1, 5, 40, 65, None]),
            top_p=rng.choice([0.5, 1.0]),
            seed=rng.randrange(2**63),
            ignore_eos=True,
        )
        for _ in prompts
    ]
    alone = Engine(model, slots=1, precision=precision, kv_cache=False)
    expected = [alone.generate([p], q)[0] for p, q in zip(prompts, params, strict=True)]
    for slots, threads in ((3, 1), (8, 2), (13, 1), (64, 2)):
        with torch_threads(threads):
            engine = Engine(model, slots=slots, precision=precision, kv_cache=False)
            assert engine.generate(prompts, params) == expected


def test_fp32_draws_what_the_cache_draws(model: GPT) -> None:
    prompts = random_prompts(12, [3, 40, 70])
    params = [SamplingParams(max_tokens=20, seed=i, stop=("a",)) for i in range(len(prompts))]
    cached = Engine(model, slots=4, kernels="none")
    assert Engine(model, slots=4, kv_cache=False).generate(prompts, params) == cached.generate(
        prompts, params
    )


def test_the_fingerprint_tells_it_apart(model: GPT) -> None:
    with_cache, without = Engine(model), Engine(model, kv_cache=False)
    assert without.fingerprint.endswith("/no-cache")
    assert not with_cache.fingerprint.endswith("/no-cache")
    assert without.precision == "fp32"


def test_a_prompt_may_fill_the_context_to_the_last_token(model: GPT) -> None:
    engine = Engine(model, slots=2, kv_cache=False)
    length = model.config.context_length
    [prompt] = random_prompts(1, [length - 1])
    assert engine.generate([prompt], greedy(1))[0].token_ids == naive_greedy(model, prompt, 1)
    assert len(engine.generate([[5]], greedy(length - 1))[0].token_ids) == length - 1
    with pytest.raises(PromptTooLong):
        engine.generate([prompt], greedy(2))


def test_cancel_reset_and_reuse(model: GPT) -> None:
    engine = Engine(model, slots=2, kv_cache=False)
    ids = [engine.add("Once", greedy(50)) for _ in range(3)]
    for _ in range(4):
        engine.step()
    engine.cancel(ids[0])
    ended: dict[int, Completion] = {}
    while engine.has_work:
        ended.update((e.sequence, e.completion) for e in engine.step() if e.completion)
    assert ended[ids[0]].finish_reason == "cancelled"
    assert ended[ids[1]].token_ids == ended[ids[2]].token_ids
    engine.add("Once", greedy(5))
    engine.step()
    engine.reset()
    assert engine.generate("Once", greedy(5))[0].token_ids == ended[ids[1]].token_ids[:5]


def test_logits_are_those_that_serve(model: GPT) -> None:
    [ids] = random_prompts(1, [40])
    logits = Engine(model, slots=2, kv_cache=False).logits(ids)
    torch.testing.assert_close(logits, model.logits(ids), rtol=1e-3, atol=1e-3)


def test_from_a_checkpoint(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = save_checkpoint(model, tmp_path_factory.mktemp("models") / "m")
    engine = Engine.from_checkpoint(folder, slots=2, kv_cache=False)
    assert engine.fingerprint.endswith("/no-cache")
    assert engine.generate([[1, 2]], greedy(3))[0].token_ids == naive_greedy(model, [1, 2], 3)


def test_an_untrained_model_is_always_the_same_and_disturbs_nobody() -> None:
    config = GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=32, vocab_size=100)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = untrained_model(config)
    assert torch.equal(torch.rand(3), expected)
    again = untrained_model(config)
    other = untrained_model(config, seed=1)
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(first.wte.weight, other.wte.weight)
    assert not first.training
    [completion] = Engine(first, slots=1).generate([[1, 2]], greedy(8))
    assert completion.token_ids == naive_greedy(first, [1, 2], 8)
