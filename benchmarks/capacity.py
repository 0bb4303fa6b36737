"""From 1 to 1,000 workers: what each part of the service has to do, and what ends first.

What a job, a row, a worker and a record cost was measured by `benchmarks.scale`; what a worker
generates, and the limits, are given here. `benchmarks.capacity_tables` prints what comes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DAY = 86_400


@dataclass(frozen=True)
class Costs:
    """What was measured. Redis's time is that of its one thread, in microseconds of CPU, while it
    has no rest: a Redis that rests in between takes several times as long for each call."""

    job_us: float
    row_us: float  # and of each call for rows, which are claimed and written several together:
    rows_us: float
    worker_us: float  # a second of a worker, whether or not it works: polls, signs of life
    lease_us: float  # of each job or row that a heartbeat keeps
    job_calls: float  # of Redis, those within scripts too
    row_calls: float
    worker_calls: float
    job_network: float  # bytes to and from Redis
    row_network: float
    worker_network: float
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
        """From what `benchmarks.scale` printed. Calls and bytes of the work are those of the
        largest number of workers that had all rounds, less those of as many idle ones."""
        growth, spent, memory = (document[name] for name in ("growth", "costs", "memory"))
        jobs, rows = (_largest(growth[kind]) for kind in ("jobs", "rows"))
        one, many = (document["redis"][name] for name in ("rows_by_1", "rows_by_8"))
        rows_us = (one["redis_us"] - many["redis_us"]) / (1 - 1 / many["at_once"])
        idle = {
            "redis_calls": sum(spent["idle_worker_calls"].values()),
            "redis_bytes": spent["idle_worker_bytes"],
        }

        def own(stand: dict[str, Any], name: str) -> float:
            return float(stand[name] - idle[name] * stand["workers"] / stand["per_second"])

        return cls(
            job_us=document["redis"]["jobs"]["redis_us"],
            row_us=one["redis_us"] - rows_us,
            rows_us=rows_us,
            worker_us=1e6 * spent["crowd_core"] / spent["known_workers"],
            lease_us=spent["lease_us"],
            job_calls=own(jobs, "redis_calls"),
            row_calls=own(rows, "redis_calls"),
            worker_calls=idle["redis_calls"],
            job_network=own(jobs, "redis_bytes"),
            row_network=own(rows, "redis_bytes"),
            worker_network=idle["redis_bytes"],
            connections=max(map(_connections, growth["jobs"] + growth["rows"])),
            row_connections=min(map(_connections, growth["rows"])),
            api_us=jobs["api_us"],
            ended_job=memory["ended_job"],
            ended_output=(memory["ended_wide_job"] - memory["ended_job"]) / (memory["wide"] - 1),
            ended_row=memory["ended_row"],
            waiting_job=memory["waiting_job"],
            waiting_row=memory["waiting_row"],
        )


def _connections(stand: dict[str, Any]) -> float:
    return float(stand["connections"] / stand["workers"])


def _largest(stands: list[dict[str, Any]]) -> dict[str, Any]:
    rounds = max(len(stand["efficiency_by_round"]) for stand in stands)
    return [stand for stand in stands if len(stand["efficiency_by_round"]) == rounds][-1]


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
    waiting_seconds: float = 60.0  # of work in line
    lease_seconds: float = 15.0
    assumed: bool = False  # the rate was not measured


@dataclass(frozen=True)
class Limits:
    """Of one Redis. Beyond 70 % of its one core, what waits for it grows quickly."""

    redis_cores: float = 0.7
    memory_gb: float = 64 * 0.9  # from 90 % on no job is taken
    connections: int = 10_000  # Redis's `maxclients` unless told otherwise
    network_mbit: float = 10_000


@dataclass(frozen=True)
class Need:
    """What so many workers need."""

    workers: int
    tokens_per_second: float
    per_second: float  # jobs or rows
    redis_cores: float
    redis_calls: float  # a second
    memory_gb: float
    api_cores: float
    network_mbit: float  # of Redis
    connections: float  # of Redis

    def shares(self, limits: Limits) -> dict[str, float]:
        """Of what one Redis can, by what it is."""
        return {
            "Redis: processor": self.redis_cores / limits.redis_cores,
            "Redis: memory": self.memory_gb / limits.memory_gb,
            "Redis: connections": self.connections / limits.connections,
            "Redis: network": self.network_mbit / limits.network_mbit,
        }


CPU = 9_518  # tokens/s of a worker on 2 cores: 30M shape, int8 (benchmarks/LOG.md)
GPU = 100_000  # tokens/s; nobody has measured it
HOUR = 3_600
LOADS = (
    Load("jobs, CPU workers", CPU),
    Load("jobs kept for an hour", CPU, kept_seconds=HOUR),
    Load("jobs of 8 outputs, kept for an hour", CPU, outputs=8, kept_seconds=HOUR),
    Load("rows, CPU workers", CPU, kind="rows", kept_seconds=7 * DAY),
    Load("rows kept for a day", CPU, kind="rows", kept_seconds=DAY),
    Load(
        "rows kept for a day, GPU workers (assumed)",
        GPU,
        kind="rows",
        together=8,
        slots=512,
        assumed=True,
    ),
)


def need(costs: Costs, load: Load, workers: int) -> Need:
    rows = load.kind == "rows"
    tokens = load.tokens_per_second * workers
    rate = tokens / (load.tokens * load.outputs)
    beats = workers * 3 / load.lease_seconds
    if rows:
        us, calls, network = costs.row_us, costs.row_calls, costs.row_network
        us += costs.rows_us / load.together
        ended, waiting, connections = costs.ended_row, costs.waiting_row, costs.row_connections
    else:
        us, calls, network = costs.job_us, costs.job_calls, costs.job_network
        ended = costs.ended_job + (load.outputs - 1) * costs.ended_output
        waiting, connections = costs.waiting_job, costs.connections
    redis_us = rate * us + workers * costs.worker_us + beats * load.slots * costs.lease_us
    return Need(
        workers=workers,
        tokens_per_second=tokens,
        per_second=rate,
        redis_cores=redis_us / 1e6,
        redis_calls=rate * calls + workers * costs.worker_calls,
        memory_gb=rate * (load.kept_seconds * ended + load.waiting_seconds * waiting) / 1e9,
        api_cores=0.0 if rows else rate * costs.api_us / 1e6,
        network_mbit=8 * (rate * network + workers * costs.worker_network) / 1e6,
        connections=workers * connections,
    )


def ends_at(costs: Costs, load: Load, limits: Limits) -> dict[str, float]:
    """Workers at which each of Redis's means is used up: every need grows as they do."""
    return {name: 1 / share for name, share in need(costs, load, 1).shares(limits).items()}
