"""The kernels against PyTorch: same logits, same draws, and bitwise the same in any company."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm_core import GPT, Engine, GPTConfig, SamplingParams, kernels
from slm_core.kv_cache import round_up
from slm_core.linear import PRECISIONS, Precision
from slm_core.native import NativeBackend
from slm_core.sampling import BLOCK, BROKEN, Sampler
from slm_core.torch_backend import TorchBackend
from tests.slm_core.conftest import KERNELS, precisions, random_model, torch_threads

VARIANTS = KERNELS[1:]
SHAPES = [
    GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=96, vocab_size=512),
    GPTConfig(n_layer=2, n_head=6, n_embd=192, context_length=96, vocab_size=50257),
    GPTConfig(n_layer=1, n_head=6, n_embd=384, context_length=96, vocab_size=1000),
    GPTConfig(n_layer=2, n_head=5, n_embd=35, context_length=50, vocab_size=301),
    GPTConfig(n_layer=1, n_head=1, n_embd=3, context_length=20, vocab_size=7),
]

pytestmark = pytest.mark.skipif(not VARIANTS, reason="no kernels are built")


@pytest.fixture(scope="module", params=SHAPES, ids=lambda c: f"{c.n_embd}x{c.vocab_size}")
def shaped(request: pytest.FixtureRequest) -> GPT:
    return random_model(request.param)


def some_ids(model: GPT, length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(model.config.vocab_size) for _ in range(length)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_equal_pytorchs(shaped: GPT, variant: str, precision: Precision) -> None:
    if precision not in precisions("none"):
        pytest.skip("PyTorch has no exact 8-bit product here")
    ids = some_ids(shaped, shaped.config.context_length)
    native = NativeBackend(shaped, 2, precision, variant).logits(ids)
    with torch.inference_mode():
        twin = TorchBackend(shaped, 2, torch.device("cpu"), precision).logits(ids)
        exact = shaped.logits(ids)
    if precision == "fp32":
        torch.testing.assert_close(native, exact, rtol=1e-4, atol=1e-3)
    # rounding differs: the kernels keep keys and values in as few bits as weights
    spread = exact.std()
    assert (native - twin).abs().mean() <= {"fp32": 1e-5, "bf16": 0.03, "int8": 0.06}[
        precision
    ] * spread


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from(SHAPES[:4]),
    precision=st.sampled_from(PRECISIONS),
    slots=st.integers(1, 12),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 999),
)
def test_rows_are_bitwise_independent(
    variant: str, shape: GPTConfig, precision: Precision, slots: int, threads: int, seed: int
) -> None:
    """However sequences are cut into steps, whatever runs beside, in whichever slot."""
    rng = random.Random(seed)
    model = random_model(shape)
    sequences = [some_ids(model, rng.randint(1, 50), i) for i in range(slots)]
    alone = NativeBackend(model, 1, precision, variant)
    expected = [alone.logits(ids).numpy() for ids in sequences]
    together = NativeBackend(model, slots, precision, variant)
    done = [0] * slots
    with torch_threads(threads):
        while any(n < len(ids) for n, ids in zip(done, sequences, strict=True)):
            rows = [
                (slot, position)
                for slot in rng.sample(range(slots), slots)
                for position in range(len(sequences[slot]))[done[slot] :][: rng.choice([0, 1, 30])]
            ]
            logits = np.empty((len(rows), shape.vocab_size), np.float32)
            together.forward(
                np.array([sequences[slot][position] for slot, position in rows]),
                np.array([slot for slot, _ in rows]),
                np.array([position for _, position in rows]),
                np.arange(len(rows)),
                logits=logits,
            )
            for row, (slot, position) in enumerate(rows):
                assert np.array_equal(logits[row], expected[slot][position])
                done[slot] += 1


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0.0, 1e-3, 0.8, 1.0, 3.0]),
    top_k=st.sampled_from([None, 1, 2, 40, 64, 65, 300, 511, 512, 9999]),
    top_p=st.sampled_from([0.01, 0.5, 0.95, 0.9999, 1.0]),
    scale=st.sampled_from([0.05, 1.0]),
)
def test_draws_equal_the_samplers(
    variant: str, seed: int, temperature: float, top_k: int | None, top_p: float, scale: float
) -> None:
    """From the same logits."""
    model = random_model(SHAPES[0])
    with torch.no_grad():
        model.ln_f.weight.mul_(scale)
        model.ln_f.bias.mul_(scale)
    vocab = model.config.vocab_size
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    backend = NativeBackend(model, 1, "fp32", variant)
    sampler = Sampler(1, torch.device("cpu"))
    sampler.assign(0, [params])
    ids = [1, 2, 3]
    for _ in range(4):
        logits = torch.full((1, round_up(vocab, BLOCK)), -math.inf)
        logits[0, :vocab] = NativeBackend(model, 1, "fp32", variant).logits(ids)[-1]
        [token] = backend.step(*((0, [(ids, params)]) if len(ids) == 3 else (1, [])))
        assert token == int(sampler.draw(logits, 0))
        ids.append(token)


def unseen_tokens(weight: torch.Tensor) -> None:
    """Most have one row, as after training over a compact vocabulary; its logit is among the best
    of those that come first."""
    weight[100:3000] = weight[:100].mean(0)


def outliers(weight: torch.Tensor) -> None:
    weight[::97] *= 20
    weight[:, 5] *= 30


def common_part(weight: torch.Tensor) -> None:
    """Rows that differ by less than 8 bits of them tell."""
    weight += 40 * weight[0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("change", [None, unseen_tokens, outliers, common_part])
@pytest.mark.parametrize("top_k", [1, 40, 64])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_who_needs_few_logits_draws_as_from_all(
    variant: str, change: Callable[[torch.Tensor], None] | None, top_k: int, precision: Precision
) -> None:
    """The best are collected as they come, or found by a screen."""
    config = GPTConfig(n_layer=1, n_head=2, n_embd=36, context_length=16, vocab_size=5000)
    model = random_model(config)
    if change:
        with torch.no_grad():
            change(model.wte.weight)
    backend = NativeBackend(model, 24, precision, variant)
    whole = NativeBackend(model, 1, precision, variant)
    sampler = Sampler(24, torch.device("cpu"))
    # hot, so that the last of the candidates are drawn as well; one row needs all its logits
    params = [SamplingParams(temperature=50, top_k=top_k, seed=seed) for seed in range(23)]
    params.insert(7, SamplingParams(temperature=50, top_k=None, seed=23))
    sampler.assign(0, params)
    rows = [[slot, 5] for slot in range(24)]
    admitted = list(zip(rows, params, strict=True))
    for step in range(6):
        logits = torch.full((24, round_up(config.vocab_size, BLOCK)), -math.inf)
        for row, ids in zip(logits, rows, strict=True):
            row[: config.vocab_size] = whole.logits(ids)[-1]
        drawn = backend.step(*((0, admitted) if step == 0 else (24, [])))
        best = logits.sort(descending=True).values
        clear = best[:, top_k - 1] > best[:, top_k]  # else PyTorch takes any of the equal ones
        assert clear.sum() > 20
        wrong = torch.tensor(drawn) != sampler.draw(logits, 0)
        assert not (wrong & clear).any()
        rows = [[*ids, token] for ids, token in zip(rows, drawn, strict=True)]


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    precision=st.sampled_from(PRECISIONS),
    vocab=st.integers(1, 400),
    top_k=st.integers(1, 64),
    order=st.sampled_from(["falling", "rising", "random"]),
    seed=st.integers(0, 999),
)
@example(precision="int8", vocab=61, top_k=50, order="falling", seed=0)
def test_no_candidate_is_lost(
    variant: str, precision: Precision, vocab: int, top_k: int, order: str, seed: int
) -> None:
    """In whatever order they come: with all equally likely, each is drawn at some time."""
    logits = torch.linspace(1, 0, vocab) if order != "rising" else torch.linspace(0, 1, vocab)
    if order == "random":
        logits = logits[torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))]
    config = GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=8, vocab_size=vocab)
    model = random_model(config)
    with torch.no_grad():
        model.ln_f.weight.zero_()
        model.ln_f.bias.fill_(1)
        model.wte.weight.copy_(logits[:, None].expand(-1, 16))
    backend = NativeBackend(model, 1024, precision, variant)
    hot = [SamplingParams(temperature=1e6, top_k=top_k, seed=1024 * seed + i) for i in range(1024)]
    with torch_threads(1):
        drawn = set(backend.step(0, [([0], params) for params in hot]))
    best = set(backend.logits([0])[0].argsort(descending=True, stable=True)[:top_k].tolist())
    assert drawn == best


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_among_equal_logits_the_lowest_tokens_count(variant: str, precision: Precision) -> None:
    model = random_model(GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=8))
    with torch.no_grad():
        model.ln_f.weight.zero_()
        model.ln_f.bias.zero_()
    backend = NativeBackend(model, 64, precision, variant)
    greedy = SamplingParams(temperature=0)
    assert backend.step(0, [([1], greedy)]) == [0]
    drawn = backend.step(0, [([1], SamplingParams(top_k=5, seed=seed)) for seed in range(64)])
    assert set(drawn) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("top_k", [40, None], ids=["candidates", "wide"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=["64 wide", "35 wide"])
def test_a_row_without_numbers_breaks_alone(
    variant: str, precision: Precision, top_k: int | None, value: float, shape: GPTConfig
) -> None:
    model = random_model(shape)
    params = SamplingParams(seed=1, top_k=top_k)
    sound = NativeBackend(model, 2, precision, variant).step(0, [([5, 6], params)])
    with torch.no_grad():
        model.wpe.weight[3] = value
    backend = NativeBackend(model, 2, precision, variant)
    assert backend.step(0, [([5, 6], params), ([5, 6, 7, 8], params)]) == [*sound, BROKEN]
    # and leaves nothing behind for the next owner of its slot, or of its rows
    assert backend.step(1, [([5, 6], params)])[1:] == sound
    for slot in range(2):
        assert backend.step(slot, [([5, 6], params)])[slot] == sound[0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", range(3), ids=["query", "key", "value"])
def test_weights_without_numbers_break_every_row(
    variant: str, precision: Precision, part: int
) -> None:
    model = random_model(SHAPES[0])
    with torch.no_grad():
        model.h[0].attn.c_attn.bias[part * 64] = math.nan
    backend = NativeBackend(model, 1, precision, variant)
    assert backend.step(0, [([5, 6, 7], SamplingParams(seed=1))]) == [BROKEN]


def test_the_process_has_one_openmp_runtime() -> None:
    """Two would each spin a pool of threads on the same cores."""
    program = (
        "import re, numpy, torch\n"
        "from slm_core import Engine, GPT, GPTConfig, SamplingParams\n"
        "model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=16))\n"
        "Engine(model, kernels='baseline').generate('Once', SamplingParams(max_tokens=2))\n"
        "torch.ones(2000, 2000).sum()\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(*set(re.findall(r'/\\S*lib(?:gomp|omp|iomp)\\S*', maps)), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1


def test_the_best_variant_comes_first() -> None:
    assert [v for v in kernels.variants() if v in VARIANTS] == VARIANTS
    assert VARIANTS[-1] == "baseline"
    assert Engine(random_model(SHAPES[0])).fingerprint.startswith(f"fp32/cpu-{VARIANTS[0]}/")
