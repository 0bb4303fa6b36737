"""Hours in short: the service at 80 % of its capacity, with streams, callbacks and batches, while
memory, files, threads and keys are counted. What grows is named, and the status is 1; likewise if
a job did not succeed, or a process ended.

python -m benchmarks.soak --minutes 30
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import random_model, report
from benchmarks.pressure import Customers, Watch, make_key, quantile, stop
from slm_client.stack import Stack, StackOptions
from slm_core import save_checkpoint

_TOKENS = 50
_TTL = 30  # seconds that records are kept here, so that what is kept stays as much
_SETTLED = 1 / 3  # of the time, after which the counting begins
_ROWS = 20  # of each batch


def main(
    minutes: Annotated[float, typer.Option(help="How long.")] = 30.0,
    share: Annotated[float, typer.Option(help="Of the capacity that is measured first.")] = 0.8,
    preset: Annotated[str, typer.Option(help="Model shape; weights are random.")] = "slm-7m",
    slots: Annotated[int, typer.Option(help="Sequences decoded at once.")] = 16,
) -> None:
    """Measures on a machine that does little else."""
    for name in ("JOB", "BATCH", "DEAD_LETTER"):
        os.environ[f"SLM_{name}_TTL_SECONDS"] = str(_TTL)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(random_model(preset), Path(folder) / "model")
        options = StackOptions(
            port=0, data_dir=Path(folder) / "data", model=checkpoint, slots=slots, workers=2
        )
        with Stack(options, on_event=print) as stack:
            figures = asyncio.run(_measure(stack, 60 * minutes, share, slots))
    report("soak", preset=preset, minutes=minutes, slots=slots, **figures)
    sys.exit(1 if figures["growing"] or set(figures["ends"]) != {"succeeded"} else 0)


async def _measure(stack: Stack, seconds: float, share: float, slots: int) -> dict[str, Any]:
    watch = Watch(stack, every=min(5.0, seconds / 60))
    receiver = await asyncio.start_server(_say_fine, "127.0.0.1", 0)
    hook = f"http://127.0.0.1:{receiver.sockets[0].getsockname()[1]}/hook"
    key = await asyncio.to_thread(make_key, stack, callback_hosts=["127.0.0.1"])
    extras = {"stream": True, "callback_url": hook, "callback_outputs": True}
    async with Customers(stack.url, key, tokens=_TOKENS, extras=extras) as customers:
        await customers.capacity(4 * slots, 5)  # warms everything up
        capacity = await customers.capacity(4 * slots, 15)
        print(f"capacity: {capacity:.1f} jobs/s of {_TOKENS} tokens", flush=True)
        began = time.monotonic()
        beside = [
            asyncio.create_task(watch.run()),
            asyncio.create_task(_tell(watch, began, seconds)),
            asyncio.create_task(_send_batches(customers, hook)),
        ]
        outcomes = await asyncio.gather(*await customers.pace(share * capacity, seconds))
        stop(*beside)
    receiver.close()
    counted = seconds * (1 - _SETTLED)
    grown = watch.growth(began + seconds * _SETTLED, began + seconds)
    return {
        "capacity_jobs_per_s": round(capacity, 1),
        "jobs": len(outcomes),
        "ends": dict(Counter(outcome.status or "refused" for outcome in outcomes)),
        "latency_p99_s": quantile([o.seconds for o in outcomes if o.seconds is not None], 99),
        "counted_s": round(counted),
        "grown": grown,
        "slopes_per_hour": {name: round(by * 3600 / counted, 1) for name, by in grown.items()},
        "growing": watch.growing(grown),
    }


async def _say_fine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
    writer.write(b"HTTP/1.1 204 Fine\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def _tell(watch: Watch, began: float, seconds: float) -> None:
    """How it stands, once a minute."""
    while True:
        await asyncio.sleep(60)
        told = " ".join(f"{name} {value:.0f}" for name, value in watch.samples[-1][1].items())
        print(f"{time.monotonic() - began:.0f} of {seconds:.0f} s: {told}", flush=True)


async def _send_batches(customers: Customers, hook: str) -> None:
    """One after the other, for ever."""
    rows = [f"Once upon a time there were {number} foxes" for number in range(_ROWS)]
    while True:
        await customers.send_batch(rows, callback_url=hook)


if __name__ == "__main__":
    typer.run(main)
