"""How fast one api process takes jobs, beside a plain FastAPI and Celery endpoint."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import load, request
from slm_client.redis_server import RedisServer, free_port

_BODY = json.dumps(
    {"prompt": "Once upon a time there was a little fox", "max_tokens": 100, "temperature": 0.9}
).encode()
_JSON = {"Content-Type": "application/json"}
_MANY = 10**9  # limits that are counted, and never reached


def submit_rate(*, pairs: int, seconds: float, connections: int) -> dict[str, Any]:
    """Submits per second, ours over plain, and their 99th percentiles: medians over pairs of rounds
    one after the other. Nothing works on the jobs."""
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisServer(Path(folder) / "redis", free_port())
        redis.start()
        env = {**os.environ, "SLM_REDIS_URL": redis.url}
        try:
            with (
                _server("api.app:app", env, "/healthz") as ours,
                _server("benchmarks.plain:app", env, "/nothing") as plain,
            ):
                headers = {**_JSON, "Authorization": f"Bearer {_key(Path(folder), env, ours)}"}
                targets = {
                    "ours": (ours, request("POST", "/jobs", headers, _BODY)),
                    "plain": (plain, request("POST", "/jobs", _JSON, _BODY)),
                    "generator": (plain, request("GET", "/nothing", {})),
                }
                return _compare(targets, pairs, seconds, connections)
        finally:
            redis.stop()


def _compare(
    targets: dict[str, tuple[int, bytes]], pairs: int, seconds: float, connections: int
) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in targets}
    for pair in range(pairs + 1):
        for name, (port, raw) in targets.items():
            told = load(port, raw, seconds=seconds, connections=connections)
            print(f"{pair or 'warm-up'}: {name}: {told}", flush=True)
            if pair:
                rounds[name].append(told)

    def middle(figure: str, name: str) -> float:
        return round(statistics.median(each[figure] for each in rounds[name]), 2)

    def ratio(figure: str) -> float:
        both = zip(rounds["ours"], rounds["plain"], strict=True)
        return round(statistics.median(a[figure] / b[figure] for a, b in both), 3)

    return {
        "submits_per_second": {name: middle("per_second", name) for name in targets},
        "submit_p99_ms": {name: middle("p99_ms", name) for name in targets},
        "submit_over_plain": ratio("per_second"),
        "submit_p99_over_plain": ratio("p99_ms"),
        "connections": connections,
        "pairs": pairs,
    }


@contextmanager
def _server(app: str, env: dict[str, str], path: str) -> Iterator[int]:
    """The port of an api process, which answers."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--no-access-log"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False)
                break
            except httpx.TransportError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"{app} does not start") from None
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(15)


def _key(folder: Path, env: dict[str, str], port: int) -> str:
    """Of a client with limits of every kind."""
    file = folder / "admin_key"
    command = [sys.executable, "-m", "slm_jobs.bootstrap_key", "--file", str(file)]
    subprocess.run(command, env=env, check=True)
    limits = ("requests_per_minute", "tokens_per_minute", "jobs_in_flight", "queued_tokens")
    made = httpx.post(
        f"http://127.0.0.1:{port}/admin/keys",
        json={"name": "benchmark", **dict.fromkeys(limits, _MANY)},
        headers={"Authorization": f"Bearer {file.read_text().strip()}"},
        trust_env=False,
    )
    token: str = made.raise_for_status().json()["token"]
    return token
