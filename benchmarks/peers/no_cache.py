"""The plain loop of a training repository: the whole sequence through the model for each token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.workloads import TEMPERATURE, TOP_K, Workload
from slm_core import load_checkpoint

_ROWS = 8  # all rows would take minutes, at much the same rate: 8 sequences keep the cores busy


class NoCache:
    def __init__(self, weights: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = load_checkpoint(weights)

    def prepare(self, workload: Workload) -> Workload:
        return workload.first(_ROWS)

    @torch.inference_mode()
    def generate(self, workload: Workload) -> list[list[int]]:
        """One static batch. Sequences stand left-aligned, so a causal model needs no mask."""
        prompts = workload.prompts
        ends = torch.tensor([len(prompt) for prompt in prompts])
        steps, rows = max(workload.lengths), torch.arange(len(prompts))
        ids = torch.zeros(len(prompts), int(ends.max()) + steps, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        for _ in range(steps):
            hidden = self._model.hidden(ids[:, : int(ends.max())])[rows, ends - 1]
            logits = F.linear(hidden, self._model.wte.weight)
            values, tokens = logits.topk(TOP_K)
            drawn = torch.multinomial(torch.softmax(values / TEMPERATURE, dim=-1), 1)
            ids[rows, ends] = tokens.gather(1, drawn)[:, 0]
            ends += 1
        return [
            ids[row, len(prompt) : len(prompt) + length].tolist()
            for row, (prompt, length) in enumerate(zip(prompts, workload.lengths, strict=True))
        ]

    @torch.inference_mode()
    def logits(self, prompts: list[list[int]]) -> list[np.ndarray]:
        return [self._model(torch.tensor([prompt]))[0].numpy() for prompt in prompts]
