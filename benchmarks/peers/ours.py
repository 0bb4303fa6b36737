"""Our engine, in each of its precisions, with its native kernels and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.workloads import BATCH, TEMPERATURE, TOP_K, Workload
from slm_core import Engine, SamplingParams, load_checkpoint
from slm_core.kernels import supported


class Ours:
    def __init__(self, weights: Path, threads: int, kernels: str, precision: str) -> None:
        torch.set_num_threads(threads)
        if kernels == "auto" and not supported():
            raise RuntimeError("no native kernels are built")
        self._engine = Engine(
            load_checkpoint(weights),
            device="cpu",
            precision=precision,
            slots=BATCH,
            kernels=kernels,
        )

    def prepare(self, workload: Workload) -> Workload:
        return workload

    def generate(self, workload: Workload) -> list[list[int]]:
        params = [
            SamplingParams(max_tokens=length, temperature=TEMPERATURE, top_k=TOP_K, ignore_eos=True)
            for length in workload.lengths
        ]
        return [c.token_ids for c in self._engine.generate(workload.prompts, params)]

    def logits(self, prompts: list[list[int]]) -> list[np.ndarray]:
        return [self._engine.logits(prompt).float().numpy() for prompt in prompts]
