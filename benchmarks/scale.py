"""How the service grows with its workers, on simulated devices, and what ends that: Redis, the api,
or the machine that this runs on. Measures what `benchmarks.capacity` computes with.

python -m benchmarks.scale [--only PART]... [--plot docs/scaling.png]

Everything is real but the devices, see `benchmarks.device`: these take 50 ms for a step and leave
the processor to the others, as a large model on a GPU does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import replay
from benchmarks.fleet import Fleet, Window
from benchmarks.load import request
from benchmarks.measure import report
from benchmarks.spending import api, costs, memory

SLOTS = 64
_LENGTHS = range(24, 109, 12)  # most tokens of a sequence, in turn; some stories end before
_IN_LINE = 1.5  # clients for each slot: while one has its answer, another waits
_SETTLE = 3.0  # seconds, before a window: what began together has got out of step
_ROUND_SECONDS = 10.0  # of starting workers, and settling, at most
_SHORTEST = 40  # tokens, of which sequences have more on average
_SHORT_STEPS = (20, 10, 5)  # ms
_END_WORKERS = 4
Rounds = dict[int, list[Window]]  # by number of workers


class Part(StrEnum):
    MEMORY = "memory"
    COSTS = "costs"
    GROWTH = "growth"
    END = "end"
    API = "api"
    REDIS = "redis"  # the last, for it leaves much behind


def main(
    workers: Annotated[
        str, typer.Option(help="Numbers of workers, the smallest first.")
    ] = "1,2,4,8",
    more: Annotated[int, typer.Option(help="Workers in one round more; 0: none.")] = 16,
    repeats: Annotated[int, typer.Option(help="Rounds of growth; medians are reported.")] = 5,
    step_ms: Annotated[float, typer.Option(help="What a decode step takes a device.")] = 50,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.")] = 4,
    only: Annotated[list[Part] | None, typer.Option(help="This part; may be repeated.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keeps the JSON document here, with parts measured before.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draws growth and capacity here.")] = None,
    drawn: Annotated[
        Path | None, typer.Option("--from", help="Measures nothing; draws this document.")
    ] = None,
) -> None:
    """Measures the parts one after the other, in nine minutes on an idle machine."""
    if drawn:
        document = json.loads(drawn.read_text("utf-8"))
    else:
        counts = [int(count) for count in workers.split(",")]
        figures = json.loads(out.read_text("utf-8")) if out and out.exists() else {}
        figures = {part.value: figures[part] for part in Part if part in figures}
        named = {"slots": SLOTS, "step_ms": step_ms, "seconds": seconds}
        with (
            tempfile.TemporaryDirectory() as folder,
            Fleet(Path(folder), slots=SLOTS, step_seconds=step_ms / 1000) as fleet,
        ):
            for part in (part for part in Part if part in (only or Part)):
                figures[part.value] = _measure(part, fleet, counts, more, repeats, seconds)
                if out:  # nothing is lost if it is ended
                    out.write_text(json.dumps({**named, **figures}) + "\n", "utf-8")
        document = report("scale", **named, **figures)
        if out:
            out.write_text(json.dumps(document) + "\n", "utf-8")
    if plot:
        from benchmarks.scale_plot import draw

        draw(document, plot)


def _measure(
    part: Part, fleet: Fleet, counts: list[int], more: int, repeats: int, seconds: float
) -> dict[str, Any]:
    if part is Part.GROWTH:
        return _growth(fleet, counts, more, repeats, seconds)
    if part is Part.END:
        return _end(fleet, seconds)
    if part is Part.MEMORY:
        return memory(fleet)
    if part is Part.COSTS:
        return costs(fleet)
    fleet.resize(0)
    if part is Part.API:
        return api(fleet, seconds)
    key = fleet.make_key()
    found = {"jobs": replay.job_lives(fleet.redis_url, key, seconds)}
    for at_once in (1, 8):
        told = replay.row_lives(fleet.redis_url, key, seconds, at_once)
        found[f"rows_by_{at_once}"] = told
    return found


def _growth(
    fleet: Fleet, counts: list[int], more: int, repeats: int, seconds: float
) -> dict[str, Any]:
    """Workers come in steps; with rows they go in steps in every other round, so that no number of
    them is always measured first. With jobs they do not, as the clients of those who had gone would
    make a longer queue for the others."""
    rounds: dict[str, Rounds] = {"rows": {}, "jobs": {}}
    for repeat in range(repeats):
        if repeat % 2 == 0:
            _sweep(fleet, "rows", counts, seconds, rounds["rows"])
            _sweep(fleet, "jobs", counts, seconds, rounds["jobs"])
        else:
            _sweep(fleet, "jobs", counts, seconds, rounds["jobs"])
            _sweep(fleet, "rows", counts[::-1], seconds, rounds["rows"])
    figures = {
        kind: [_stand(fleet, count, windows, found[counts[0]]) for count, windows in found.items()]
        for kind, found in ((kind, dict(sorted(r.items()))) for kind, r in rounds.items())
    }
    if more:
        for kind, found in rounds.items():
            _sweep(fleet, kind, [more], seconds, found)
            figures[kind].append(_stand(fleet, more, found[more], found[counts[0]][-1:]))
    return figures


def _sweep(fleet: Fleet, kind: str, counts: list[int], seconds: float, into: Rounds) -> None:
    with _work(fleet, kind, sum(counts) * (_ROUND_SECONDS + seconds)) as bring:
        for count in counts:
            fleet.resize(count)
            bring(count)
            time.sleep(_SETTLE)
            window = fleet.measure(seconds)
            into.setdefault(count, []).append(window)
            print(f"{count} workers, {kind}: {_told(window)}", flush=True)


@contextmanager
def _work(fleet: Fleet, kind: str, worker_seconds: float) -> Iterator[Callable[[int], None]]:
    """Work for so many workers as what it yields is told of; rows for `worker_seconds` in all."""
    if kind == "rows":
        a_second = SLOTS / (fleet.step_seconds * _SHORTEST)  # of a worker, at most
        with fleet.client() as client:
            rows = round(a_second * worker_seconds) + 20 * SLOTS
            batch = client.batches.create(_rows(rows))
            fleet.batch = batch.id
            yield lambda _: None
            if client.batches.get(batch.id).counts.pending == 0:
                raise RuntimeError("the batch had too few rows")
            client.batches.cancel(batch.id)
            client.batches.wait(batch.id, timeout=60)
            fleet.batch = ""
        return
    senders: list[subprocess.Popen[bytes]] = []
    connected = 0

    def bring(count: int) -> None:
        """Clients that each wait for their job's end, and send the next."""
        nonlocal connected
        wanted = round(count * SLOTS * _IN_LINE)
        if wanted > connected:
            senders.append(_send(fleet, wanted - connected))
            connected = wanted

    try:
        yield bring
    finally:
        for sender in senders:
            if sender.poll() is not None:
                raise RuntimeError("a client's connection ended; see above")
            sender.kill()
            sender.wait()
        fleet.run_dry()


