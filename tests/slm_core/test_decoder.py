"""Logits of the serving path: bitwise independent of batch mates, and equal to the model's."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from slm_core import GPT, GPTConfig
from slm_core.decoder import Decoder
from slm_core.linear import Precision
from tests.slm_core.conftest import precisions, random_model, torch_threads

CPU = torch.device("cpu")
SLOTS = 64
LENGTHS = [1, 5, 16, 40, 64, 100]


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch_threads(request.param):
        yield


@pytest.fixture(
    scope="module",
    params=[
        GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=192, vocab_size=512),
        GPTConfig(n_layer=2, n_head=6, n_embd=192, context_length=192, vocab_size=50257),
        GPTConfig(n_layer=1, n_head=6, n_embd=384, context_length=192, vocab_size=2000),
        GPTConfig(n_layer=1, n_head=12, n_embd=768, context_length=192, vocab_size=1000),
        GPTConfig(n_layer=2, n_head=5, n_embd=35, context_length=170, vocab_size=300),
    ],
    ids=lambda c: f"{c.n_embd}x{c.vocab_size}",
)
def wide_model(request: pytest.FixtureRequest) -> GPT:
    return random_model(request.param)


def run(decoder: Decoder, prompts: list[list[int]], steps: int) -> torch.Tensor:
    """Logits [1 + steps, prompts, vocab]: prefill one bucket at a time, then decode all rows."""
    count = len(prompts)
    order = sorted(range(count), key=lambda i: decoder.prompt_bucket(len(prompts[i])))
    outputs: list[torch.Tensor] = []
    slot = 0
    while slot < count:
        bucket = decoder.prompt_bucket(len(prompts[order[slot]]))
        group = [i for i in order[slot:] if decoder.prompt_bucket(len(prompts[i])) == bucket]
        outputs.append(decoder.prefill([prompts[i] for i in group], slot))
        slot += len(group)
    first = torch.cat(outputs)
    all_logits = [first]
    tokens = torch.zeros(SLOTS, dtype=torch.int64)
    positions = torch.zeros(SLOTS, dtype=torch.int64)
    positions[:count] = torch.tensor([len(prompts[i]) for i in order])
    tokens[:count] = first.argmax(-1)
    for _ in range(steps):
        longest = int(positions[:count].max())
        logits = decoder.decode_step(tokens, positions, count, longest)
        all_logits.append(logits)
        tokens[:count] = logits.argmax(-1)
        positions[:count] += 1
    back = torch.tensor(order).argsort()
    return torch.stack(all_logits)[:, back]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("precision", precisions("none"))
def test_logits_are_bitwise_independent_of_batch_mates(
    wide_model: GPT, precision: Precision
) -> None:
    rng = random.Random(1)
    prompts = [
        [rng.randrange(wide_model.config.vocab_size) for _ in range(rng.choice(LENGTHS))]
        for _ in range(SLOTS)
    ]
    with torch.inference_mode():
        decoder = Decoder(wide_model, SLOTS, CPU, precision)
        together = run(decoder, prompts, steps=3)
        for rows in ([0], [1, 2], [5, 40, 63], list(range(8, 17)), list(range(20, 51))):
            some = run(decoder, [prompts[i] for i in rows], steps=3)
            assert torch.equal(some, together[:, rows])


@pytest.mark.usefixtures("threads")
def test_logits_equal_the_models(wide_model: GPT) -> None:
    rng = random.Random(2)
    prompts = [[rng.randrange(300) for _ in range(n)] for n in LENGTHS]
    with torch.inference_mode():
        logits = run(Decoder(wide_model, SLOTS, CPU), prompts, steps=2)
        for row, prompt in enumerate(prompts):
            ids = list(prompt)
            for step in range(3):
                expected = wide_model(torch.tensor([ids]))[0, -1]
                got = logits[step, row]
                torch.testing.assert_close(got[: len(expected)], expected, rtol=1e-4, atol=1e-3)
                assert bool((got[len(expected) :] == -torch.inf).all())
                ids.append(int(got.argmax()))
