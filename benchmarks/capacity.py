"""From 1 to 1,000 workers: what each part of the service has to do, and what ends first.

What a job, a row, a worker and a record cost was measured by `benchmarks.scale`; what a worker
generates, and the limits, are given here. `benchmarks.capacity_tables` prints what comes of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from slm_jobs.store import IDEMPOTENCY_SECONDS

HOUR, DAY = 3_600, 86_400
# Bytes in Redis that `benchmarks.scale` does not measure; tests/docs/test_scaling.py does.
CALLBACK = 1_400  # delivered, with its attempt; one without the text
IDEMPOTENCY = 250  # a record of an Idempotency-Key


@dataclass(frozen=True)
class Costs:
    """What was measured. Redis's time is that of its one thread, in microseconds of CPU. Replayed:
    while it has no rest, and nobody waits. In the service: beside workers and clients that wait,
    where a Redis that rests in between takes several times as long for each call."""

    job_us: float  # replayed: of a job with two looks at it
    row_us: float  # and of each call for rows, which are claimed and written several together:
    rows_us: float
    worker_us: float  # a second of a worker, whether or not it works: polls, signs of life
    lease_us: float  # of each job or row that a heartbeat keeps
    line_core: float  # while more jobs wait than slots are free, however many end: tickets
    service_job_us: float  # in the service, all included but that
    service_row_us: float
    connections: float  # of a worker that has run jobs
    row_connections: float  # of one that never did
    api_us: float  # of the api, for a job whose client waits for its end
    ended_job: float  # bytes that Redis holds
    ended_output: float  # of each further output of a job
    ended_row: float
    waiting_job: float
    waiting_row: float

    @classmethod
    def of(cls, document: dict[str, Any]) -> Costs:
        """From what `benchmarks.scale` printed."""
        growth, spent, memory = (document[name] for name in ("growth", "costs", "memory"))
        line_core, service_job_us = _line(growth["jobs"])
        one, many = (document["redis"][name] for name in ("rows_by_1", "rows_by_8"))
        rows_us = (one["redis_us"] - many["redis_us"]) / (1 - 1 / many["at_once"])
        return cls(
            job_us=document["redis"]["jobs"]["redis_us"],
            row_us=one["redis_us"] - rows_us,
            rows_us=rows_us,
            worker_us=1e6 * spent["crowd_core"] / spent["known_workers"],
            lease_us=spent["lease_us"],
            line_core=line_core,
            service_job_us=service_job_us,
            service_row_us=_line(growth["rows"])[1],
            connections=max(map(_connections, growth["jobs"] + growth["rows"])),
            row_connections=min(map(_connections, growth["rows"])),
            api_us=_measured(growth["jobs"])[-1]["api_us"],
            ended_job=memory["ended_job"],
            ended_output=(memory["ended_wide_job"] - memory["ended_job"]) / (memory["wide"] - 1),
            ended_row=memory["ended_row"],
            waiting_job=memory["waiting_job"],
            waiting_row=memory["waiting_row"],
        )


def _connections(stand: dict[str, Any]) -> float:
    return float(stand["connections"] / stand["workers"])


def _measured(stands: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of all rounds."""
    rounds = max(len(stand["efficiency_by_round"]) for stand in stands)
    return [stand for stand in stands if len(stand["efficiency_by_round"]) == rounds]


def _line(stands: list[dict[str, Any]]) -> tuple[float, float]:
    """Through the fewest and the most workers that grew as they should: cores of Redis without
    work, and microseconds for each job or row."""
    first, *_, last = (stand for stand in _measured(stands) if stand["efficiency"] >= 0.95)
    rise = last["cores"]["redis"] - first["cores"]["redis"]
    slope = rise / (last["per_second"] - first["per_second"])
    return first["cores"]["redis"] - slope * first["per_second"], 1e6 * slope


@dataclass(frozen=True)
class Load:
    """Workers that are busy all the time, and with what."""

    name: str
    tokens_per_second: float  # of a worker
    kind: str = "jobs"  # or rows
    tokens: int = 200  # of an output
    outputs: int = 1  # of a job
    together: int = 1  # rows that are claimed, and written, in a call
    slots: int = 64
    kept_seconds: int = DAY  # after the end
    keyed: bool = True  # jobs come with an Idempotency-Key, as from slm_client
    callbacks_seconds: int = 0  # each job has a callback, which is kept for so long
    waiting_seconds: float = 60.0  # of work in line
    lease_seconds: float = 15.0
    assumed: bool = False  # the rate was not measured

    @property
    def per_second(self) -> float:
        """Jobs or rows of a worker."""
        return self.tokens_per_second / (self.tokens * self.outputs)


