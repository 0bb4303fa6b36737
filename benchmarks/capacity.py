"""From 1 to 1,000 workers: what each part of the service has to do, and what ends first.

python -m benchmarks.capacity [benchmarks/results/scale.json]

prints the tables of docs/scaling.md. What a job, a row, a worker and a byte cost was measured by
`benchmarks.scale`; what a worker generates, and the limits, are given here. Knows of no process.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

RESULT = Path(__file__).parent / "results" / "scale.json"
COUNTS = (1, 3, 10, 30, 100, 300, 1_000)
DAY = 86_400


@dataclass(frozen=True)
class Costs:
    """What was measured. Redis's time is that of its one thread, in microseconds of CPU."""

    job_us: float  # of Redis, from the POST to the client that hears of the end
    row_us: float
    job_calls: float  # of Redis, those within scripts too
    row_calls: float
    job_network: float  # bytes to and from Redis
    row_network: float
    api_us: float  # of the api, for a job whose client waits for its end
    worker_us: float  # a second of a worker, whether or not it works: polls, signs of life
    worker_calls: float
    worker_network: float
    lease_us: float  # of each job or row that a heartbeat keeps
    sweep_us: float  # once a second, by one of the workers
    connections: float  # of a worker that runs jobs
    row_connections: float
    ended_job: float  # bytes that Redis holds
    ended_output: float  # of each further output of a job
    ended_row: float
    waiting_job: float
    waiting_row: float

    @classmethod
    def of(cls, document: dict[str, Any]) -> Costs:
        """From what `benchmarks.scale` printed. Of the work, it takes what the largest number of
        workers that had all rounds cost, less what as many idle ones cost."""
        growth, spent, memory = (document[name] for name in ("growth", "costs", "memory"))
        jobs, rows = (_largest(growth[kind]) for kind in ("jobs", "rows"))
        idle = {
            "redis_us": spent["idle_worker_us"],
            "redis_calls": sum(spent["idle_worker_calls"].values()),
            "redis_bytes": spent["idle_worker_bytes"],
        }

        def own(stand: dict[str, Any], name: str) -> float:
            return float(stand[name] - idle[name] * stand["workers"] / stand["per_second"])

        return cls(
            job_us=own(jobs, "redis_us"),
            row_us=own(rows, "redis_us"),
            job_calls=own(jobs, "redis_calls"),
            row_calls=own(rows, "redis_calls"),
            job_network=own(jobs, "redis_bytes"),
            row_network=own(rows, "redis_bytes"),
            api_us=jobs["api_us"],
            worker_us=idle["redis_us"],
            worker_calls=idle["redis_calls"],
            worker_network=idle["redis_bytes"],
            lease_us=spent["lease_us"],
            sweep_us=spent["sweep_us"],
            connections=jobs["connections"] / jobs["workers"],
            row_connections=rows["connections"] / rows["workers"],
            ended_job=memory["ended_job"],
            ended_output=(memory["ended_wide_job"] - memory["ended_job"]) / (memory["wide"] - 1),
            ended_row=memory["ended_row"],
            waiting_job=memory["waiting_job"],
            waiting_row=memory["waiting_row"],
        )


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
    Load("rows kept for a day, GPU workers (assumed)", GPU, kind="rows", slots=512, assumed=True),
)


