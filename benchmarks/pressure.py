"""Jobs at a given pace, whatever becomes of them, and what the service's processes hold meanwhile.
For `benchmarks.overload` and `benchmarks.soak`. For asyncio."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import psutil
from redis import Redis

from slm_client import Client
from slm_client.stack import Stack

_MB = 1 << 20
_WORDS = ("once upon a time there was a little fox who lived under the old oak tree " * 2).split()
_SLACK = {"mb": 5.0, "fds": 3.0, "threads": 2.0, "keys": 50.0}  # growth that may be chance,
_NOISE = 0.01  # with so much of what there is


@dataclass
class Outcome:
    """Of one client: how often it was refused, and how long its job took once it was taken."""

    refusals: list[str] = field(default_factory=list)  # their codes
    waits: list[float] = field(default_factory=list)  # as Retry-After said
    job: dict[str, Any] = field(default_factory=dict)  # as the 202 told it; empty: never taken
    taken_at: float = 0.0
    seconds: float | None = None  # from the 202 to the end
    status: str = ""

    @property
    def served_seconds(self) -> float:
        """From its creation to its end, as the service tells."""
        ended, created = (self.job[name] for name in ("finished_at", "created_at"))
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(created)).total_seconds()


def _once(_number: int, _left: float) -> int:
    return 1


class Customers:
    """Send jobs of `tokens` tokens with one API key. Use it as a context manager."""

    def __init__(self, url: str, key: str, *, tokens: int, extras: dict[str, Any] | None = None):
        headers = {"Authorization": f"Bearer {key}"}
        # uvicorn closes what has been idle for 5 s
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=120, trust_env=False, limits=limits
        )
        self._tokens = tokens
        self._extras = extras or {}
        self._random = random.Random(0)

    async def submit(self, tries: int = 1) -> Outcome:
        """A request for a job; after a refusal it comes again as it is told to, up to `tries` times
        in all."""
        outcome = Outcome()
        prompt = " ".join(self._random.choices(_WORDS, k=8))
        body = {"prompt": prompt, "max_tokens": self._tokens, "ignore_eos": True, **self._extras}
        while not outcome.job and len(outcome.refusals) < tries:
            if outcome.refusals:
                await asyncio.sleep(outcome.waits[-1])
            answer = await self._http.post("/jobs", json=body)
            if answer.status_code == 202:
                outcome.job, outcome.taken_at = answer.json(), time.perf_counter()
            elif answer.status_code in (429, 503):
                outcome.refusals.append(answer.json()["code"])
                outcome.waits.append(float(answer.headers["retry-after"]))
            else:
                raise RuntimeError(answer.text)
        return outcome

    async def send(self, tries: int = 1) -> Outcome:
        """As `submit`, until the job has ended."""
        outcome = await self.submit(tries)
        while outcome.job and outcome.status in ("", "queued", "running"):
            again = await self._http.get(f"/jobs/{outcome.job['id']}", params={"wait": "60"})
            outcome.job = again.raise_for_status().json()
            outcome.status = outcome.job["status"]
            outcome.seconds = time.perf_counter() - outcome.taken_at
        return outcome

    async def send_batch(self, rows: list[str], **options: Any) -> None:
        """Until it has ended. Without an Idempotency-Key, which would be kept for a week."""
        body = {"rows": rows, "max_tokens": self._tokens, **options}
        batch = (await self._http.post("/batches", json=body)).raise_for_status().json()
        while batch["status"] in ("validating", "running"):
            again = await self._http.get(f"/batches/{batch['id']}", params={"wait": "60"})
            batch = again.raise_for_status().json()

    async def pace(
        self, per_second: float, seconds: float, tries: Callable[[int, float], int] = _once
    ) -> list[asyncio.Task[Outcome]]:
        """Sends so many, evenly. `tries`: of a client by its number and the seconds that are left.
        Returns when the last was sent."""
        tasks, began = [], time.perf_counter()
        for number in range(round(per_second * seconds)):
            await asyncio.sleep(max(0.0, began + number / per_second - time.perf_counter()))
            left = began + seconds - time.perf_counter()
            tasks.append(asyncio.create_task(self.send(tries(number, left))))
        return tasks

    async def capacity(self, at_once: int, seconds: float) -> float:
        """Jobs a second, with so many in flight all the time."""
        ended, until = 0, time.perf_counter() + seconds

        async def one() -> None:
            nonlocal ended
            while time.perf_counter() < until:
                await self.send(tries=1_000)
                ended += time.perf_counter() < until

        await asyncio.gather(*(one() for _ in range(at_once)))
        return ended / seconds

    async def __aenter__(self) -> Customers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()


class Watch:
    """What each process of `stack` holds, and how many keys Redis has, time after time."""

    def __init__(self, stack: Stack, every: float) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in stack.pids().items()}
        self._redis = Redis.from_url(stack.plan.redis_url)
        self._every = every
        self.samples: list[tuple[float, dict[str, float]]] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self.samples.append((time.monotonic(), await asyncio.to_thread(self._sample)))
            await asyncio.sleep(self._every)

    def _sample(self) -> dict[str, float]:
        found: dict[str, float] = {"redis.keys": float(self._redis.dbsize())}
        for name, process in self._processes.items():
            found[f"{name}.mb"] = process.memory_info().rss / _MB
            found[f"{name}.fds"] = process.num_fds()
            found[f"{name}.threads"] = process.num_threads()
        return found

    @property
    def names(self) -> list[str]:
        return list(self.samples[0][1])

    def growth(self, since: float, until: float) -> dict[str, float]:
        """What a straight line through the samples of that time, by `time.monotonic`, has grown
        by from its one end to the other."""
        taken = [(at, sample) for at, sample in self.samples if since <= at <= until]
        times = [at for at, _ in taken]
        grown = {}
        for name in self.names:
            line = statistics.linear_regression(times, [sample[name] for _, sample in taken])
            grown[name] = round(line.slope * (times[-1] - times[0]), 2)
        return grown

    def growing(self, grown: dict[str, float]) -> list[str]:
        """The names of what has grown by more than chance."""
        now = self.samples[-1][1]
        return [
            name
            for name, by in grown.items()
            if by > _SLACK[name.rpartition(".")[2]] + _NOISE * now[name]
        ]


def stop(*tasks: asyncio.Task[None]) -> None:
    """Ends what runs for ever. Raises what one has ended of: a process that is gone, say."""
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()


def quantile(values: list[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 3)


def make_key(stack: Stack, **limits: Any) -> str:
    """The token of a new API key with these limits only."""
    names = ("requests_per_minute", "tokens_per_minute", "jobs_in_flight", "queued_tokens")
    settings: Any = {**dict.fromkeys(names), **limits}
    with Client(stack.url, stack.api_key) as admin:
        return str(admin.keys.create("pressure", **settings)["token"])
