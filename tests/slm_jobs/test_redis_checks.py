"""What is said about an unsafe Redis at the start of each process."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from slm_client.redis_server import RedisServer, free_port
from slm_jobs import redis_checks
from slm_jobs.errors import SettingsError
from slm_jobs.redis_checks import check_redis
from slm_jobs.settings import Settings
from tests.slm_jobs.replicated_redis import ReplicatedRedis

ADVICE = {
    "maxmemory-policy": "set its maxmemory-policy to noeviction (it is allkeys-lru)",
    "persistence": "set its appendonly to yes",
    "maxmemory": "set its maxmemory, and",
}


class CarelessRedis(RedisServer):
    """As many a Redis is set up for a cache."""

    def __init__(self, directory: Path, more: str = "") -> None:
        port = free_port()
        while port > 55_535:  # a cluster takes the port 10,000 above, too
            port = free_port()
        super().__init__(directory, port)
        self.more = more

    def command(self) -> list[str]:
        careless = "--maxmemory 0 --maxmemory-policy allkeys-lru --appendonly no --save "
        return [*super().command(), *careless.split(" "), *self.more.split()]


@pytest.fixture
def careless(tmp_path: Path) -> Iterator[CarelessRedis]:
    server = CarelessRedis(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


def said(caplog: pytest.LogCaptureFixture, url: str, timeout: float = 10) -> list[tuple[int, str]]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        check_redis(Settings(redis_url=url, redis_timeout_seconds=timeout))
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_a_safe_redis_is_not_talked_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    try:
        assert said(caplog, server.url) == []
    finally:
        server.kill()


def test_what_is_unsafe_is_said_with_what_to_do(
    careless: CarelessRedis, caplog: pytest.LogCaptureFixture
) -> None:
    lines = said(caplog, careless.url)
    assert [level for level, _ in lines] == [logging.WARNING, logging.WARNING, logging.INFO]
    for (_, line), advice in zip(lines, ADVICE.values(), strict=True):
        assert advice in line
        assert "\n" not in line


def test_snapshots_are_persistence(
    careless: CarelessRedis, caplog: pytest.LogCaptureFixture
) -> None:
    with Redis(port=careless.port) as redis:
        redis.config_set("save", "3600 1")
    assert ADVICE["persistence"] not in str(said(caplog, careless.url))


@pytest.mark.parametrize(
    ("forbidden", "seen"),
    [("-config", {"maxmemory-policy", "maxmemory"}), ("-config -info", set())],
)
def test_what_cannot_be_seen_is_not_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, forbidden: str, seen: set[str]
) -> None:
    acl = f"--user managed on >secret ~* &* +@all {forbidden}"
    server = CarelessRedis(tmp_path / "redis", acl)
    server.start()
    try:
        lines = str(said(caplog, server.url.replace("//", "//managed:secret@")))
    finally:
        server.kill()
    assert {name for name, advice in ADVICE.items() if advice in lines} == seen
    assert lines.count("Redis") == len(seen)


def test_an_old_redis(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    infos = {"redis_version": "6.0.16"}, {"redis_version": 7.0}, {"redis_version": "10.1"}
    found = []
    for info in infos:
        monkeypatch.setattr(redis_checks, "_ask", lambda _, info=info: (info, {}))
        found.append(said(caplog, "redis://"))
    assert found == [
        [(logging.WARNING, "Redis 6.0.16 is too old: take 6.2 or newer")],
        [],
        [],
    ]


def test_a_sentinel_where_redis_should_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    redis = ReplicatedRedis(tmp_path, sentinels=1)
    redis.start()
    try:
        [(level, line)] = said(caplog, f"redis://:s3ntinel%26@127.0.0.1:{redis.ports[0]}")
        assert level == logging.WARNING
        assert "redis+sentinel://" in line
        assert said(caplog, redis.url) == []
    finally:
        redis.stop()


def test_redis_away_delays_the_start_by_the_timeout_only(
    careless: CarelessRedis, caplog: pytest.LogCaptureFixture
) -> None:
    assert careless.process
    careless.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    said(caplog, careless.url, timeout=0.5)
    assert time.monotonic() - started < 3
    careless.kill()
    for thread in threading.enumerate():
        if thread.name == "redis-checks":
            thread.join()
    [(level, line)] = said(caplog, careless.url)
    assert level == logging.WARNING
    assert "Connection refused" in line


START = {
    "api": "-m uvicorn api.app:app --port 0",
    "worker": "-m celery -A worker.app worker",
    "callbacks": "-m worker.callbacks",
}


@pytest.mark.parametrize("name", START)
def test_every_process_refuses_a_cluster_with_one_line(
    tmp_path: Path, checkpoint: Path, name: str
) -> None:
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'[tiny]\ncheckpoint = "{checkpoint}"\n')
    server = CarelessRedis(tmp_path / "redis", "--cluster-enabled yes")
    server.start()
    try:
        with pytest.raises(SettingsError, match="Redis Cluster is not supported"):
            check_redis(Settings(redis_url=server.url))
        done = subprocess.run(
            [sys.executable, *START[name].split()],
            env={
                **os.environ,
                "SLM_REDIS_URL": server.url,
                "SLM_MODELS_FILE": str(manifest),
                "SLM_REDIS_TIMEOUT_SECONDS": "20",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        server.kill()
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"{name}: SLM_REDIS_URL: Redis Cluster is not supported, one primary or Sentinel is"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", START)
def test_every_process_says_it(
    careless: CarelessRedis, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'[tiny]\ncheckpoint = "{checkpoint}"\n')
    env = {**os.environ, "SLM_REDIS_URL": careless.url, "SLM_MODELS_FILE": str(manifest)}
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *START[name].split()], env=env, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 60
        while ADVICE["maxmemory"] not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    for advice in ADVICE.values():
        [line] = [line for line in log.read_text().splitlines() if advice in line]
        assert "slm_jobs.redis_checks: " in line
