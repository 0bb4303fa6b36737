"""How an engine stands, and what it has computed since it was made, for whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from slm_core.sampling import SamplingParams
from slm_core.scheduler import Sequence


@dataclass(slots=True)
class EngineStats:
    """In tokens, which are positions of sequences. Another thread may read it at any time."""

    kv_capacity: int = 0  # that all slots hold together; 0 without a KV cache
    kv_tokens: int = 0  # that live sequences have there, the last drawn ones included
    prefill_tokens: int = 0  # of prompts that were admitted
    decode_tokens: int = 0  # one for each running sequence and step
    computed_tokens: int = 0  # all that it took, padding and what was computed before included

    def count(
        self,
        running: int,
        admitted: Seq[tuple[list[int], SamplingParams]],
        live: Seq[Sequence],
        computed: int,
    ) -> None:
        """Takes in a step, after which `live` are left."""
        self.decode_tokens += running
        for prompt_ids, _ in admitted:
            self.prefill_tokens += len(prompt_ids)
        self.computed_tokens = computed
        if self.kv_capacity:
            self.kv_tokens = sum([len(s.prompt_ids) + len(s.token_ids) for s in live])
