"""`python -m worker.callbacks` as people run it, and what it survives."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from slm_client.redis_server import RedisServer, free_port
from slm_jobs.callback_schemas import DeliveryStatus, DueDelivery, Outcome
from slm_jobs.errors import StoreUnavailable
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.worker.callback_receiver import Receiver, Request, receiving, status
from tests.worker.dying_callbacks import STEPS
from tests.worker.test_callback_courier import PATIENCE, Service, until
from worker.callbacks.courier import Courier
from worker.callbacks.delivery import Sender


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url, decode_responses=True) as real:
        real.flushall()
        yield real


@contextmanager
def process(
    log: Path, redis_url: str, *arguments: str, module: str = "worker.callbacks", **settings: object
) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "SLM_REDIS_URL": redis_url}
    env |= {f"SLM_CALLBACK_{name.upper()}": str(value) for name, value in settings.items()}
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], env=env, stdout=out, stderr=out
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def run_python(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **env}
    )


async def ended(child: subprocess.Popen[bytes]) -> int:
    await until(lambda: child.poll() is not None)
    assert child.returncode is not None
    return child.returncode


def test_it_needs_no_model_and_no_celery() -> None:
    names = ["torch", "numpy", "celery", "kombu", "slm_core", "api", "fastapi", "httpx"]
    code = f"import sys, worker.callbacks.__main__; print({{*{names}}} & {{*sys.modules}})"
    done = run_python("-c", code)
    assert done.stdout == "set()\n", done.stderr


def test_help_teaches() -> None:
    done = run_python("-m", "worker.callbacks", "--help")
    assert done.returncode == 0
    for word in ("signed by the Standard Webhooks", "SIGTERM", "SLM_REDIS_URL=redis://127.0.0.1"):
        assert word in done.stdout
    assert "SLM_CALLBACK_SCHEDULE_SECONDS=0,5,300," in done.stdout.replace(" ", "")


def test_a_wrong_setting_is_one_line() -> None:
    done = run_python("-m", "worker.callbacks", SLM_CALLBACK_CONCURRENCY="none")
    assert done.returncode == 1
    assert done.stderr.startswith("callbacks: SLM_CALLBACK_CONCURRENCY: ")
    assert done.stderr.count("\n") == 1


def test_it_delivers_waits_for_redis_and_stops(tmp_path: Path) -> None:
    server, log = RedisServer(tmp_path / "redis", free_port()), tmp_path / "log"

    async def run() -> None:
        async with receiving(status(200)) as receiver:
            with process(log, server.url) as child:
                await until(lambda: "no contact" in log.read_text())
                server.start()
                await until(lambda: "Redis is back" in log.read_text())
                with Redis.from_url(server.url, decode_responses=True) as redis:
                    service = Service(redis)
                    job_id = service.end_job(receiver.url)
                    await until(lambda: service.delivery(job_id).status == "delivered")
                server.kill()
                await until(lambda: log.read_text().count("no contact") == 2)
                server.start()
                await until(lambda: log.read_text().count("Redis is back") == 2)
                child.send_signal(signal.SIGTERM)
                assert await ended(child) == 0

    try:
        asyncio.run(run())
    finally:
        server.stop()
    lines = log.read_text().splitlines()
    assert "Redis cannot be looked at now" in lines[0]
    assert re.search(r"delivering callbacks, 256 at once, 8 to one host, 10 attempts", lines[1])
    assert [line.split(": ")[-1] for line in lines if "SIGTERM" in line] == [
        "stopping at SIGTERM; a second one ends at once"
    ]
    assert "Traceback" not in log.read_text()
    assert "hidden" not in log.read_text()


@pytest.mark.parametrize("twice", [False, True])
def test_sigterm_lets_attempts_end_unless_it_comes_twice(
    redis_server: RedisServer, redis: Redis, tmp_path: Path, twice: bool
) -> None:
    released = asyncio.Event()

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        await status(200)(request, writer)

    async def run() -> None:
        service, log = Service(redis), tmp_path / "log"
        async with receiving(answer) as receiver:
            job_id = service.end_job(receiver.url)
            with process(log, redis_server.url, timeout_seconds=3 * PATIENCE) as child:
                await until(lambda: receiver.requests)
                child.send_signal(signal.SIGTERM)
                await until(lambda: "stopping: 1 attempts may end" in log.read_text())
                later = service.end_job(receiver.url)
                if twice:
                    child.send_signal(signal.SIGTERM)
                    assert await ended(child) == 128 + signal.SIGTERM
                    assert service.delivery(job_id).attempts == []
                else:
                    released.set()
                    assert await ended(child) == 0
                    assert service.delivery(job_id).status is DeliveryStatus.DELIVERED
                assert service.delivery(later).attempts == []  # claimed no more

    asyncio.run(run())


async def deliver_the_rest(redis: Redis, done: Callable[[], bool]) -> None:
    """As another process does, after the lease of the one that died."""
    settings = Settings()
    later = JobStore(redis, clock_offset_ms=60_001)
    courier = Courier(later.callbacks, Sender(settings).attempt, settings)
    task = asyncio.create_task(courier.run())
    await until(done)
    courier.stop()
    await asyncio.wait_for(task, PATIENCE)


@pytest.mark.parametrize("step", [*STEPS, "while the receiver reads", "as it answers"])
def test_nothing_is_lost_wherever_it_dies(
    redis_server: RedisServer, redis: Redis, tmp_path: Path, step: str
) -> None:
    killed: list[subprocess.Popen[bytes]] = []

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if killed and step == "while the receiver reads":
            killed.pop().kill()
        await status(200)(request, writer)
        if killed and step == "as it answers":
            killed.pop().kill()

    async def run() -> None:
        service = Service(redis)
        async with receiving(answer) as receiver:
            jobs = [service.end_job(receiver.url) for _ in range(3)]
            dying = step in STEPS
            module = "tests.worker.dying_callbacks" if dying else "worker.callbacks"
            steps = [step] if dying else []
            with process(
                tmp_path / "log", redis_server.url, *steps, module=module, per_host=2
            ) as child:
                killed.append(child)
                assert await ended(child) == -signal.SIGKILL, (tmp_path / "log").read_text()

            def all_delivered() -> bool:
                return all(service.delivery(job).status == "delivered" for job in jobs)

            await deliver_the_rest(redis, all_delivered)
            came = {request.headers["webhook-id"] for request in receiver.requests}
            assert came == {f"{job}-succeeded" for job in jobs}
            assert all(service.delivery(job).attempts[-1].error is None for job in jobs)
            assert all(len(service.delivery(job).attempts) == 1 for job in jobs)

    asyncio.run(run())


class MortalRedis:
    """A store whose Redis is killed and started again at a step."""

    def __init__(self, server: RedisServer, store: JobStore, step: str) -> None:
        self._server = server
        self._store = store.callbacks
        self._step = step
        self._run = store.callbacks._run
        store.callbacks._run = self.run

    def run(self, script: str, *args: Any) -> Any:
        answer = self._run(script, *args)
        if script == "callback_claim" and answer[1] and self.die("as it answers a claim"):
            raise StoreUnavailable("it hung up")
        return answer

    def claim(self, *args: Any, **options: Any) -> tuple[list[DueDelivery], float]:
        self.die("before claim")
        found = self._store.claim(*args, **options)
        if found[0]:
            self.die("after claim")
        return found

    def settle(self, outcomes: list[Outcome]) -> list[bool]:
        self.die("before settle")
        settled = self._store.settle(outcomes)
        self.die("after settle")
        return settled

    def release(self, claimed: list[DueDelivery]) -> None:
        self._store.release(claimed)

    def die(self, step: str) -> bool:
        if step != self._step:
            return False
        self._step = ""
        self._wait_for_file()
        self._server.kill()
        self._server.start()
        return True

    def _wait_for_file(self) -> None:
        """While its disk is busy, Redis holds what it would write back for up to two seconds."""
        with Redis.from_url(self._server.url) as redis:
            while True:
                info = redis.info("persistence")
                if not (info["aof_buffer_length"] or info["aof_pending_bio_fsync"]):
                    return


@pytest.mark.parametrize(
    "step",
    [
        "before claim",
        "as it answers a claim",
        "after claim",
        "during the attempt",
        "before settle",
        "after settle",
    ],
)
def test_nothing_is_lost_when_redis_dies(tmp_path: Path, step: str) -> None:
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    settings = Settings(redis_url=server.url)
    store = JobStore.from_settings(settings)
    mortal = MortalRedis(server, store, step)

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.to_thread(mortal.die, "during the attempt")
        await status(200)(request, writer)

    async def run() -> None:
        with Redis.from_url(server.url, decode_responses=True) as redis:
            service = Service(redis)
            async with receiving(answer) as receiver:
                jobs = [service.end_job(receiver.url) for _ in range(3)]
                courier = Courier(mortal, Sender(settings).attempt, settings)  # type: ignore[arg-type]
                task = asyncio.create_task(courier.run())

                def all_delivered() -> bool:
                    with suppress(StoreUnavailable):
                        found = [store.callbacks.of(job)[0].status for job in jobs]
                        return found == [DeliveryStatus.DELIVERED] * 3
                    return False

                await until(all_delivered)
                courier.stop()
                await asyncio.wait_for(task, PATIENCE)
                came = {request.headers["webhook-id"] for request in receiver.requests}
                assert came == {f"{job}-succeeded" for job in jobs}

    try:
        asyncio.run(run())
    finally:
        store.close()
        server.stop()


def test_a_burst_reaches_its_receiver(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    async def run() -> None:
        service = Service(redis)

        async def delivered(receiver: Receiver) -> None:
            jobs = [service.end_job(receiver.url) for _ in range(100)]
            await until(
                lambda: (
                    {r.headers["webhook-id"] for r in receiver.requests}
                    == {f"{job}-succeeded" for job in jobs}
                )
            )

        async with receiving(status(200)) as receiver:
            with process(tmp_path / "log", redis_server.url):
                await delivered(receiver)

    asyncio.run(run())
