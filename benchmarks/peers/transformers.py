"""transformers: `generate` over static batches, and its continuous batching.

Its best settings on two cores: plain attention for static batches in bf16 (1.14 times the rate of
its fused one), the fused one elsewhere. A static cache and smaller batches gain nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.workloads import BATCH, TEMPERATURE, TOP_K, Workload
from slm_core import GPT, load_checkpoint

_PAGE_SIZE = 64  # positions

disable_progress_bar()


def to_transformers(model: GPT) -> GPT2LMHeadModel:
    """The same weights as transformers' GPT-2; its Conv1D keeps matrices transposed."""
    config = model.config
    peer = GPT2LMHeadModel(
        GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            n_positions=config.context_length,
            vocab_size=config.vocab_size,
        )
    ).eval()
    weights = {
        f"transformer.{name}": tensor.T if "c_" in name and tensor.ndim == 2 else tensor
        for name, tensor in model.state_dict().items()
    }
    weights["lm_head.weight"] = model.wte.weight
    peer.load_state_dict(weights)
    return peer


def convert(checkpoint: Path, folder: Path, dtype: str) -> Path:  # noqa: ARG001
    target = folder / "transformers"
    if not target.exists():
        to_transformers(load_checkpoint(checkpoint)).save_pretrained(target)
    return target


class _GPT2:
    def __init__(self, weights: Path, threads: int, dtype: str, attention: str = "sdpa") -> None:
        torch.set_num_threads(threads)
        self._model = GPT2LMHeadModel.from_pretrained(
            weights, dtype=getattr(torch, dtype), attn_implementation=attention
        ).eval()
        self._config = GenerationConfig(
            do_sample=True, temperature=TEMPERATURE, top_k=TOP_K, pad_token_id=0, eos_token_id=None
        )

    def prepare(self, workload: Workload) -> Workload:
        return workload

    @torch.inference_mode()
    def logits(self, prompts: list[list[int]]) -> list[np.ndarray]:
        return [self._model(torch.tensor([p])).logits[0].float().numpy() for p in prompts]


class Static(_GPT2):
    """Batches of 64 in the order of the prompts, each run to its longest row."""

    def __init__(self, weights: Path, threads: int, dtype: str) -> None:
        super().__init__(weights, threads, dtype, "eager" if dtype == "bfloat16" else "sdpa")

    def generate(self, workload: Workload) -> list[list[int]]:
        rows: list[list[int]] = []
        for first in range(0, len(workload.prompts), BATCH):
            batch = slice(first, first + BATCH)
            rows += self._batch(workload.prompts[batch], workload.lengths[batch])
        return rows

    @torch.inference_mode()
    def _batch(self, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        self._config.max_new_tokens = max(lengths)
        out = self._model.generate(ids, attention_mask=mask, generation_config=self._config)
        new = out[:, longest:].tolist()
        return [row[:length] for row, length in zip(new, lengths, strict=True)]


class Continuous(_GPT2):
    """Requests enter and leave a running batch; on a CPU each attends over everyone's pages.

    Hence 32 at once: 4 reach 0.4 times the rate, 16 and 64 about as much, whatever the page size.
    """

    def __init__(self, weights: Path, threads: int, dtype: str) -> None:
        super().__init__(weights, threads, dtype)
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
        self._manager = self._model.init_continuous_batching(
            generation_config=self._config,
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=_PAGE_SIZE,
                num_blocks=BATCH * self._model.config.n_positions // _PAGE_SIZE,
                max_batch_tokens=1024,
                max_requests_per_batch=32,
                allow_block_sharing=False,
            ),
        )
        self._manager.start()

    def generate(self, workload: Workload) -> list[list[int]]:
        ids = [
            self._manager.add_request(prompt, max_new_tokens=length)
            for prompt, length in zip(workload.prompts, workload.lengths, strict=True)
        ]
        done: dict[str, list[int]] = {}
        while len(done) < len(ids):
            result = self._manager.get_result(timeout=60)
            if result is None or result.error:
                raise RuntimeError(result.error if result else "no result within a minute")
            if result.is_finished():
                done[result.request_id] = result.generated_tokens
        return [done[request] for request in ids]
