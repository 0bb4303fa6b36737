"""The callback process sweeps, too."""

from __future__ import annotations

import asyncio

import fakeredis
import pytest

from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import JobStatus
from slm_jobs.store import JobStore, SweepReport
from tests.slm_jobs.examples import create
from worker.callbacks import janitor


def test_jobs_expire_where_no_worker_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    store = JobStore(fakeredis.FakeRedis(decode_responses=True))
    job = create(store, queue_timeout=10)
    store.clock_offset_ms += 11_000
    sweep, calls = store.sweep, 0
    reports: list[SweepReport] = []

    def sweep_again() -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise StoreUnavailable("away")
        if calls == 2:
            raise RuntimeError("a mistake of ours")
        return sweep()

    monkeypatch.setattr(store, "sweep", sweep_again)
    monkeypatch.setattr(janitor, "TICK_SECONDS", 0.001)

    async def run() -> None:
        task = asyncio.create_task(janitor.sweep(store, reports.append))
        async with asyncio.timeout(30):
            while not reports:
                await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(run())
    assert store.get(job.id).status is JobStatus.EXPIRED
