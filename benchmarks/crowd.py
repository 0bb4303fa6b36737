"""What workers that have nothing to do cost Redis, without their processes: the calls of each are
recorded once, and sent again at their times over connections of its own."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import closing
from functools import partial
from typing import cast

import uvloop

from benchmarks.replay import MODEL, WORKER, address, pack, recording, spent
from slm_jobs.schemas import WorkerInfo
from slm_jobs.store import JobStore
from slm_jobs.tickets import queue_name


def crowd(url: str, workers: int, seconds: float) -> float:
    """Of a core: what so many idle workers cost Redis by their signs of life, their offers to
    sweep, and their looking for tickets."""
    with recording(url) as recorder:
        store = JobStore(recorder)
        store.heartbeat(worker_info(0), [])
        beat = pack(recorder.last(WORKER))
        store.sweep()
        sweep = pack(recorder.calls[-1])
        look = pack(["BRPOP", queue_name(MODEL), 1])
        host, port = address(recorder)

        async def run() -> float:
            loop = asyncio.get_running_loop()

            async def live(number: int) -> None:
                await asyncio.sleep(number / workers)
                looking, _ = await loop.create_connection(partial(_Asking, look), host, port)
                telling, _ = await loop.create_connection(partial(_Asking, b""), host, port)
                mine = beat.replace(WORKER.encode(), b"worker-%04d" % number)
                with closing(looking), closing(telling):
                    for tick in itertools.count():
                        telling.write(sweep if tick % 5 else mine + sweep)
                        await asyncio.sleep(1)

            tasks = [asyncio.create_task(live(number)) for number in range(workers)]
            await asyncio.sleep(2.5)
            before = await asyncio.to_thread(spent, recorder)
            await asyncio.sleep(seconds)
            used = await asyncio.to_thread(spent, recorder) - before
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            return used / seconds

        share = uvloop.run(run())
        for number in range(workers):
            store.forget_worker(worker_info(number).id)
        return round(share, 4)


class _Asking(asyncio.Protocol):
    """Says `again` once more after each reply, if there is anything to say."""

    def __init__(self, again: bytes) -> None:
        self._again = again

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._again)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - a short one, in one piece
        if self._again:
            self._transport.write(self._again)


def worker_info(number: int) -> WorkerInfo:
    host = f"worker-{number:04d}"
    return WorkerInfo(
        id=host,
        models=[MODEL],
        slots=64,
        running=64,
        tokens_per_second={MODEL: 9_500.0},
        pid=7,
        host=host,
    )
