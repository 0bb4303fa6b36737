"""Batches: how fast an upload is taken and what it costs the api's memory, bytes of Redis for a
finished row, how soon a job starts while a batch fills every slot, and how fairly two keys share.

python -m benchmarks.bulk [--only upload|memory|interactive|share]...
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import psutil
import redis
import torch
import typer

from benchmarks.measure import available_threads, model_of, report
from slm_client import Client
from slm_client.redis_server import RedisServer, free_port
from slm_client.stack import Stack, StackOptions
from slm_core import Engine, SamplingParams, save_checkpoint
from slm_jobs.settings import Settings

_MB = 1 << 20
_SENTENCE = "The little fox went into the old forest and found a red ball near the river. "


class Part(StrEnum):
    UPLOAD = "upload"
    MEMORY = "memory"
    INTERACTIVE = "interactive"
    SHARE = "share"


def main(
    preset: Annotated[
        str,
        typer.Option(help="Model shape with random weights, or shipped: the shipped checkpoint."),
    ] = "slm-30m",
    rows: Annotated[int, typer.Option(help="Rows of an upload.")] = 100_000,
    megabytes: Annotated[int, typer.Option(help="Size of a larger upload.")] = 256,
    repeats: Annotated[int, typer.Option(help="Uploads, and jobs beside a batch.")] = 5,
    finished: Annotated[int, typer.Option(help="Rows of 200 tokens whose memory counts.")] = 1_000,
    jobs: Annotated[int, typer.Option(help="Jobs sent while a batch runs.")] = 20,
    only: Annotated[list[Part] | None, typer.Option(help="This part; may be repeated.")] = None,
) -> None:
    """Measures the parts one after the other, each on an idle machine."""
    parts = only or list(Part)
    torch.set_num_threads(available_threads())
    figures: dict[str, Any] = {"preset": preset}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(model_of(preset), Path(folder) / "model")
        store = RedisServer(Path(folder) / "redis", free_port())
        store.start()
        options = StackOptions(
            port=0, data_dir=Path(folder) / "data", model=checkpoint, redis_url=store.url
        )
        with (
            _stopping(store),
            Stack(options, on_event=print) as stack,
            Client(stack.url, stack.api_key) as client,
        ):
            if Part.UPLOAD in parts:
                key = client.keys.create("uploads", batch_rows=None, batch_tokens=None)
                with Client(stack.url, key["token"]) as other:
                    figures |= _upload(other, Path(folder), rows, megabytes, repeats)
            if Part.MEMORY in parts:
                figures |= _memory(client, store.url, finished)
            if Part.INTERACTIVE in parts:
                engine = Engine.from_checkpoint(checkpoint, device="cpu")
                beside = Engine.from_checkpoint(
                    checkpoint, device="cpu", reserved_slots=Settings().reserved_slots
                )
                figures |= _interactive(client, engine, beside, jobs)
            if Part.SHARE in parts:
                figures |= _share(client, stack)
    report("bulk", **figures)


@contextmanager
def _stopping(store: RedisServer) -> Iterator[None]:
    try:
        yield
    finally:
        store.stop()


def _upload(
    client: Client, folder: Path, rows: int, megabytes: int, repeats: int
) -> dict[str, Any]:
    """Rows a second from the first byte to the 202, and how much the api has grown by the end."""
    plain, large = folder / "rows.jsonl", folder / "large.jsonl"
    size = _write(plain, rows)
    api = _process("api.app:app")
    _send(client, plain)  # warms it up
    before = api.memory_info().rss
    rates = []
    for _ in range(repeats):
        started = time.perf_counter()
        _send(client, plain)
        rates.append(rows / (time.perf_counter() - started))
        print(f"{rates[-1]:,.0f} rows/s, the api has {api.memory_info().rss / _MB:.0f} MB")
    grown = api.memory_info().rss - before
    large_rows = megabytes * _MB * rows // size
    _write(large, large_rows)
    started = time.perf_counter()
    _send(client, large)
    took = time.perf_counter() - started
    return {
        "upload_rows_per_second": round(statistics.median(rates)),
        "upload_row_bytes": round(size / rows),
        "upload_grows_api_mb": round(grown / _MB, 1),
        "large_upload_mb": megabytes,
        "large_upload_rows_per_second": round(large_rows / took),
        "large_upload_grows_api_mb": round((api.memory_info().rss - before - grown) / _MB, 1),
    }


def _send(client: Client, file: Path) -> None:
    """Uploads a batch, and ends it before it has cost much."""
    batch = client.batches.create(file, max_tokens=16)
    client.batches.cancel(batch.id)
    client.batches.wait(batch.id, timeout=60)
    client.batches.delete(batch.id)


def _write(file: Path, rows: int) -> int:
    with file.open("w", encoding="utf-8") as out:
        for row in range(rows):
            prompt = f"Story {row}. " + _SENTENCE * 2 + "Then the fox said"
            out.write(f'{{"custom_id": "row-{row}", "prompt": "{prompt}"}}\n')
    return file.stat().st_size


def _process(argument: str) -> psutil.Process:
    for process in psutil.Process().children(recursive=True):
        if argument in process.cmdline():
            return process
    raise RuntimeError(f"no process of ours runs {argument}")


def _memory(client: Client, redis_url: str, rows: int) -> dict[str, Any]:
    """Bytes that Redis holds more after a batch than before it, for each of its rows."""
    texts = [f"Story {row}. {_SENTENCE}" for row in range(rows)]
    with redis.Redis.from_url(redis_url) as server:
        before = server.info("memory")["used_memory"]
        count = sum(
            result.error is None for result in client.bulk(texts, max_tokens=200, ignore_eos=True)
        )
        after = server.info("memory")["used_memory"]
    return {"bytes_per_row": round((after - before) / count), "bytes_rows": count}


def _interactive(client: Client, engine: Engine, beside: Engine, jobs: int) -> dict[str, Any]:
    """Jobs of 50 tokens while a batch fills every slot: decode steps until they are admitted, ms
    until they run, and their whole time over that of the same job as one row of a full batch in the
    engine alone. `beside` keeps slots for such jobs, as a worker's engine does."""
    asked: dict[str, Any] = {"max_tokens": 50, "seed": 1, "ignore_eos": True}
    prompt = "Once upon a time there was a little fox"
    own = list(_in_full_batch(engine, prompt, asked, jobs))
    steps = list(_steps_until_admitted(beside, prompt, asked, jobs))
    batch = client.batches.create_rows(
        [{"prompt": f"Number {i}: there was"} for i in range(3_000)],
        max_tokens=200,
        ignore_eos=True,
    )
    time.sleep(5)
    waits, took = [], []
    for _ in range(jobs):
        started = time.perf_counter()
        job = client.submit_body({"prompt": prompt, **asked}, wait=30)
        took.append((time.perf_counter() - started) * 1000)
        if not job.succeeded or job.started_at is None:
            raise RuntimeError(f"{job.id} is {job.status}")
        waits.append((job.started_at - job.created_at).total_seconds() * 1000)
    client.batches.cancel(batch.id)
    client.batches.wait(batch.id, timeout=60)
    return {
        "job_steps_until_admitted": statistics.median(steps),
        "job_wait_ms": round(statistics.median(waits), 1),
        "job_ms": round(statistics.median(took), 1),
        "row_of_full_batch_ms": round(statistics.median(own), 1),
        "job_over_row": round(statistics.median(took) / statistics.median(own), 3),
        "interactive_jobs": jobs,
    }