def _rows(count: int) -> bytes:
    rows = (
        {"prompt": f"Story {row}. {replay.PROMPT}", "max_tokens": _LENGTHS[row % len(_LENGTHS)]}
        for row in range(count)
    )
    return "\n".join(map(json.dumps, rows)).encode()


def _send(fleet: Fleet, connections: int) -> subprocess.Popen[bytes]:
    bodies = ({"prompt": replay.PROMPT, "max_tokens": length} for length in _LENGTHS)
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {fleet.token}",
        "Prefer": "wait=60",
    }
    command = [sys.executable, "-m", "benchmarks.load", "127.0.0.1", str(fleet.port)]
    process = subprocess.Popen(
        [*command, "3600", str(connections)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    if process.stdin:
        raw = (request("POST", "/jobs", headers, json.dumps(body).encode()) for body in bodies)
        process.stdin.write(b"\0".join(raw))
        process.stdin.close()
    return process


def _stand(fleet: Fleet, count: int, windows: list[Window], alone: list[Window]) -> dict[str, Any]:
    """How `count` workers do, beside one of the same round."""

    def middle(values: list[float], digits: int = 1) -> float:
        return round(statistics.median(values), digits)

    rates = [window.tokens_per_second for window in windows]
    ones = [window.tokens_per_second for window in alone]
    shares = [rate / (count * one) for rate, one in zip(rates, ones, strict=False)]
    device = SLOTS / fleet.step_seconds
    done = [window.jobs + window.rows for window in windows]
    return {
        "workers": count,
        "tokens_per_second": middle(rates),
        "per_second": middle([d / w.seconds for d, w in zip(done, windows, strict=True)], 2),
        "efficiency": middle(shares, 4),
        "efficiency_by_round": [round(share, 4) for share in shares],
        "of_devices": middle([rate / (count * device) for rate in rates], 4),
        "cores": {
            role: middle([window.shares[role] for window in windows], 3)
            for role in windows[0].shares
        },
        "redis_calls": middle(
            [sum(w.calls.values()) / d for d, w in zip(done, windows, strict=True)]
        ),
        "scripts": middle([w.scripts / d for d, w in zip(done, windows, strict=True)], 2),
        "redis_us": middle([1e6 * w.cpu["redis"] / d for d, w in zip(done, windows, strict=True)]),
        "api_us": middle([1e6 * w.cpu["api"] / d for d, w in zip(done, windows, strict=True)]),
        "worker_us": middle(
            [1e6 * w.cpu["workers"] / d for d, w in zip(done, windows, strict=True)]
        ),
        "redis_bytes": middle(
            [(w.received + w.sent) / d for d, w in zip(done, windows, strict=True)]
        ),
        "connections": max(window.connections for window in windows),
        "tokens_each": middle(
            [w.tokens_per_second * w.seconds / d for d, w in zip(done, windows, strict=True)]
        ),
    }


def _end(fleet: Fleet, seconds: float) -> dict[str, Any]:
    """Faster and faster devices, until something of ours or of this machine has no time left."""
    found: dict[str, Any] = {}
    step = fleet.step_seconds
    fleet.resize(_END_WORKERS)
    for kind in ("rows", "jobs"):
        found[kind] = []
        for short in _SHORT_STEPS:
            fleet.step_seconds = short / 1000
            with _work(fleet, kind, _END_WORKERS * (_ROUND_SECONDS + seconds)) as bring:
                bring(_END_WORKERS)
                time.sleep(_SETTLE)
                window = fleet.measure(seconds)
            print(f"steps of {short} ms, {kind}: {_told(window)}", flush=True)
            stand = _stand(fleet, _END_WORKERS, [window], [window])
            names = ("tokens_per_second", "per_second", "of_devices", "cores", "redis_us")
            found[kind].append({"step_ms": short, **{name: stand[name] for name in names}})
    fleet.step_seconds = step
    return {"workers": _END_WORKERS, **found}


def _told(window: Window) -> str:
    cores = ", ".join(f"{role} {share:.2f}" for role, share in window.shares.items())
    return (
        f"{window.tokens_per_second:,.0f} tokens/s, "
        f"{(window.jobs + window.rows) / window.seconds:.1f} ended a second, cores: {cores}"
    )


if __name__ == "__main__":
    typer.run(main)
