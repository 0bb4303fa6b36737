"""A Redis with a replica, and Sentinels that watch over both: real processes, behind passwords."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from redis import Redis, RedisError
from redis.sentinel import Sentinel

from slm_client.redis_server import RedisServer, find_redis_server, free_port

NAME = "stories"
USER, PASSWORD, SENTINEL_PASSWORD = "slm", "p@ss/word", "s3ntinel&"
_ACL = (
    f"--user {USER} on >{PASSWORD} ~* &* +@all --user default on nopass -@all +ping"
    f" --masteruser {USER} --masterauth {PASSWORD}"
)
_DOWN_AFTER_MS = 1_000
_SENTINEL = """
port {port}
dir {folder}
requirepass {sentinel_password}
sentinel sentinel-pass {sentinel_password}
sentinel monitor {name} 127.0.0.1 {primary} {quorum}
sentinel auth-user {name} {user}
sentinel auth-pass {name} {password}
sentinel down-after-milliseconds {name} {down_after}
sentinel failover-timeout {name} 4000
"""


class _Node(RedisServer):
    """Anybody may PING it; `slm` may do everything."""

    def __init__(self, directory: Path, replica_of: int | None = None) -> None:
        super().__init__(directory, free_port())
        self.replica_of = replica_of

    def command(self) -> list[str]:
        command = [*super().command(), *_ACL.split()]
        if self.replica_of:
            command += ["--replicaof", "127.0.0.1", str(self.replica_of)]
        return command

    @contextmanager
    def client(self) -> Iterator[Redis]:
        with Redis(
            port=self.port, username=USER, password=PASSWORD, decode_responses=True
        ) as client:
            yield client


class ReplicatedRedis:
    """Start it, use `url`, end or hang the `primary`."""

    def __init__(self, folder: Path, sentinels: int = 3) -> None:
        self.folder = folder
        self.primary = _Node(folder / "a")
        self.replica = _Node(folder / "b", replica_of=self.primary.port)
        self.ports = [free_port() for _ in range(sentinels)]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return (
            f"redis+sentinel://{USER}:p%40ss%2Fword@{hosts}/{NAME}/0?sentinel_password=s3ntinel%26"
        )

    def start(self) -> None:
        self.primary.start()
        self.replica.start()
        for port in self.ports:
            self._processes.append(self._start_sentinel(port))
        _until(self._settled, "every Sentinel knows the others and the replica")

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.primary.kill()  # it may hang
        self.replica.kill()

    def wait_for_replica(self) -> None:
        """Returns when all that was written is on both."""
        with self.primary.client() as client:
            offset = client.info("replication")["master_repl_offset"]

        def has_all() -> bool:
            with self.replica.client() as client:
                state: dict[str, Any] = client.info("replication")
            return state["master_link_status"] == "up" and state["slave_repl_offset"] >= offset

        _until(has_all, "the replica has everything")

    def promoted(self) -> bool:
        """Whether the replica has become the primary."""
        with self.replica.client() as client:
            return bool(client.info("replication")["role"] == "master")

    def _settled(self) -> bool:
        others = len(self.ports) - 1
        manager = Sentinel(
            [("127.0.0.1", port) for port in self.ports],
            sentinel_kwargs={"password": SENTINEL_PASSWORD, "decode_responses": True},
        )
        with manager, ExitStack() as stack:
            for sentinel in manager.sentinels:
                stack.enter_context(sentinel)
                state = sentinel.sentinel_master(NAME)
                if (state["num-slaves"], state["num-other-sentinels"]) != (1, others):
                    return False
        with self.replica.client() as client:
            return bool(client.info("replication")["master_link_status"] == "up")

    def _start_sentinel(self, port: int) -> subprocess.Popen[bytes]:
        folder = self.folder / f"sentinel-{port}"
        folder.mkdir()
        file = folder / "sentinel.conf"
        file.write_text(
            _SENTINEL.format(
                port=port,
                folder=folder,
                name=NAME,
                primary=self.primary.port,
                quorum=len(self.ports) // 2 + 1,
                user=USER,
                password=PASSWORD,
                sentinel_password=SENTINEL_PASSWORD,
                down_after=_DOWN_AFTER_MS,
            )
        )
        with (folder / "log").open("wb") as log:
            return subprocess.Popen(
                [find_redis_server(), str(file), "--sentinel"],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )


def _until(condition: Any, what: str, timeout: float = 60.0) -> None:
    """A Sentinel that was stalled rests for 30 s."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            if condition():
                return
        except RedisError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.05)
