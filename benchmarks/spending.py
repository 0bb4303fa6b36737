"""What Redis spends apart from the work itself, on a thousand workers that it knows, how many bytes
it holds of each job and row, and what a request costs the api."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from redis import Redis

from benchmarks.crowd import crowd, worker_info
from benchmarks.fleet import MODEL, Fleet, Window
from benchmarks.load import load, request
from benchmarks.replay import PROMPT, TOKENS, spent
from slm_client import Client
from slm_jobs import keys
from slm_jobs.api_keys import KeyProof
from slm_jobs.schemas import JobSpec
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore

_WORKERS = 1_000
_LEASES = 64  # of a worker
_CALLS = 500
_IDLE_WORKERS, _IDLE_SECONDS = 4, 10.0
_PIECE = "hash-max-ziplist-value"  # bytes, of each value, up to which a hash is one piece
_JOBS, _WIDE_JOBS, _WIDE, _ROWS = 2_000, 500, 4, 4_000


def costs(fleet: Fleet) -> dict[str, Any]:
    """CPU time of Redis, in microseconds."""
    store = _store(fleet)
    workers = [worker_info(number) for number in range(_WORKERS)]
    for worker in workers:
        store.heartbeat(worker, [])
    for _ in range(_LEASES):
        store.create(JobSpec(model=MODEL, prompts=[PROMPT]))
    held = [work for _ in range(_LEASES) for work in store.claim_next(MODEL, worker=workers[0].id)]

    def each(call: Callable[[], Any], calls: int = _CALLS) -> float:
        before = spent(fleet.redis)
        for _ in range(calls):
            call()
        return round(1e6 * (spent(fleet.redis) - before) / calls, 1)

    def sweep() -> None:
        fleet.redis.delete(keys.JANITOR)
        store.sweep()

    alone = each(lambda: store.heartbeat(workers[0], []))
    found: dict[str, Any] = {
        "heartbeat_us": alone,
        "lease_us": round((each(lambda: store.heartbeat(workers[0], held)) - alone) / _LEASES, 2),
        "sweep_us": each(sweep, 100),
        "sweep_by_another_us": each(lambda: store.sweep()),
        "look_at_workers_us": each(lambda: store.workers(), 20),
        "queue_us": each(lambda: store.queues([MODEL]), 20),
        "known_workers": _WORKERS,
    }
    for work in held:
        store.hand_back([work])
    for worker in workers:
        store.forget_worker(worker.id)
    fleet.forget_waiting()
    store.close()
    found["crowd_core"] = crowd(fleet.redis_url, _WORKERS, 5.0)
    fleet.resize(_IDLE_WORKERS)
    time.sleep(3)
    idle = fleet.measure(_IDLE_SECONDS)
    seconds = _IDLE_WORKERS * idle.seconds
    found["idle_worker_us"] = round(1e6 * idle.cpu["redis"] / seconds, 1)
    found["idle_worker_calls"] = {
        name: round(calls / seconds, 2)
        for name, calls in idle.calls.most_common()
        if calls > 0.05 * seconds
    }
    found["idle_worker_bytes"] = round((idle.received + idle.sent) / seconds)
    found["idle_worker_core"] = round(idle.cpu["workers"] / seconds, 4)
    found["idle_worker_connections"] = round(idle.connections / _IDLE_WORKERS, 1)
    fleet.resize(0)
    return found


def memory(fleet: Fleet) -> dict[str, Any]:
    """Bytes of a job or row that waits, and of one that has ended with `TOKENS` tokens."""
    proof = KeyProof.of(fleet.make_key())
    fleet.step_seconds, seconds = 0.0005, fleet.step_seconds

    def jobs(count: int, n: int) -> None:
        store = _store(fleet)
        for number in range(count):
            prompt = f"Story {number}. {PROMPT}"
            spec = JobSpec(model=MODEL, prompts=[prompt], n=n, max_tokens=TOKENS, ignore_eos=True)
            store.create(spec, owner=proof, tokens=n * TOKENS + 20)
        store.close()

    def rows() -> None:
        content = "".join(
            json.dumps({"prompt": f"Story {number}. {PROMPT}"}) + "\n" for number in range(_ROWS)
        )
        with fleet.client() as client:
            batch = client.batches.create(content.encode(), max_tokens=TOKENS, ignore_eos=True)
        fleet.batch = batch.id

    pieces = fleet.redis.config_get(_PIECE)[_PIECE]
    found: dict[str, Any] = {"tokens": TOKENS, "prompt_characters": len(PROMPT) + 10}
    kinds: dict[str, tuple[int, Callable[[], None]]] = {
        "job": (_JOBS, lambda: jobs(_JOBS, 1)),
        "wide_job": (_WIDE_JOBS, lambda: jobs(_WIDE_JOBS, _WIDE)),
        "row": (_ROWS, rows),
        "loose_job": (_JOBS, lambda: jobs(_JOBS, 1)),
    }
    for name, (count, make) in kinds.items():
        if name == "loose_job":
            fleet.redis.config_set(_PIECE, 64)  # Redis's own default
        before = _used(fleet.redis)
        make()
        found[f"waiting_{name}"] = round((_used(fleet.redis) - before) / count)
        fleet.resize(1)
        fleet.run_dry()
        fleet.resize(0)
        found[f"ended_{name}"] = round((_used(fleet.redis) - before) / count)
    fleet.redis.config_set(_PIECE, pieces)
    found["wide"] = _WIDE
    fleet.batch, fleet.step_seconds = "", seconds
    return found


def api(fleet: Fleet, seconds: float) -> dict[str, Any]:
    """Requests that one core of an api process answers: by its own CPU time, as those who ask take
    the rest of the machine."""
    body = {"prompt": PROMPT, "max_tokens": TOKENS}
    token = fleet.make_key()  # which is left with jobs that nobody runs
    authorised = {"Authorization": f"Bearer {token}"}
    with Client(fleet.url, token) as client:
        job = client.submit_body(body)
    posted = {**authorised, "Content-Type": "application/json"}
    requests = {
        "post": request("POST", "/jobs", posted, json.dumps(body).encode()),
        "get": request("GET", f"/jobs/{job.id}", authorised),
    }
    found = {}
    for name, raw in requests.items():
        load(fleet.port, raw, seconds=1, connections=16)
        before = fleet.sample()
        told = load(fleet.port, raw, seconds=seconds, connections=16)
        window = Window.between(before, fleet.sample())
        found[name] = {
            "per_second": told["per_second"],
            "per_core": round(told["requests"] / window.cpu["api"], 1),
            "api_share": round(window.shares["api"], 3),
            "redis_us": round(1e6 * window.cpu["redis"] / told["requests"], 1),
            "p50_ms": told["p50_ms"],
        }
    fleet.forget_waiting()
    return found


def _used(redis: Redis) -> int:
    """What keys take: without the buffers of clients and of the file."""
    while True:
        time.sleep(0.5)  # connections that were closed are freed
        info = redis.info()
        if not (info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]):
            return int(info["used_memory"] - info["mem_clients_normal"] - info["mem_aof_buffer"])


def _store(fleet: Fleet) -> JobStore:
    return JobStore.from_settings(Settings(redis_url=fleet.redis_url))
