"""The service as real processes, with as many workers on simulated devices as one likes, and what
each process, and Redis, has spent.

Redis and api run as in the container files; the workers are those of `benchmarks.device`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import redis

from benchmarks.device import Told, step_board, told_board
from slm_client import Client
from slm_client.redis_server import RedisServer, free_port
from slm_jobs import keys

MODEL = "simulated"
_MANY = 10**9
_API = ("--no-access-log", "--http", "h11", "--limit-concurrency", "4096")
_SHIPPED = Path(__file__).parents[1] / "slm_core" / "checkpoints" / "tinystories"
_PATIENCE_SECONDS = 90.0


@dataclass(frozen=True)
class Sample:
    """What has been spent, and done, since the processes started. Times are CPU seconds."""

    at: float
    devices: dict[int, Told]
    cpu: dict[str, float]  # by role: redis, api, workers
    calls: Counter[str]  # commands of Redis, those of scripts too
    scripts: int
    received: int  # bytes, by Redis
    sent: int
    ended: int  # jobs
    rows: int  # of the batch, that succeeded
    connections: int


@dataclass(frozen=True)
class Window:
    """What was spent, and done, between two samples."""

    seconds: float
    tokens_per_second: float  # of all devices, from step to step
    jobs: int
    rows: int
    cpu: dict[str, float]  # seconds, by role
    calls: Counter[str]
    scripts: int
    received: int
    sent: int
    connections: int

    @classmethod
    def between(cls, before: Sample, after: Sample) -> Window:
        rate = 0.0
        for pid, told in after.devices.items():
            since = before.devices.get(pid)
            if since and told.at > since.at:
                rate += (told.tokens - since.tokens) / (told.at - since.at)
        return cls(
            seconds=after.at - before.at,
            tokens_per_second=rate,
            jobs=after.ended - before.ended,
            rows=after.rows - before.rows,
            cpu={role: after.cpu[role] - before.cpu[role] for role in after.cpu},
            calls=after.calls - before.calls,
            scripts=after.scripts - before.scripts,
            received=after.received - before.received,
            sent=after.sent - before.sent,
            connections=after.connections,
        )

    @property
    def shares(self) -> dict[str, float]:
        """Of a core, by role."""
        return {role: seconds / self.seconds for role, seconds in self.cpu.items()}


class Fleet:
    """Use it as a context manager: entered, Redis and api run, and no worker."""

    def __init__(self, folder: Path, *, slots: int, step_seconds: float) -> None:
        self.url = ""
        self.token = ""
        self.batch = ""  # whose rows count
        self._folder = folder
        self._slots = slots
        self._step = step_board(folder)
        self.step_seconds = step_seconds
        self._redis_server = RedisServer(folder / "redis", free_port())
        self._api: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []
        self._started = 0
        self._exits = ExitStack()
        manifest = folder / "models.toml"
        manifest.write_text(f'[{MODEL}]\ncheckpoint = "{_SHIPPED}"\n')
        self.env = {
            "SLM_REDIS_URL": self._redis_server.url,
            "SLM_MODELS_FILE": str(manifest),
            "SLM_SLOTS": str(slots),
            "SLM_THREADS": "1",
            "SLM_KERNELS": "none",
            "SLM_DRAIN_SECONDS": "0",
            "SIMULATED_DEVICE": str(folder),
        }

    @property
    def step_seconds(self) -> float:
        return self._step.read()[0]

    @step_seconds.setter
    def step_seconds(self, seconds: float) -> None:
        self._step.write([seconds])

    @property
    def redis_url(self) -> str:
        return self._redis_server.url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def workers(self) -> int:
        return len(self._workers)

    def client(self) -> Client:
        return Client(self.url, self.token)

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            self._redis_server.start()
            exits.callback(self._redis_server.stop)
            self.redis = exits.enter_context(
                redis.Redis.from_url(self.redis_url, decode_responses=True)
            )
            port = free_port()
            self.url = f"http://127.0.0.1:{port}"
            self._api = self._start("uvicorn", "api.app:app", "--port", str(port), *_API)
            exits.callback(_end, [self._api])
            exits.callback(self._end_workers)
            self._admin = exits.enter_context(Client(self.url, self._admin_key()))
            self._until(lambda: _answers(self._admin), "the api answers")
            self.token = self.make_key()
            self._exits = exits.pop_all()
        return self

    def make_key(self) -> str:
        """A token with limits of every kind, which are never reached."""
        key = self._admin.keys.create(
            "scale",
            requests_per_minute=_MANY,
            tokens_per_minute=_MANY,
            jobs_in_flight=_MANY,
            queued_tokens=_MANY,
            batch_rows=_MANY,
            batch_tokens=_MANY,
        )
        return str(key["token"])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exits.close()

    def resize(self, count: int) -> None:
        """Starts or stops workers; returns when `count` of them are alive."""
        leaving = self._workers[count:]
        del self._workers[count:]
        _end(leaving)
        while len(self._workers) < count:
            self._started += 1
            name = f"simulated-{self._started}@%h"
            arguments = f"-A benchmarks.device worker -n {name} --without-gossip --without-mingle"
            self._workers.append(self._start("celery", *arguments.split()))
        self._until(lambda: self._alive() == count, f"{count} workers are alive")

    def sample(self) -> Sample:
        stats = self.redis.info("commandstats")
        calls = Counter(
            {name.removeprefix("cmdstat_"): told["calls"] for name, told in stats.items()}
        )
        info = self.redis.info()
        batch = self.redis.hget(keys.BATCH + self.batch, "succeeded") if self.batch else 0
        return Sample(
            at=time.monotonic(),
            devices={
                worker.pid: Told(*told_board(self._folder, worker.pid).read())
                for worker in self._workers
            },
            cpu={
                "redis": info["used_cpu_user"] + info["used_cpu_sys"],
                "api": _cpu(self._api),
                "workers": sum(map(_cpu, self._workers)),
            },
            calls=calls,
            scripts=calls["evalsha"],
            received=info["total_net_input_bytes"],
            sent=info["total_net_output_bytes"],
            ended=self.redis.zcard(keys.ENDED),
            rows=int(batch or 0),
            connections=info["connected_clients"],
        )

    def measure(self, seconds: float) -> Window:
        before = self.sample()
        time.sleep(seconds)
        return Window.between(before, self.sample())

    def run_dry(self) -> None:
        """Lets all jobs and rows that wait or run end, on devices in a hurry."""
        seconds, self.step_seconds = self.step_seconds, 0.0005
        self._until(lambda: not self._busy(), "every job has ended")
        self.step_seconds = seconds

    def forget_waiting(self) -> None:
        """Jobs that nobody has begun stay in line no longer; their records stay."""
        self.redis.delete(*self.redis.keys(f"slm:*:{MODEL}"))
        self.redis.hdel(keys.QUEUED_TOKENS, MODEL)

    def _busy(self) -> bool:
        counts = (keys.RUNNING, keys.ROWS_WAITING, keys.ROWS_RUNNING)
        found = [int(self.redis.hget(name, MODEL) or 0) for name in counts]
        return bool(sum(found) or self.redis.zcard(keys.waiting(MODEL)))

    def _alive(self) -> int:
        pids = [f"-{worker.pid}-" for worker in self._workers]
        known = self.redis.zrange(keys.WORKERS, 0, -1)
        if len(known) != len(pids):
            return -1
        return sum(any(pid in worker for worker in known) for pid in pids)

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _admin_key(self) -> str:
        file = self._folder / "api_key"
        command = [sys.executable, "-m", "slm_jobs.bootstrap_key", "--file", str(file)]
        subprocess.run(command, env={**os.environ, **self.env}, check=True)
        return file.read_text("utf-8").strip()

    def _end_workers(self) -> None:
        _end(self._workers)

    def _until(self, done: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + _PATIENCE_SECONDS
        while not done():
            if time.monotonic() > until:
                log = (self._folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"not within {_PATIENCE_SECONDS:g} s: {what}\n{log}")
            time.sleep(0.05)


def _answers(client: Client) -> bool:
    try:
        client.models()
    except Exception:
        return False
    return True


def _cpu(process: subprocess.Popen[bytes] | None) -> float:
    """Seconds of all its threads."""
    if process is None:
        return 0.0
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
