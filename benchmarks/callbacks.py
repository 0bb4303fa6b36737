"""Callbacks through a real process and a real Redis: receivers that fail at random half of the
time, one that never answers, alone or for many keys, and one that is well, whose deliveries must
not notice.

python -m benchmarks.callbacks
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import report
from slm_client.redis_server import RedisServer, free_port
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.callback_schemas import JOB_ENDS, CallbackTarget, Delivery, DeliveryStatus
from slm_jobs.schemas import JobSpec, Output, Usage
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore

_MODEL = "none"
_SCHEDULE = [0, 0.2, 0.5, *[1.0] * 22]
_TIMEOUT = 5.0  # of an attempt: the receiver that hangs holds its slots so long
_CLOSED_SECONDS = 0.2
_HANGING = 64  # deliveries to the receiver that hangs, from the beginning
_FOR_EACH_KEY = 8  # deliveries to one that hangs for many keys
_MOST_OF_A_HOST = 32  # attempts at once, whosever they are
_FAULTS = {"fine": 50, "500": 22, "reset": 13, "slow": 13, "closed": 2}  # of 100 requests


class _Receiver:
    """Remembers when each delivery came; answers with a fault of `faults`, by their weights."""

    def __init__(self, **faults: int) -> None:
        self.came: dict[str, list[float]] = {}
        self.answers: Counter[str] = Counter()
        self.port = free_port()
        self._faults = faults
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def open(self) -> None:
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self.port, backlog=512
        )

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            name = head.split("webhook-id: ")[1].split("\r\n")[0]
            self.came.setdefault(name, []).append(time.time())
            [fault] = random.choices(list(self._faults), list(self._faults.values()))
            self.answers[fault] += 1
            await self._answer(fault, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, fault: str, writer: asyncio.StreamWriter) -> None:
        if fault in ("fine", "500"):
            status = "204 Fine" if fault == "fine" else "500 Wrong"
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
        elif fault == "slow":
            writer.write(b"HTTP/1.1 502 Slow\r\n\r\n")
            for _ in range(100):
                writer.write(b".")
                await asyncio.sleep(0.1)
                await writer.drain()
        elif fault == "hang":
            await asyncio.sleep(10 * _TIMEOUT)
        else:
            writer.transport.abort()
        if fault == "closed" and self._server and self._server.is_serving():
            self._server.close()
            await asyncio.sleep(_CLOSED_SECONDS)
            await self.open()


class _Jobs:
    """Ends jobs, in place of api and worker."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._owner = self.key()

    def key(self) -> KeyProof:
        limits = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "jobs_in_flight"))
        key = KeySettings(name="benchmark", callback_hosts=["127.0.0.1"], **limits)
        return KeyProof.of(self._store.keys.create(key).token)

    def end(self, url: str, owner: KeyProof | None = None) -> str:
        """The id of its delivery."""
        target = CallbackTarget(url, JOB_ENDS, outputs=True, link="https://slm.example/jobs/1")
        spec = JobSpec(model=_MODEL, prompts=["Once upon"], callback=target)
        job = self._store.create(spec, owner=owner or self._owner).job
        [work] = self._store.claim_next(_MODEL, worker="benchmark")
        outputs = [Output(index=0, text="a time " * 100, finish_reason="stop")]
        usage = Usage(prompt_tokens=2, completion_tokens=200, total_tokens=202)
        self._store.complete(work, outputs, usage, fingerprint="none")
        return f"{job.id}-succeeded"

    def deliveries(self, names: list[str]) -> list[Delivery]:
        return [each for name in names for each in self._store.callbacks.of(name.partition("-")[0])]


def main(
    jobs: Annotated[int, typer.Option(help="Jobs that tell receivers that fail.")] = 1_000,
    per_second: Annotated[float, typer.Option(help="How fast these end.")] = 50.0,
    receivers: Annotated[int, typer.Option(help="Receivers that fail.")] = 4,
    keys: Annotated[int, typer.Option(help="Keys that use a receiver that hangs.")] = 40,
) -> None:
    """Shows that each delivery arrives, and how soon."""
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisServer(Path(folder) / "redis", free_port())
        redis.start()
        store = JobStore.from_settings(Settings(redis_url=redis.url))
        try:
            with _process(redis.url, Path(folder) / "log") as log:
                figures = asyncio.run(_measure(_Jobs(store), jobs, per_second, receivers, keys))
            figures["breakers_opened"] = log.read_text().count("cannot be reached")
        finally:
            store.close()
            redis.stop()
    report("callbacks", **figures)


