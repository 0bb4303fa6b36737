"""A whole service as real processes on free ports, for tests that kill parts of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from slm_client import Client
from slm_client.redis_server import RedisServer, free_port

LEASE_SECONDS = 2.0
SLOTS = 16


def until(condition: Callable[[], object], what: str, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.02)


class Service:
    """Redis, an api or several, any number of workers and callback processes; `folder` gets their
    logs and data."""

    def __init__(self, folder: Path, manifest: Path) -> None:
        self.folder = folder
        self.redis = RedisServer(folder / "redis", free_port())
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api_key = ""  # of an admin, once started
        self.client = Client(self.url)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.env = {
            **os.environ,
            "SLM_REDIS_URL": self.redis.url,
            "SLM_MODELS_FILE": str(manifest),
            "SLM_SLOTS": str(SLOTS),
            "SLM_THREADS": "1",
            "SLM_LEASE_SECONDS": str(LEASE_SECONDS),
            "SLM_DRAIN_SECONDS": "0.3",
        }

    def start(self, workers: int = 2) -> None:
        self.redis.start()
        self.api_key = self._make_key()
        self.client.close()
        self.client = Client(self.url, self.api_key)
        self._run_api("api", self.port)
        for _ in range(workers):
            self.start_worker()
        until(self.healthy, "the api answers")
        self.wait_for_workers(workers)

    def start_api(self) -> str:
        """The address of one more api, which answers."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self._run_api(f"api-{len(self._processes)}", port)
        until(lambda: self.healthy(url), "another api answers")
        return url

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def start_worker(self) -> subprocess.Popen[bytes]:
        name = f"worker-{len(self._processes)}"
        worker = self._run(
            name,
            f"-m celery -A worker.app worker -n {name}@%h --without-gossip --without-mingle",
        )
        self.workers.append(worker)
        return worker

    def start_callbacks(self) -> subprocess.Popen[bytes]:
        return self._run(f"callbacks-{len(self._processes)}", "-m worker.callbacks")

    def kill_worker(self, worker: subprocess.Popen[bytes]) -> None:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        self.workers.remove(worker)

    def running_rows(self) -> int:
        return sum(int(entry["rows_running"]) for entry in self.client.queue())

    def wait_for_workers(self, count: int) -> None:
        until(lambda: self.alive_workers() == count, f"{count} workers are alive")

    def alive_workers(self) -> int:
        answer = httpx.get(f"{self.url}/readyz", trust_env=False, timeout=10)
        return int(answer.json()["workers"]) if answer.is_success else 0

    def healthy(self, url: str = "") -> bool:
        try:
            return httpx.get(f"{url or self.url}/healthz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self.client.close()
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.redis.stop()

    def _make_key(self) -> str:
        file = self.folder / "api_key"
        command = [sys.executable, "-m", "slm_jobs.bootstrap_key", "--file", str(file)]
        subprocess.run(command, env=self.env, check=True)
        return file.read_text("utf-8").strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        print(self.logs())  # noqa: T201  shown by pytest when something failed

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def _run_api(self, name: str, port: int) -> None:
        self._run(name, f"-m uvicorn api.app:app --port {port} --no-access-log")

    def _run(self, name: str, arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments.split()],
                env=self.env,
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process
