"""CTranslate2: its own fp32 and int8 arithmetic, in static batches that finished rows leave.

Its best settings on two cores. int8: a worker for each thread (1.6 times the rate of one worker
with all threads), batches of at most 64. fp32: one worker with all threads (1.06 times), and
batches of 256 where there are as many prompts (1.2 times the rate of 64). Rows of different lengths
end in a callback: without it each batch runs to its longest row.
"""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import numpy as np

from benchmarks.workloads import END_OF_TEXT, TEMPERATURE, TOP_K, Workload


def convert(checkpoint: Path, folder: Path, compute_type: str) -> Path:
    from ctranslate2.converters.transformers import GPT2Loader

    from benchmarks.peers.transformers import to_transformers
    from slm_core import load_checkpoint

    model, loader = to_transformers(load_checkpoint(checkpoint)), GPT2Loader()
    spec = loader.get_model_spec(model)
    loader.set_vocabulary(spec, [str(token) for token in range(model.config.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = str(END_OF_TEXT)
    spec.validate()
    spec.optimize(quantization=compute_type)
    target = folder / f"ctranslate2-{compute_type}"
    target.mkdir()
    spec.save(str(target))
    return target


class CTranslate2:
    def __init__(self, weights: Path, threads: int, compute_type: str) -> None:
        self._workers = threads if compute_type == "int8" else 1
        self._largest_batch = 64 if compute_type == "int8" else 256
        self._generator = ctranslate2.Generator(
            str(weights),
            compute_type=compute_type,
            inter_threads=self._workers,
            intra_threads=threads // self._workers,
        )

    def prepare(self, workload: Workload) -> Workload:
        return workload

    def generate(self, workload: Workload) -> list[list[int]]:
        longest, left = max(workload.lengths), list(workload.lengths)

        def ended(step: ctranslate2.GenerationStepResult) -> bool:
            left[step.batch_id] -= 1
            return left[step.batch_id] == 0

        results = self._generator.generate_batch(
            [[str(token) for token in prompt] for prompt in workload.prompts],
            max_batch_size=min(-(-len(left) // self._workers), self._largest_batch),
            max_length=longest,
            min_length=longest,
            sampling_topk=TOP_K,
            sampling_temperature=TEMPERATURE,
            include_prompt_in_result=False,
            callback=ended if min(left) < longest else None,
        )
        return [result.sequences_ids[0] for result in results]

    def logits(self, prompts: list[list[int]]) -> list[np.ndarray]:
        return [np.array(self._generator.forward_batch([prompt]))[0] for prompt in prompts]
