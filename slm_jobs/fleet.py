"""How all workers, queues and callbacks stand together, in one call of Redis: what gauges show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from slm_jobs.records import to_workers

if TYPE_CHECKING:
    from slm_jobs.batches import Run
    from slm_jobs.gauges import Memory


class ModelStand(NamedTuple):
    """One model's work and workers. Jobs and rows wait from their creation to their claim."""

    waiting: int
    running: int
    rows_waiting: int
    rows_running: int
    waiting_tokens: int  # that all waiting jobs and rows may take, prompts included
    oldest_seconds: float  # for which the oldest waiting job has been there
    expired: int  # jobs that no worker began in time, ever
    workers: int
    slots: int  # of these workers


class FleetStand(NamedTuple):
    models: dict[str, ModelStand]
    dead_letters: int
    callbacks_pending: int  # to be sent, now or later
    callbacks_overdue_seconds: float  # for which the longest due has not been sent
    memory_used: int  # by Redis, in bytes
    memory_max: int  # that it may use; 0: no limit, or it may not be asked


class Fleet:
    """Of a `JobStore`, which makes it."""

    def __init__(self, run: Run, memory: Memory) -> None:
        self._run = run
        self._memory = memory

    def read(self, models: Sequence[str]) -> FleetStand:
        """Raises StoreUnavailable."""
        queues, infos, dead_letters, pending, overdue_ms = self._run("fleet", *models)
        workers = to_workers(infos)
        stands = {}
        for model, numbers in zip(models, queues, strict=True):
            waiting, running, rows_waiting, rows_running, tokens, oldest_ms, expired = numbers
            hosting = [worker for worker in workers if model in worker.models]
            stands[model] = ModelStand(
                waiting=waiting,
                running=running,
                rows_waiting=rows_waiting,
                rows_running=rows_running,
                waiting_tokens=tokens,
                oldest_seconds=oldest_ms / 1000,
                expired=expired,
                workers=len(hosting),
                slots=sum(w.model_slots.get(model, w.slots) for w in hosting),
            )
        used, most = self._memory.use()
        return FleetStand(stands, dead_letters, pending, overdue_ms / 1000, used, most)
