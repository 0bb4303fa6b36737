"""The whole service as real processes, each with a network of its own to Redis, and a keeper that
starts again at once what has died, as a supervisor does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import redis

from slm_client import Client
from slm_client.redis_server import RedisServer, free_port
from slm_jobs import keys
from tests.chaos.clock import SkewedClocks
from tests.chaos.network import Link, Network
from tests.e2e.service import until

ROOT = Path(__file__).parents[2]
MODEL = "tiny"
_REDIS_SECONDS = 10.0  # that an answer may take, longer than it is ever stopped
CALLBACK_SECONDS = 1.0  # that an attempt may take; 40 s later a dead process's claims lapse


class WholeRedis(RedisServer):
    """Its append-only file is never rewritten, so it tells all that ever happened."""

    def command(self) -> list[str]:
        return [*super().command(), "--auto-aof-rewrite-percentage", "0"]


@dataclass(frozen=True)
class Death:
    """Of a process, by our SIGKILL."""

    role: str
    pid: int
    at_ms: float


@dataclass
class Member:
    """A process of the service, and its successors."""

    name: str
    role: str  # worker, api or callbacks
    command: list[str]
    link: Link
    env: dict[str, str]
    log: Path
    wrong_clock: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    leaving: bool = False  # we have told it to
    busy: threading.Lock = field(default_factory=threading.Lock)  # while something is done to it

    def start(self) -> None:
        self.leaving = False
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.env, **self.wrong_clock, "SLM_REDIS_URL": self.link.url},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> int:
        """Its pid."""
        assert self.process
        self.leaving |= number in (signal.SIGKILL, signal.SIGTERM)
        self.process.send_signal(number)
        return self.process.pid


class Stack:
    """Use it as a context manager: entered, it serves."""

    def __init__(
        self, folder: Path, checkpoint: Path, network: Network, *, lease: float, **settings: str
    ) -> None:
        self.folder = folder
        self.redis_server = WholeRedis(folder / "redis", free_port())
        self.redis_busy = threading.Lock()
        self.clocks = SkewedClocks(folder)
        self.deaths: list[Death] = []
        self.surprises: list[str] = []  # ends of processes that nobody has asked for
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper")
        manifest = folder / "models.toml"
        manifest.write_text(f'[{MODEL}]\ncheckpoint = "{checkpoint}"\n')
        self.env = {
            "SLM_REDIS_URL": self.redis_server.url,
            "SLM_MODELS_FILE": str(manifest),
            "SLM_SLOTS": "16",
            "SLM_THREADS": "1",
            "SLM_LEASE_SECONDS": str(lease),
            "SLM_DRAIN_SECONDS": "0.5",
            "SLM_CALLBACK_SCHEDULE_SECONDS": ",".join(["0", "0.2", "0.5", *["1"] * 200]),
            "SLM_CALLBACK_TIMEOUT_SECONDS": str(CALLBACK_SECONDS),
            "PYTHONUNBUFFERED": "1",
            **settings,
        }
        self.members = [self._member(network, "api", i) for i in range(2)]
        self.members += [self._member(network, "worker", i) for i in range(3)]
        self.members += [self._member(network, "callbacks", i) for i in range(2)]
        self.urls = [f"http://127.0.0.1:{m.command[-1]}" for m in self.members if m.role == "api"]
        self.api_key = ""  # of an admin

    def _member(self, network: Network, role: str, number: int) -> Member:
        name = f"{role}-{number}"
        arguments = {
            "api": "-m uvicorn api.app:app --no-access-log --port",
            "worker": f"-m celery -A worker.app worker -n {name}@%h --without-gossip "
            "--without-mingle",
            "callbacks": "-m worker.callbacks",
        }[role].split()
        if role == "api":
            arguments.append(str(free_port()))
        link = network.link(self.redis_server.port)
        log = self.folder / f"{name}.log"
        return Member(name, role, [sys.executable, *arguments], link, self.env, log)

    def redis(self) -> redis.Redis:
        """A connection of one's own, past the networks."""
        return redis.Redis.from_url(
            self.redis_server.url, decode_responses=True, socket_timeout=_REDIS_SECONDS
        )

    def of(self, role: str) -> list[Member]:
        return [member for member in self.members if member.role == role]

    def kill(self, member: Member) -> None:
        """The keeper starts it again."""
        self.deaths.append(Death(member.role, member.signal(signal.SIGKILL), time.time() * 1000))

    def client(self, key: str, url: str, patience: float = 180.0) -> Client:
        return Client(url, key, timeout=10, retry_for=patience)

    def holds_work(self, member: Member) -> bool:
        """Whether a worker runs a job or a row. Not known, so false, while Redis is away."""
        assert member.process
        try:
            with self.redis() as store, store.pipeline(transaction=False) as pipe:
                for work in store.zrange(keys.LEASES, 0, -1):
                    name, _, row = work.partition(":")
                    if row:
                        pipe.hget(f"{keys.LEASED}{name}", row)
                    else:
                        pipe.hget(f"{keys.JOB}{name}", "worker")
                return any(f"-{member.process.pid}-" in (held or "") for held in pipe.execute())
        except redis.RedisError:
            return False

    def workers_alive(self) -> int:
        try:
            answer = httpx.get(f"{self.urls[0]}/readyz", trust_env=False, timeout=10)
        except httpx.TransportError:
            return 0
        return int(answer.json()["workers"]) if answer.is_success else 0

    def logs(self) -> Iterator[str]:
        """Every line that the processes wrote."""
        for member in self.members:
            with member.log.open(errors="replace") as lines:
                yield from lines

    def _keep(self) -> None:
        while not self._stopping.wait(0.05):
            for member in self.members:
                code = member.process.poll() if member.process else None
                if code is not None:
                    # SIGTERM ends a process that has only begun to start
                    if not member.leaving or code not in (0, -signal.SIGTERM, -signal.SIGKILL):
                        self.surprises.append(
                            f"{member.name} ended with {code}:\n{_end_of(member.log)}"
                        )
                        self._stopping.wait(0.5)  # it may be unable to start
                    member.start()

    def __enter__(self) -> Stack:
        try:
            self.redis_server.start()
            self.api_key = self._make_key()
            for member in self.members:
                member.start()
            self._keeper.start()
            until(lambda: self.workers_alive() == 3, "three workers are alive", 120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._keeper.ident:
            self._keeper.join()
        running = [member.process for member in self.members if member.process]
        for process in running:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.redis_server.stop()

    def _make_key(self) -> str:
        file = self.folder / "api_key"
        command = [sys.executable, "-m", "slm_jobs.bootstrap_key", "--file", str(file)]
        subprocess.run(command, env={**os.environ, **self.env}, cwd=ROOT, check=True)
        return file.read_text("utf-8").strip()


def _end_of(log: Path, lines: int = 12) -> str:
    with log.open(errors="replace") as text:
        return "".join(deque(text, lines))
