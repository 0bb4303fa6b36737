"""The tables of docs/scaling.md: what was measured, and what `benchmarks.capacity` makes of it.

python -m benchmarks.capacity_tables [benchmarks/results/scale.json]
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.capacity import (
    CALLBACK,
    DAY,
    IDEMPOTENCY,
    JOBS,
    LOADS,
    ROWS,
    Costs,
    Limits,
    Load,
    ends_at,
    fills_in,
    need,
)

RESULT = Path(__file__).parent / "results" / "scale.json"
COUNTS = (1, 3, 10, 30, 100, 300, 1_000)
SHIPPED = {"compose, `base`": 2, "`autoscale`": 8}  # GB of `maxmemory`; tests/deploy looks
DEFAULTS = replace(JOBS, kept_seconds=DAY, callbacks_seconds=7 * DAY)


def needs_table(costs: Costs, load: Load) -> str:
    """Markdown."""
    unit = load.kind
    lines = [
        f"| workers | tokens/s | {unit}/s | Redis cores, replayed | in the service "
        "| Redis memory, GB | api cores | connections |",
        "| --- " * 8 + "|",
    ]
    for workers in COUNTS:
        it = need(costs, load, workers)
        cells = [
            f"{workers:,}",
            f"{it.tokens_per_second:,.0f}",
            f"{it.per_second:,.0f}",
            f"{it.replayed_cores:,.2f}",
            f"{it.service_cores:,.2f}",
            f"{it.memory_gb:,.1f}",
            f"{it.api_cores:,.1f}",
            f"{it.connections:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ends_table(costs: Costs, limits: Limits) -> str:
    """Markdown: how many workers one Redis can have, by what ends first."""
    names = list(ends_at(costs, LOADS[0], limits))
    lines = [
        f"| work | {' | '.join(names)} | first |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for load in LOADS:
        ends = ends_at(costs, load, limits)
        first = min(ends, key=lambda name: ends[name]).partition(",")[0]
        cells = [_workers(end) for end in ends.values()]
        lines.append(f"| {load.name} | {' | '.join(cells)} | {first} |")
    return "\n".join(lines)


def _workers(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.1f}"


def shipped_table(costs: Costs) -> str:
    """Markdown: what the Redis of the compose file and of the manifests holds."""
    loads = {
        "jobs kept for an hour": JOBS,
        "with callbacks kept for a day": replace(JOBS, callbacks_seconds=DAY),
        "rows kept for a day": ROWS,
        "jobs for a day, callbacks for a week": DEFAULTS,
    }
    lines = ["| Redis of | `maxmemory` | work | workers | one worker fills it in |"]
    lines.append("| --- " * 5 + "|")
    for name, memory_gb in SHIPPED.items():
        usable = 0.9 * memory_gb
        for work, load in loads.items():
            workers = usable / need(costs, load, 1).memory_gb
            hours = fills_in(costs, load, usable) / 3600
            filled = "never" if math.isinf(hours) else f"{hours:.0f} h"
            lines.append(f"| {name} | {memory_gb} GB | {work} | {workers:.2g} | {filled} |")
    return "\n".join(lines)


def growth_table(document: dict[str, Any]) -> str:
    """Markdown: what was measured."""
    columns = {
        "workers": "{workers}",
        "tokens/s": "{tokens_per_second:,.0f}",
        "of linear": "{efficiency:.1%}",
        "of the devices": "{of_devices:.1%}",
        "ended a second": "{per_second:.1f}",
        "Redis": "{cores[redis]:.3f}",
        "api": "{cores[api]:.2f}",
        "workers' processes": "{cores[workers]:.2f}",
    }
    return _stands_table(document["growth"], columns)


def end_table(document: dict[str, Any]) -> str:
    """Markdown: four workers on faster and faster devices."""
    columns = {
        "step, ms": "{step_ms}",
        "tokens/s": "{tokens_per_second:,.0f}",
        "of the devices": "{of_devices:.0%}",
        "ended a second": "{per_second:.0f}",
        "Redis": "{cores[redis]:.2f}",
        "api": "{cores[api]:.2f}",
        "workers' processes": "{cores[workers]:.2f}",
    }
    return _stands_table(document["end"], columns)


def _stands_table(stands: dict[str, list[dict[str, Any]]], columns: dict[str, str]) -> str:
    """A line for each stand; `columns` are the format of each, by head."""
    lines = [f"| | {' | '.join(columns)} |"]
    lines.append("| --- " * (1 + len(columns)) + "|")
    for kind in ("rows", "jobs"):
        for stand in stands[kind]:
            cells = (form.format_map(stand).replace("%", " %") for form in columns.values())
            lines.append(f"| {' | '.join([kind, *cells])} |")
    return "\n".join(lines)


def costs_table(document: dict[str, Any]) -> str:
    """Markdown: what the capacity is computed from, and what stands beside it."""
    costs, memory = Costs.of(document), document["memory"]
    redis, api, spent = (document[name] for name in ("redis", "api", "costs"))
    growth = document["growth"]
    jobs, one, many = (redis[name] for name in ("jobs", "rows_by_1", "rows_by_8"))
    rows = {
        "Redis, a job with its ticket and two looks at it": f"{jobs['redis_us']:.0f} µs of CPU; "
        f"{jobs['per_second']:,.0f} a second with no rest",
        "Redis, while jobs wait for a slot, however many end": f"{costs.line_core:.3f} of a core",
        "Redis, a job in the service, all included but that": f"{costs.service_job_us:,.0f} µs",
        "Redis, a row": f"{one['redis_us']:.0f} µs; {one['per_second']:,.0f} a second",
        "Redis, a row of eight in a call": f"{many['redis_us']:.0f} µs; "
        f"{many['per_second']:,.0f} a second",
        "Redis, a row in the service, all included": f"{costs.service_row_us:.0f} µs",
        "Redis, a worker without work, a second": f"{costs.worker_us:.0f} µs, of 1,000 of them",
        "Redis, a heartbeat; each job or row in it": f"{spent['heartbeat_us']:.0f}; "
        f"{spent['lease_us']:.0f} µs",
        "Redis, a look at 1,000 workers": f"{spent['look_at_workers_us'] / 1000:.1f} ms",
        "commands of Redis for a job, with 1 to 8 workers; a row": f"{_calls(growth['jobs'])}; "
        f"{growth['rows'][0]['redis_calls']:.0f}, most of them within scripts",
        "connections of a worker that has run jobs; rows only": f"{costs.connections:.0f}; "
        f"{costs.row_connections:.0f}",
        "bytes in Redis of a job that waits; has ended": f"{costs.waiting_job:,}; "
        f"{costs.ended_job:,}, and {costs.ended_output:.0f} for each further output",
        "the same with Redis's own `hash-max-ziplist-value`": f"{memory['waiting_loose_job']:,}; "
        f"{memory['ended_loose_job']:,}",
        "bytes in Redis of a row that waits; has ended": f"{costs.waiting_row:,}; "
        f"{costs.ended_row:,}",
        "bytes in Redis of a delivered callback; an `Idempotency-Key`": f"{CALLBACK:,}; "
        f"{IDEMPOTENCY}",
        "api, `POST /jobs`; `GET /jobs/{id}`": f"{api['post']['per_core']:.0f}; "
        f"{api['get']['per_core']:.0f} a second for each core",
        "api, a job whose client waits": f"{costs.api_us / 1000:.1f} ms of a core",
    }
    lines = ["| | |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())])


def _calls(stands: list[dict[str, Any]]) -> str:
    first, last = (stand["redis_calls"] for stand in (stands[0], stands[3]))
    return f"{first:.0f} to {last:.0f}"


def tables(document: dict[str, Any]) -> dict[str, str]:
    """All that docs/scaling.md shows, by name."""
    costs, limits = Costs.of(document), Limits()
    return {
        "growth": growth_table(document),
        "end": end_table(document),
        "costs": costs_table(document),
        "ends": ends_table(costs, limits),
        "shipped": shipped_table(costs),
        "jobs": needs_table(costs, JOBS),
        "rows": needs_table(costs, ROWS),
    }


def main(
    result: Annotated[Path, typer.Argument(help="What `benchmarks.scale --out` wrote.")] = RESULT,
) -> None:
    """Prints the tables of docs/scaling.md."""
    for name, table in tables(json.loads(result.read_text("utf-8"))).items():
        print(f"{name}\n\n{table}\n")


if __name__ == "__main__":
    typer.run(main)
