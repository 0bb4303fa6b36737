"""llama.cpp through its C API: 64 sequences in slots that are refilled, as its server does it.

Its defaults are its best. Slower on 64 sequences: one KV cache for all of them (0.39 times the
rate), no flash attention (0.77), fp32 keys and values (0.64), 8-bit ones (0.92), samplers inside
the graph instead of its sampler chain (0.90). On ragged lengths, live rows are moved together,
which its server does not (1.12 times the rate).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np

from benchmarks.workloads import BATCH, TEMPERATURE, TOP_K, Workload

_BATCH_TOKENS = 2048  # its default: most tokens of one call


def convert(checkpoint: Path, folder: Path, quantization: str) -> Path:
    import gguf

    from slm_core import load_checkpoint

    model = load_checkpoint(checkpoint)
    config = model.config
    target = folder / f"{quantization}.gguf"
    writer = gguf.GGUFWriter(target, "gpt2")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for name, tensor in model.state_dict().items():
        known = names.get_name(f"transformer.{name}", try_suffixes=(".weight", ".bias"))
        data, kind = tensor.numpy(), None
        if data.ndim == 2 and name != "wpe.weight":
            kind = gguf.GGMLQuantizationType[quantization.upper()]
            data = gguf.quantize(data, kind)
        writer.add_tensor(known, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@dataclass
class _Row:
    prompt: list[int]
    length: int
    new: list[int] = field(default_factory=list)


class LlamaCpp:
    def __init__(self, weights: Path, threads: int, quantization: str) -> None:  # noqa: ARG002
        llama.llama_log_set(_print_errors, None)
        model = llama.llama_model_load_from_file(
            str(weights).encode(), llama.llama_model_default_params()
        )
        if not model:
            raise RuntimeError("llama.cpp cannot load the weights")
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        params = llama.llama_context_default_params()
        params.n_ctx = BATCH * llama.llama_model_n_ctx_train(model)
        params.n_seq_max = BATCH
        params.n_batch = _BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self._context = llama.llama_init_from_model(model, params)
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(_BATCH_TOKENS, 0, 1)
        self._samplers = [_sampler(seed) for seed in range(BATCH)]

    def prepare(self, workload: Workload) -> Workload:
        return workload

    def generate(self, workload: Workload) -> list[list[int]]:
        rows = [_Row(p, n) for p, n in zip(workload.prompts, workload.lengths, strict=True)]
        waiting, slots = deque(rows), dict[int, _Row]()
        while waiting or slots:
            if waiting and len(slots) < BATCH:
                self._prefill(slots, waiting)
            self._close_gaps(slots)
            self._step(slots)
        return [row.new for row in rows]

    def _prefill(self, slots: dict[int, _Row], waiting: deque[_Row]) -> None:
        """Puts waiting rows into free slots, as many as fit one call."""
        self._batch.n_tokens = 0
        outputs = {}
        for slot in sorted(set(range(BATCH)) - slots.keys()):
            if not waiting or self._batch.n_tokens + len(waiting[0].prompt) > _BATCH_TOKENS:
                break
            slots[slot] = waiting.popleft()
            outputs[slot] = self._put_all(slot, slots[slot].prompt)
        self._append(slots, outputs)

    def _step(self, slots: dict[int, _Row]) -> None:
        """One more token for every live row."""
        self._batch.n_tokens = 0
        outputs = {}
        for slot, row in sorted(slots.items()):
            position = len(row.prompt) + len(row.new) - 1
            outputs[slot] = self._put(slot, row.new[-1], position, output=True)
        self._append(slots, outputs)

    def _append(self, slots: dict[int, _Row], outputs: dict[int, int]) -> None:
        """Computes the batch, samples from the outputs at these positions, frees ended rows."""
        if not outputs:
            return
        self._decode()
        for slot, output in outputs.items():
            row = slots[slot]
            row.new.append(llama.llama_sampler_sample(self._samplers[slot], self._context, output))
            if len(row.new) == row.length:
                llama.llama_memory_seq_rm(self._memory, slot, -1, -1)
                del slots[slot]

    def _close_gaps(self, slots: dict[int, _Row]) -> None:
        """Moves the last rows into free slots: only neighbouring slots are computed together."""
        for gap in sorted(set(range(len(slots))) - slots.keys()):
            last = max(slots)
            llama.llama_memory_seq_cp(self._memory, last, gap, -1, -1)
            llama.llama_memory_seq_rm(self._memory, last, -1, -1)
            slots[gap] = slots.pop(last)

    def _put_all(self, slot: int, prompt: list[int]) -> int:
        for position, token in enumerate(prompt):
            index = self._put(slot, token, position, output=position == len(prompt) - 1)
        return index

    def _put(self, slot: int, token: int, position: int, *, output: bool) -> int:
        batch, index = self._batch, self._batch.n_tokens
        batch.token[index] = token
        batch.pos[index] = position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = slot
        batch.logits[index] = output
        batch.n_tokens += 1
        return index

    def _decode(self) -> None:
        if status := llama.llama_decode(self._context, self._batch):
            raise RuntimeError(f"llama_decode returned {status}")

    def logits(self, prompts: list[list[int]]) -> list[np.ndarray]:
        return [self._forward(prompt) for prompt in prompts]

    def _forward(self, prompt: list[int]) -> np.ndarray:
        self._batch.n_tokens = 0
        for position, token in enumerate(prompt):
            self._put(0, token, position, output=True)
        self._decode()
        rows = [llama.llama_get_logits_ith(self._context, i) for i in range(len(prompt))]
        logits = np.stack([np.ctypeslib.as_array(row, (self._vocab_size,)) for row in rows])
        llama.llama_memory_seq_rm(self._memory, 0, -1, -1)
        return logits


def _sampler(seed: int) -> Any:
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    for stage in (
        llama.llama_sampler_init_top_k(TOP_K),
        llama.llama_sampler_init_temp(TEMPERATURE),
        llama.llama_sampler_init_dist(seed),
    ):
        llama.llama_sampler_chain_add(chain, stage)
    return chain


@llama.llama_log_callback
def _print_errors(level: int, text: bytes, _: object) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        print(text.decode(), end="")