def _in_full_batch(
    engine: Engine, prompt: str, asked: dict[str, Any], times: int
) -> Iterator[float]:
    """ms of a sequence that joins 63 others, which go on."""
    long = SamplingParams(max_tokens=400, seed=2, ignore_eos=True)
    for _ in range(times):
        for row in range(63):
            engine.add(f"Number {row}: there was", long)
        for _ in range(20):
            engine.step()
        mine, started = engine.add(prompt, SamplingParams(**asked)), time.perf_counter()
        while not any(e.sequence == mine and e.completion for e in engine.step()):
            pass
        yield (time.perf_counter() - started) * 1000
        engine.reset()


def _steps_until_admitted(
    engine: Engine, prompt: str, asked: dict[str, Any], times: int
) -> Iterator[int]:
    """Of sequences that come one after the other while rows fill the engine and more wait."""
    long = SamplingParams(max_tokens=400, seed=2, ignore_eos=True)
    for _ in range(times):
        for row in range(128):
            engine.add(f"Number {row}: there was", long, priority=-1)
        for _ in range(20):
            engine.step()
        mine, steps = engine.add(prompt, SamplingParams(**asked)), 1
        while not any(event.sequence == mine for event in engine.step()):
            steps += 1
        yield steps
        engine.reset()


def _share(client: Client, stack: Stack) -> dict[str, Any]:
    """A batch of one key beside one of another that is ten times as large and came first."""
    small = [{"prompt": f"Number {i}: there was"} for i in range(300)]
    asked: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True}

    def seconds(other: Client) -> float:
        started = time.perf_counter()
        batch = other.batches.create_rows(small, **asked)
        other.batches.wait(batch.id, timeout=600)
        return time.perf_counter() - started

    key = client.keys.create("other")
    with Client(stack.url, key["token"]) as other:
        alone = [seconds(other) for _ in range(3)]
        large = client.batches.create_rows(small * 10, **asked)
        time.sleep(3)
        beside = seconds(other)
        client.batches.cancel(large.id)
        client.batches.wait(large.id, timeout=60)
    return {
        "small_batch_alone_s": round(statistics.median(alone), 2),
        "small_batch_beside_s": round(beside, 2),
        "share_ratio": round(beside / statistics.median(alone), 2),
    }


if __name__ == "__main__":
    typer.run(main)