@dataclass(frozen=True)
class Limits:
    """Of one Redis. Beyond 70 % of its one core, what waits for it grows quickly."""

    redis_cores: float = 0.7
    memory_gb: float = 64 * 0.9  # of `maxmemory`: from 90 % on no job is taken
    connections: int = 10_000  # Redis's `maxclients` unless told otherwise


@dataclass(frozen=True)
class Need:
    """What so many workers need."""

    workers: int
    tokens_per_second: float
    per_second: float  # jobs or rows
    replayed_cores: float  # of Redis, where no client waits
    service_cores: float  # of Redis, as it was beside workers and clients that wait
    memory_gb: float  # of Redis
    api_cores: float
    connections: float  # of Redis

    def shares(self, limits: Limits) -> dict[str, float]:
        """Of what one Redis can, by what it is."""
        return {
            "processor, replayed": self.replayed_cores / limits.redis_cores,
            "processor, in the service": self.service_cores / limits.redis_cores,
            "memory": self.memory_gb / limits.memory_gb,
            "connections": self.connections / limits.connections,
        }


CPU = 9_518  # tokens/s of a worker on 2 cores: 30M shape, int8 (benchmarks/LOG.md)
GPU = 100_000  # tokens/s; nobody has measured it
JOBS = Load("jobs kept for an hour", CPU, kept_seconds=HOUR)
ROWS = Load("rows kept for a day", CPU, kind="rows", kept_seconds=DAY)
LOADS = (
    Load("jobs, CPU workers", CPU),
    JOBS,
    Load("jobs kept for an hour, without `Idempotency-Key`", CPU, kept_seconds=HOUR, keyed=False),
    Load(
        "jobs kept for an hour, with callbacks", CPU, kept_seconds=HOUR, callbacks_seconds=7 * DAY
    ),
    Load(
        "jobs kept for an hour, with callbacks kept for a day",
        CPU,
        kept_seconds=HOUR,
        callbacks_seconds=DAY,
    ),
    Load("jobs of 8 outputs, kept for an hour", CPU, outputs=8, kept_seconds=HOUR),
    Load("rows, CPU workers", CPU, kind="rows", kept_seconds=7 * DAY),
    ROWS,
    Load(
        "rows kept for a day, GPU workers (assumed)",
        GPU,
        kind="rows",
        together=8,
        slots=128,
        assumed=True,
    ),
)


def kept(costs: Costs, load: Load) -> list[tuple[float, float]]:
    """What each job or row leaves in Redis: for how many seconds, and how many bytes."""
    if load.kind == "rows":
        return [(load.waiting_seconds, costs.waiting_row), (load.kept_seconds, costs.ended_row)]
    ended = costs.ended_job + (load.outputs - 1) * costs.ended_output
    found = [(load.waiting_seconds, costs.waiting_job), (load.kept_seconds, ended)]
    if load.keyed:
        found.append((IDEMPOTENCY_SECONDS, IDEMPOTENCY))
    if load.callbacks_seconds:
        found.append((load.callbacks_seconds, CALLBACK))
    return found


def need(costs: Costs, load: Load, workers: int) -> Need:
    rate = load.per_second * workers
    beats = workers * 3 / load.lease_seconds
    if rows := load.kind == "rows":
        us, service_us = costs.row_us + costs.rows_us / load.together, costs.service_row_us
        line, connections = 0.0, costs.row_connections
    else:
        us, service_us = costs.job_us, costs.service_job_us
        line, connections = costs.line_core if load.waiting_seconds else 0.0, costs.connections
    redis_us = rate * us + workers * costs.worker_us + beats * load.slots * costs.lease_us
    return Need(
        workers=workers,
        tokens_per_second=load.tokens_per_second * workers,
        per_second=rate,
        replayed_cores=line + redis_us / 1e6,
        service_cores=line + rate * service_us / 1e6,
        memory_gb=rate * sum(seconds * size for seconds, size in kept(costs, load)) / 1e9,
        api_cores=0.0 if rows else rate * costs.api_us / 1e6,
        connections=workers * connections,
    )


def ends_at(costs: Costs, load: Load, limits: Limits) -> dict[str, float]:
    """Workers at which each of Redis's means is used up: every need grows in a straight line."""
    none, one = (need(costs, load, workers).shares(limits) for workers in (0, 1))
    return {name: (1 - none[name]) / (one[name] - none[name]) for name in one}


def fills_in(costs: Costs, load: Load, memory_gb: float) -> float:
    """Seconds in which one worker fills so much of an empty Redis; inf where records go in time."""
    lives = kept(costs, load)
    rate = load.per_second * sum(size for _, size in lives)
    held, at = 0.0, 0.0
    for seconds, size in sorted(lives):
        if held + rate * (seconds - at) >= memory_gb * 1e9:
            return at + (memory_gb * 1e9 - held) / rate
        held, at = held + rate * (seconds - at), seconds
        rate -= load.per_second * size
    return math.inf
