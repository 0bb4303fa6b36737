"""What an engine counts."""

from __future__ import annotations

import pytest

from slm_core import Engine, SamplingParams
from slm_core.config import GPTConfig
from slm_core.kernels import supported
from tests.slm_core.conftest import random_model

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=64)
GREEDY = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)


def engine(**options: object) -> Engine:
    return Engine(random_model(CONFIG), device="cpu", slots=4, **options)  # type: ignore[arg-type]


def test_tokens_that_pytorch_computes_are_padded() -> None:
    made = engine(kernels="none")
    assert made.stats.kv_capacity == 4 * 64
    for prompt in ([1, 2, 3], [1, 2, 3, 4, 5]):
        made.add(prompt, GREEDY)
    made.step()
    stats = made.stats
    assert (stats.prefill_tokens, stats.decode_tokens, stats.computed_tokens) == (8, 0, 2 * 16)
    assert stats.kv_tokens == 8 + 2  # with those just drawn
    made.step()
    assert (stats.prefill_tokens, stats.decode_tokens, stats.computed_tokens) == (8, 2, 32 + 8)
    assert stats.kv_tokens == 8 + 4
    made.step()
    assert (stats.kv_tokens, made.slots_in_use) == (0, 0)
    assert stats.decode_tokens == 4


@pytest.mark.skipif(not supported(), reason="no kernels are built")
def test_kernels_pad_nothing() -> None:
    made = engine()
    made.generate([[1, 2, 3], [1, 2, 3, 4, 5]], GREEDY)
    stats = made.stats
    assert stats.computed_tokens == stats.prefill_tokens + stats.decode_tokens == 8 + 4


def test_without_a_cache_all_is_computed_again_and_nothing_is_held() -> None:
    made = engine(kv_cache=False)
    made.add([1, 2, 3], GREEDY)
    for step in (1, 2):
        made.step()
        assert made.stats.computed_tokens == step * 16
    assert (made.stats.kv_capacity, made.stats.kv_tokens) == (0, 0)


def test_what_is_cancelled_or_forgotten_is_held_no_more() -> None:
    made = engine(kernels="none")
    first = made.add([1, 2, 3], GREEDY)
    made.add([1, 2, 3], GREEDY)
    made.step()
    made.cancel(first)
    made.step()
    assert made.stats.kv_tokens == 3 + 2
    made.reset()
    assert made.stats.kv_tokens == 0
