from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_core import SamplingParams
from slm_core.errors import InvalidParams
from slm_core.sampling import BROKEN, CANDIDATES, Sampler, gumbel, top_candidates

CPU = torch.device("cpu")


def draws(logits: list[float], params: SamplingParams, count: int = 6_000) -> torch.Tensor:
    """Frequencies of tokens over `count` independent draws, one step each."""
    row = torch.full((128,), -math.inf)
    row[: len(logits)] = torch.tensor(logits)
    sampler = Sampler(1, CPU)
    counts = torch.zeros(len(logits))
    sampler.assign(0, [params])
    for _ in range(count):
        counts[sampler.draw(row[None], 0)] += 1
    return counts / count


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**63},
        {"stop": ("",)},
    ],
)
def test_params_out_of_range_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidParams, match=next(iter(bad))):
        SamplingParams(**bad)  # type: ignore[arg-type]


def test_a_lone_stop_string_is_one_stop_string() -> None:
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [None, 5, 100], ids=["all", "candidates", "wide"])
def test_frequencies_follow_the_softmax(top_k: int | None) -> None:
    logits = [2.0, 1.0, 0.0, -1.0, 0.5]
    params = SamplingParams(temperature=0.7, top_k=top_k, seed=3)
    expected = (torch.tensor(logits) / 0.7).softmax(-1)
    assert torch.allclose(draws(logits, params), expected, atol=0.02)


def test_top_k_keeps_k_and_renormalises() -> None:
    logits = [2.0, 1.0, 0.0, -1.0]
    expected = torch.tensor([2.0, 1.0]).softmax(-1)
    got = draws(logits, SamplingParams(temperature=1.0, top_k=2, seed=3))
    assert torch.allclose(got[:2], expected, atol=0.02)
    assert got[2:].sum() == 0


@pytest.mark.parametrize("top_k", [None, 40])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_k: int | None) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    got = draws(logits, SamplingParams(temperature=1.0, top_k=top_k, top_p=0.7, seed=3))
    assert torch.allclose(got[:2], torch.tensor([0.625, 0.375]), atol=0.02)
    assert got[2:].sum() == 0


def test_top_p_over_the_whole_vocabulary_is_exact() -> None:
    """Whether the kept tokens fit the candidates (peaked) or not (flat), as a full sort says."""
    generator = torch.Generator().manual_seed(0)
    for scale, top_p in ((8.0, 0.9), (8.0, 0.999), (0.5, 0.5)):
        logits = torch.randn(1, 2048, generator=generator) * scale
        probability, order = logits.double().softmax(-1).sort(descending=True)
        kept = order[0, : int((probability.cumsum(-1) < top_p).sum()) + 1]
        sampler = Sampler(1, CPU)
        sampler.assign(0, [SamplingParams(temperature=1.0, top_k=None, top_p=top_p, seed=5)])
        noise = gumbel(sampler.key, sampler.step, kept[None])
        expected = kept[(logits[0, kept].double() + noise[0]).argmax()]
        assert sampler.draw(logits, 0).item() == expected


def test_logits_that_are_not_numbers_draw_broken() -> None:
    logits = torch.randn(3, 128)
    logits[0, 70] = math.nan
    logits[2] = -math.inf
    sampler = Sampler(3, CPU)
    sampler.assign(0, [SamplingParams(seed=1)] * 3)
    drawn = sampler.draw(logits, 0).tolist()
    assert (drawn[0], drawn[2]) == (BROKEN, BROKEN)
    assert drawn[1] >= 0


def test_zero_temperature_takes_the_lowest_of_equal_tokens() -> None:
    logits = torch.full((1, 256), -1.0)
    logits[0, [200, 7, 90]] = 3.0
    sampler = Sampler(1, CPU)
    sampler.assign(0, [SamplingParams(temperature=0, top_k=None)])
    assert sampler.draw(logits, 0).tolist() == [7]


def test_tiny_temperature_is_greedy_and_finite() -> None:
    logits = torch.randn(1, 256)
    sampler = Sampler(1, CPU)
    sampler.assign(0, [SamplingParams(temperature=1e-300, top_k=40)])
    assert sampler.draw(logits, 0).tolist() == [int(logits.argmax())]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), blocks=st.integers(1, 90), ties=st.booleans())
def test_two_stage_top_k_is_exact(seed: int, blocks: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, blocks * 64, generator=generator)
    if ties:
        logits = logits.round()
    values, tokens = top_candidates(logits)
    assert torch.equal(values, logits.topk(CANDIDATES).values)
    assert torch.equal(logits.gather(1, tokens), values)
    assert all(len(set(row)) == CANDIDATES for row in tokens.tolist())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_row_draws_the_same_in_any_slot_beside_any_rows(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 20))
    logits = torch.randn(count, 50304, generator=torch.Generator().manual_seed(count))
    params = [
        SamplingParams(
            temperature=data.draw(st.sampled_from([0.0, 0.8, 1.5])),
            top_k=data.draw(st.sampled_from([None, 1, 40, 64, 65, 500])),
            top_p=data.draw(st.sampled_from([0.3, 0.9, 1.0])),
            seed=i,
        )
        for i in range(count)
    ]
    together = Sampler(count, CPU)
    together.assign(0, params)
    drawn = [together.draw(logits, 0).tolist() for _ in range(3)]
    alone = Sampler(5, CPU)
    for row in range(count):
        alone.assign(3, [params[row]])
        alone.move(3, 1)
        assert [alone.draw(logits[row : row + 1], 1).item() for _ in range(3)] == [
            step[row] for step in drawn
        ]


def test_noise_is_standard_gumbel() -> None:
    key = torch.arange(50)[:, None] * 7919
    noise = gumbel(key, torch.zeros(50, 1, dtype=torch.int64), torch.arange(2000)).flatten()
    assert bool(noise.isfinite().all())
    assert abs(noise.mean().item() - 0.5772) < 0.015
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.03
    steps = gumbel(key[:1], torch.arange(2000)[:, None], torch.tensor([11]))
    neighbours = torch.stack([steps[:-1, 0], steps[1:, 0]])
    assert abs(torch.corrcoef(neighbours)[0, 1].item()) < 0.08
