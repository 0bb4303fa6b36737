"""Three times as much as the service can do, for a minute: who is taken has its text in time, who
is refused is told when to come again, no process grows, and soon all is as before.

python -m benchmarks.overload
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import random_model, report
from benchmarks.pressure import Customers, Outcome, Watch, make_key, quantile, stop
from slm_client.stack import Stack, StackOptions
from slm_core import save_checkpoint

_TOKENS = 400  # long ones, so that the service is overloaded before those who send to it are
_TRIES = 5  # of a client that comes again
_NARROW = 5  # requests a minute of a key that meets its own limit
_PROBES = 3  # jobs one after the other, before; and in a row that must be as fast, after
_NORMAL = 1.5  # times as long as before is normal again
_NORMAL_WITHIN = 10.0  # seconds


def main(
    preset: Annotated[str, typer.Option(help="Model shape; weights are random.")] = "slm-30m",
    seconds: Annotated[float, typer.Option(help="Of overload.")] = 60.0,
    times: Annotated[float, typer.Option(help="The capacity.")] = 3.0,
    waiting: Annotated[int, typer.Option(help="SLM_MAX_WAITING_JOBS: the queue's ceiling.")] = 16,
    slots: Annotated[int, typer.Option(help="Sequences decoded at once.")] = 16,
) -> None:
    """Measures on an idle machine; the load takes some of it."""
    os.environ["SLM_MAX_WAITING_JOBS"] = str(waiting)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(random_model(preset), Path(folder) / "model")
        options = StackOptions(
            port=0, data_dir=Path(folder) / "data", model=checkpoint, slots=slots
        )
        with Stack(options, on_event=print) as stack:
            figures = asyncio.run(_measure(stack, seconds, times, waiting, slots))
    report("overload", preset=preset, waiting=waiting, slots=slots, **figures)
    late = figures["normal_after_s"] > _NORMAL_WITHIN
    sys.exit(1 if late or figures["over_bound"] or figures["growing"] else 0)


async def _measure(
    stack: Stack, seconds: float, times: float, waiting: int, slots: int
) -> dict[str, Any]:
    watch = Watch(stack, every=1.0)
    key = await asyncio.to_thread(make_key, stack)
    narrow = await asyncio.to_thread(make_key, stack, requests_per_minute=_NARROW)
    async with (
        Customers(stack.url, key, tokens=_TOKENS) as customers,
        Customers(stack.url, narrow, tokens=1) as limited,
    ):
        await customers.capacity(2 * slots, 5)  # warms everything up
        capacity = await customers.capacity(2 * slots, 15)
        print(f"capacity: {capacity:.1f} jobs/s of {_TOKENS} tokens", flush=True)
        before = max([await _probe(customers) for _ in range(_PROBES)])
        watching = asyncio.create_task(watch.run())
        began = time.monotonic()
        narrowly = asyncio.create_task(_send_one_after_the_other(limited, seconds))
        tasks = await customers.pace(times * capacity, seconds, _tries)
        lasted = time.monotonic() - began
        ended = sum(task.done() and bool(task.result().status) for task in tasks)
        normal = await _seconds_until_normal(customers, before)
        outcomes = await asyncio.gather(*tasks)
        narrow_outcomes = await narrowly
    stop(watching)
    # what may wait before it and what runs, and then itself beside others, at the measured capacity
    bound = (waiting + 2 * slots) / capacity
    served = [outcome.served_seconds for outcome in outcomes if outcome.status]
    again = [outcome for outcome in outcomes[::2] if outcome.refusals]
    told = [outcome for outcome in narrow_outcomes if "rate_limited" in outcome.refusals]
    grown = watch.growth(began + lasted / 6, began + lasted)
    return {
        "capacity_jobs_per_s": round(capacity, 1),
        "offered_jobs_per_s": round(times * capacity, 1),
        "offered": len(outcomes),
        "lasted_s": round(lasted, 1),
        "served_jobs_per_s": round(ended / lasted, 1),
        "taken": len(served),
        "ends": dict(Counter(outcome.status for outcome in outcomes if outcome.status)),
        "refusals": dict(Counter(code for outcome in outcomes for code in outcome.refusals)),
        "alone_s": round(before, 3),
        "latency_bound_s": round(bound, 2),
        "latency_p50_s": quantile(served, 50),
        "latency_p99_s": quantile(served, 99),
        "latency_worst_s": round(max(served), 3),
        "over_bound": sum(each > bound for each in served),
        "refused_with_503_that_came_again": len(again),
        "of_these_taken": sum(bool(outcome.job) for outcome in again),
        "refused_with_429_that_came_again": len(told),
        "of_these_not_refused_again": sum(o.refusals.count("rate_limited") == 1 for o in told),
        "grown_mb": {name: by for name, by in grown.items() if name.endswith(".mb")},
        "growing": [name for name in watch.growing(grown) if name.endswith(".mb")],
        "normal_after_s": round(normal, 1),
    }


def _tries(number: int, left: float) -> int:
    """Every other client comes again while there is time."""
    return 1 if number % 2 else max(1, min(_TRIES, int(left)))


async def _send_one_after_the_other(customers: Customers, seconds: float) -> list[Outcome]:
    """Of one key, each as soon as the one before was taken, so that it meets the key's limit."""
    until, outcomes = time.perf_counter() + seconds, []
    while time.perf_counter() < until:
        outcomes.append(await customers.submit(tries=1_000))
    return outcomes


async def _probe(customers: Customers) -> float:
    """Seconds; infinite if it is refused."""
    outcome = await customers.send()
    return math.inf if outcome.seconds is None else outcome.seconds


async def _seconds_until_normal(customers: Customers, before: float) -> float:
    """Until jobs are taken at once, and several in a row end about as soon as before. Infinite if
    that does not happen."""
    began = since = time.perf_counter()
    normal = 0
    while normal < _PROBES:
        if time.perf_counter() - began > 6 * _NORMAL_WITHIN:
            return math.inf
        started = time.perf_counter()
        if await _probe(customers) <= _NORMAL * before:
            since = since if normal else started
            normal += 1
        else:
            normal = 0
            await asyncio.sleep(0.1)
    return since - began


if __name__ == "__main__":
    typer.run(main)