def need(costs: Costs, load: Load, workers: int) -> Need:
    rows = load.kind == "rows"
    tokens = load.tokens_per_second * workers
    rate = tokens / (load.tokens * load.outputs)
    beats = workers * 3 / load.lease_seconds
    own_us = workers * costs.worker_us + costs.sweep_us
    own_us += beats * load.slots * costs.lease_us
    ended = costs.ended_job + (load.outputs - 1) * costs.ended_output
    waiting = costs.waiting_row if rows else costs.waiting_job
    if rows:
        ended = costs.ended_row
    connections = costs.row_connections if rows else costs.connections
    return Need(
        workers=workers,
        tokens_per_second=tokens,
        per_second=rate,
        redis_cores=(rate * (costs.row_us if rows else costs.job_us) + own_us) / 1e6,
        redis_calls=rate * (costs.row_calls if rows else costs.job_calls)
        + workers * costs.worker_calls,
        memory_gb=rate * (load.kept_seconds * ended + load.waiting_seconds * waiting) / 1e9,
        api_cores=0.0 if rows else rate * costs.api_us / 1e6,
        network_mbit=8
        * (
            rate * (costs.row_network if rows else costs.job_network)
            + workers * costs.worker_network
        )
        / 1e6,
        connections=workers * connections,
    )


def ends_at(costs: Costs, load: Load, limits: Limits) -> dict[str, float]:
    """Workers at which each of Redis's means is used up; every need is a straight line."""
    none, one = (need(costs, load, workers).shares(limits) for workers in (0, 1))
    return {name: (1 - none[name]) / (one[name] - none[name]) for name in one}


def needs_table(costs: Costs, load: Load) -> str:
    """Markdown."""
    unit = load.kind
    lines = [
        f"| workers | tokens/s | {unit}/s | Redis cores | Redis commands/s | Redis memory, GB "
        "| api cores | Redis network, Mbit/s | connections |",
        "| --- " * 9 + "|",
    ]
    for workers in COUNTS:
        it = need(costs, load, workers)
        cells = [
            f"{workers:,}",
            f"{it.tokens_per_second:,.0f}",
            f"{it.per_second:,.0f}",
            f"{it.redis_cores:,.2f}",
            f"{it.redis_calls:,.0f}",
            f"{it.memory_gb:,.1f}",
            f"{it.api_cores:,.1f}",
            f"{it.network_mbit:,.0f}",
            f"{it.connections:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ends_table(costs: Costs, limits: Limits) -> str:
    """Markdown: how many workers one Redis can have, by what ends first."""
    names = [name.removeprefix("Redis: ") for name in ends_at(costs, LOADS[0], limits)]
    lines = [
        f"| work | {' | '.join(names)} | first |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for load in LOADS:
        ends = ends_at(costs, load, limits)
        first = min(ends, key=lambda name: ends[name])
        cells = [_workers(end) for end in ends.values()]
        lines.append(f"| {load.name} | {' | '.join(cells)} | {first.removeprefix('Redis: ')} |")
    return "\n".join(lines)


def _workers(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.1f}"


def growth_table(document: dict[str, Any]) -> str:
    """Markdown: what was measured."""
    lines = [
        "| | workers | tokens/s | of linear | of the devices | ended a second | Redis | api "
        "| workers' processes |",
        "| --- " * 9 + "|",
    ]
    for kind in ("rows", "jobs"):
        for stand in document["growth"][kind]:
            cores = stand["cores"]
            cells = [
                kind,
                f"{stand['workers']}",
                f"{stand['tokens_per_second']:,.0f}",
                f"{100 * stand['efficiency']:.1f} %",
                f"{100 * stand['of_devices']:.1f} %",
                f"{stand['per_second']:.1f}",
                f"{cores['redis']:.3f}",
                f"{cores['api']:.2f}",
                f"{cores['workers']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(document: dict[str, Any]) -> dict[str, str]:
    """All that docs/scaling.md shows, by name."""
    costs, limits = Costs.of(document), Limits()
    return {
        "growth": growth_table(document),
        "ends": ends_table(costs, limits),
        "jobs": needs_table(costs, LOADS[1]),
        "rows": needs_table(costs, LOADS[4]),
    }


def main(
    result: Annotated[Path, typer.Argument(help="What `benchmarks.scale --out` wrote.")] = RESULT,
) -> None:
    """Prints the tables of docs/scaling.md."""
    for name, table in tables(json.loads(result.read_text("utf-8"))).items():
        print(f"{name}\n\n{table}\n")


if __name__ == "__main__":
    typer.run(main)
