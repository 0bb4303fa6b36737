"""Is everybody measured on the same weights, and how much does quantisation change?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.contestant import Child, ContestantError
from benchmarks.workloads import TOP_K, Workload, random_prompts
from slm_core import GPT, Engine, SamplingParams

PROMPTS = Path(__file__).parents[1] / "examples" / "prompts.txt"


@torch.inference_mode()
def reference(model: GPT, prompts: list[list[int]]) -> list[np.ndarray]:
    """The plain model's logits [time, vocab] of each prompt."""
    return [model(torch.tensor([prompt]))[0].numpy() for prompt in prompts]


def verify(child: Child, model: GPT, *, exact: bool) -> dict[str, float]:
    """Compares logits with the model's, and samples with its likeliest tokens.

    Raises ContestantError if these cannot be the same weights.
    """
    prompts = random_prompts(4)
    ours, theirs = reference(model, prompts), child.logits(prompts)
    scale = float(np.concatenate(ours).std())
    run = child.run(Workload("check", random_prompts(8), [8] * 8))
    found = {
        "logits_difference": max(
            float(np.abs(a - b).max()) / scale for a, b in zip(ours, theirs, strict=True)
        ),
        "argmax_agreement": _share(_choices(ours), _choices(theirs)),
        "sampled_in_top_k": _sampled_in_top_k(model, run.workload, run.rows),
    }
    found = {name: round(value, 5) for name, value in found.items()}
    if exact:
        good = found["logits_difference"] < 0.01 and found["sampled_in_top_k"] > 0.99
    else:
        good = found["argmax_agreement"] > 0.5 and found["sampled_in_top_k"] > 0.5
    if not good:
        raise ContestantError(f"not the same weights: {found}")
    return found


def _sampled_in_top_k(model: GPT, workload: Workload, rows: list[list[int]]) -> float:
    """The share of new tokens that are among the model's `TOP_K` likeliest."""
    sequences = [prompt + row for prompt, row in zip(workload.prompts, rows, strict=True)]
    hits: list[bool] = []
    for logits, row in zip(reference(model, sequences), rows, strict=True):
        likeliest = np.argpartition(logits, -TOP_K)[-len(row) - 1 : -1, -TOP_K:]
        hits += [token in known for token, known in zip(row, likeliest, strict=True)]
    return sum(hits) / len(hits)


def agreement(child: Child, model: GPT, prompts: list[list[int]]) -> float:
    """How often the likeliest next token is the fp32 model's, position by position."""
    ours = [logits.argmax(-1) for prompt in prompts for logits in reference(model, [prompt])]
    return round(_share(ours, child.choices(prompts)), 4)


def agreement_prompts(model: GPT, *, trained: bool) -> list[list[int]]:
    """Text that a trained model itself wrote; random ids for random weights."""
    if not trained:
        return random_prompts(32, shortest=64, longest=64)
    engine = Engine(model, device="cpu", precision="fp32")
    texts = PROMPTS.read_text("utf-8").splitlines()[:32]
    params = [SamplingParams(max_tokens=128, seed=seed) for seed in range(len(texts))]
    completions = engine.generate(texts, params)
    return [
        engine.tokenizer.encode(text) + c.token_ids
        for text, c in zip(texts, completions, strict=True)
    ]


def _share(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return float((np.concatenate(ours) == np.concatenate(theirs)).mean())


def _choices(logits: list[np.ndarray]) -> list[np.ndarray]:
    return [each.argmax(-1) for each in logits]