@contextmanager
def _process(redis_url: str, log: Path) -> Iterator[Path]:
    env = {
        **os.environ,
        "SLM_REDIS_URL": redis_url,
        "SLM_CALLBACK_SCHEDULE_SECONDS": ",".join(map(str, _SCHEDULE)),
        "SLM_CALLBACK_TIMEOUT_SECONDS": str(_TIMEOUT),
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.callbacks"], env=env, stdout=out, stderr=out
        )
    try:
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode == 0, log.read_text()[-2_000:]


async def _measure(
    made: _Jobs, jobs: int, per_second: float, receivers: int, keys: int
) -> dict[str, Any]:
    failing = [_Receiver(**_FAULTS) for _ in range(receivers)]
    well, hanging, shared = _Receiver(fine=1), _Receiver(hang=1), _Receiver(hang=1)
    for receiver in (*failing, well, hanging, shared):
        await receiver.open()
    await _warm_up(made, well)
    alone = await _paced(made, [well], 100, per_second)
    stuck = [made.end(hanging.url) for _ in range(_HANGING)]
    while len(hanging.came) < 8:  # it holds all the slots that it may
        await asyncio.sleep(0.01)
    beside = await _paced(made, [well], 100, per_second)
    owners = [made.key() for _ in range(keys)]
    for owner in owners * _FOR_EACH_KEY:
        await asyncio.to_thread(made.end, shared.url, owner)
    while len(shared.came) < min(keys, _MOST_OF_A_HOST):
        await asyncio.sleep(0.01)
    held = len(shared.came)
    beside_shared = await _paced(made, [well], 100, per_second)
    named = await _paced(made, failing, jobs, per_second)
    delivered = await _delivered(made, named)
    came = {name: times for receiver in failing for name, times in receiver.came.items()}
    first = [_first_attempt_ms(each) for each in delivered]
    answers = sum((receiver.answers for receiver in failing), Counter[str]())
    attempts = [attempt for each in delivered for attempt in each.attempts]
    assert set(came) == set(named), "some never arrived, or under another id"
    return {
        "deliveries": len(delivered),
        "delivered": sum(each.status is DeliveryStatus.DELIVERED for each in delivered),
        "arrived_more_than_once": sum(len(times) > 1 for times in came.values()),
        "attempts": len(attempts),
        "failed_share": round(sum(a.error is not None for a in attempts) / len(attempts), 3),
        "errors": dict(Counter(a.error for a in attempts if a.error)),
        "answers": dict(answers),
        "first_attempt_ms": {"p50": _quantile(first, 50), "p95": _quantile(first, 95)},
        "first_attempt_worst_ms": max(first),
        "well_alone_ms": _delays(made, well, alone),
        "well_beside_one_that_hangs_ms": _delays(made, well, beside),
        f"well_beside_one_that_hangs_for_{keys}_keys_ms": _delays(made, well, beside_shared),
        "connections_that_it_held": held,
        "hanging_attempts": sum(len(each.attempts) for each in made.deliveries(stuck)),
        "hanging_connections": sum(map(len, hanging.came.values())),
    }


async def _warm_up(made: _Jobs, well: _Receiver) -> None:
    made.end(well.url)
    while not well.came:
        await asyncio.sleep(0.05)


async def _paced(
    made: _Jobs, receivers: list[_Receiver], jobs: int, per_second: float
) -> list[str]:
    """Ends jobs at a steady pace. Their deliveries, in order."""
    names, began = [], time.monotonic()
    for number in range(jobs):
        await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
        url = receivers[number % len(receivers)].url
        names.append(await asyncio.to_thread(made.end, url))
        if number % 200 == 199:
            print(f"{number + 1} of {jobs} jobs have ended", flush=True)
    return names


async def _delivered(made: _Jobs, names: list[str]) -> list[Delivery]:
    """Once none is pending."""
    deadline = time.monotonic() + 300
    while True:
        found = await asyncio.to_thread(made.deliveries, names)
        pending = sum(each.status is DeliveryStatus.PENDING for each in found)
        if not pending or time.monotonic() > deadline:
            return found
        print(f"{pending} pending", flush=True)
        await asyncio.sleep(1)


def _first_attempt_ms(delivery: Delivery) -> float:
    return round((delivery.attempts[0].at - delivery.created_at).total_seconds() * 1000, 1)


def _delays(made: _Jobs, receiver: _Receiver, names: list[str]) -> dict[str, float]:
    """From the end of a job to the arrival of its callback."""
    delays = []
    for delivery in made.deliveries(names):
        arrived = datetime.fromtimestamp(receiver.came[delivery.id][0], UTC)
        delays.append((arrived - delivery.created_at).total_seconds() * 1000)
    return {
        "p50": _quantile(delays, 50),
        "p95": _quantile(delays, 95),
        "worst": round(max(delays), 1),
    }


def _quantile(values: list[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100)[percent - 1], 1)


if __name__ == "__main__":
    typer.run(main)
