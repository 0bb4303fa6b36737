"""Many deliveries at once: what is claimed, when, and that every outcome is written."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import fakeredis
import pytest
from redis import Redis

from slm_client.redis_server import RedisServer
from slm_jobs import keys
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.callback_schemas import (
    JOB_ENDS,
    Attempt,
    CallbackTarget,
    DeliveryStatus,
    DueDelivery,
    Outcome,
)
from slm_jobs.callbacks import CallbackStore
from slm_jobs.errors import StoreUnavailable
from slm_jobs.events import DueEvents
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import claim, complete, spec
from tests.worker.callback_receiver import (
    Answer,
    Receiver,
    Request,
    due_delivery,
    hangs,
    receiving,
    sequence,
    status,
)
from worker.callbacks import courier as couriers
from worker.callbacks.breakers import FAILURES
from worker.callbacks.courier import Courier
from worker.callbacks.delivery import Sender

PATIENCE = 20.0  # seconds, for what happens at once on an idle machine


class FakeStore:
    """A queue of deliveries; the calls that were made of it."""

    def __init__(self, *lanes: str) -> None:
        self.due = [
            due_delivery("http://receiver/", id=f"job_{i}-succeeded", lane=lane)
            for i, lane in enumerate(lanes)
        ]
        self.away = False
        self.claims: list[tuple[int, dict[str, int]]] = []
        self.settled: list[Outcome] = []
        self.settles = 0
        self.released: list[DueDelivery] = []
        self.lease_seconds, self.per_host = 0.0, 0
        self.lock = threading.Lock()

    def claim(
        self,
        room: int,
        *,
        per_lane: int,
        per_host: int,
        running: Mapping[str, int],
        limits: Mapping[str, int],
        lease_seconds: float,
    ) -> tuple[list[DueDelivery], float]:
        self.lease_seconds, self.per_host = lease_seconds, per_host
        self.look()
        with self.lock:
            self.claims.append((room, dict(limits)))
            found: list[DueDelivery] = []
            held = dict(running)
            for each in list(self.due):
                most = limits.get(each.lane, per_lane)
                if len(found) < room and held.get(each.lane, 0) < most:
                    held[each.lane] = held.get(each.lane, 0) + 1
                    self.due.remove(each)
                    found.append(each)
        return found, 60.0

    def release(self, claimed: Sequence[DueDelivery]) -> None:
        self.look()
        self.released += claimed

    def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        self.look()
        with self.lock:
            self.settles += 1
            self.settled += outcomes
        return [True] * len(outcomes)

    def look(self) -> None:
        if self.away:
            raise StoreUnavailable("it is away")


def outcome(due: DueDelivery, error: str | None = None) -> Outcome:
    made = Attempt(at=datetime.now(UTC), duration_ms=1, status=None if error else 200, error=error)
    return Outcome(due.id, due.claim, made, 5.0 if error else None, not error)


async def delivers(due: DueDelivery) -> Outcome:
    return outcome(due)


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not check():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(courier: Courier) -> Any:
    task = asyncio.create_task(courier.run())
    try:
        yield task
    finally:
        courier.stop()
        await asyncio.wait_for(task, PATIENCE)


def courier(
    store: FakeStore,
    attempt: Callable[[DueDelivery], Awaitable[Outcome]] = delivers,
    **settings: Any,
) -> Courier:
    chosen = Settings(**{f"callback_{name}": value for name, value in settings.items()})
    return Courier(cast("CallbackStore", store), attempt, chosen)


def go(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_all_is_delivered_and_settled_together() -> None:
    async def run() -> None:
        store = FakeStore(*(f"k host{i}:443" for i in range(500)))
        async with running(courier(store, concurrency=64)):
            await until(lambda: len(store.settled) == 500)
        assert {each.delivery_id for each in store.settled} == {
            f"job_{i}-succeeded" for i in range(500)
        }
        assert store.settles < 250
        assert max(room for room, _ in store.claims) == 64
        assert store.lease_seconds == 60
        assert store.per_host == 8  # an eighth of all, or what a lane may have

    go(run())


def test_room_and_lanes() -> None:
    async def run() -> None:
        store = FakeStore(*["k a:443"] * 10, *["k b:443"] * 2)
        free, started = asyncio.Event(), []

        async def attempt(due: DueDelivery) -> Outcome:
            started.append(due.lane)
            await free.wait()
            return outcome(due)

        async with running(courier(store, attempt, concurrency=6, per_host=4)) as task:
            await until(lambda: len(started) == 6)
            assert sorted(started) == ["k a:443"] * 4 + ["k b:443"] * 2
            free.set()
            await until(lambda: len(store.settled) == 12)
            assert not task.done()
        assert (6, {}) in store.claims

    go(run())


def test_a_lane_that_nobody_answers_in_is_left_alone() -> None:
    async def run() -> None:
        store = FakeStore(*["k dead:443"] * 40)

        async def attempt(due: DueDelivery) -> Outcome:
            return outcome(due, "timeout" if "dead" in due.lane else None)

        tested = courier(store, attempt, per_host=1)
        async with running(tested):
            await until(lambda: len(store.settled) == FAILURES)
            store.due += [due_delivery("", id=f"job_{i}-failed", lane="k b:443") for i in range(9)]
            tested.wake()
            await until(lambda: len(store.settled) == FAILURES + 9)
        assert store.claims[-1][1] == {"k dead:443": 0}
        assert len(store.due) == 40 - FAILURES

    go(run())


@pytest.mark.parametrize("error", ["http_504", "connection_lost", None])
def test_who_fails_late_is_left_alone_like_one_that_hangs(error: str | None) -> None:
    """A receiver that takes its time is not, as long as it takes what comes."""

    async def run() -> None:
        store = FakeStore(*["k slow:443"] * 40)

        async def attempt(due: DueDelivery) -> Outcome:
            made = outcome(due, error)
            late = made.attempt.model_copy(update={"duration_ms": 10_001})
            return made._replace(attempt=late)

        async with running(courier(store, attempt, per_host=1)):
            if error is None:
                await until(lambda: len(store.settled) == 40)
            else:
                await until(lambda: store.claims and store.claims[-1][1] == {"k slow:443": 0})
                assert len(store.settled) >= FAILURES
                assert len(store.due) > 20

    go(run())


def test_answers_of_any_kind_keep_a_lane_open() -> None:
    async def run() -> None:
        store = FakeStore(*["k a:443"] * 40)
        errors = iter(["http_500", "address_refused", "connection_lost", "timeout"] * 10)

        async def attempt(due: DueDelivery) -> Outcome:
            return outcome(due, next(errors))

        async with running(courier(store, attempt)):
            await until(lambda: len(store.settled) == 40)

    go(run())


def test_redis_away_while_outcomes_wait(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "worker.callbacks.courier")

    async def run() -> None:
        store = FakeStore(*["k a:443"] * 3)
        free, begun = asyncio.Event(), []

        async def attempt(due: DueDelivery) -> Outcome:
            begun.append(due)
            await free.wait()
            return outcome(due)

        tested = courier(store, attempt)
        async with running(tested):
            await until(lambda: len(begun) == 3)
            store.away = True
            free.set()
            await until(lambda: "no contact" in caplog.text)
            await until(lambda: len(tested._ended) == 3)
            store.away = False
            await until(lambda: len(store.settled) == 3)
            await until(lambda: "Redis is back" in caplog.text)

    go(run())
    lines = [record.getMessage() for record in caplog.records]
    assert sum("no contact" in line for line in lines) == 1
    assert sum("is back" in line for line in lines) == 1


def test_outcomes_are_kept_as_long_as_their_lease(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(couriers, "SETTLE_SECONDS", 0.3)

    async def run() -> None:
        store = FakeStore("k a:443")

        async def attempt(due: DueDelivery) -> Outcome:
            store.away = True
            return outcome(due)

        tested = courier(store, attempt, timeout_seconds=0.1)
        async with running(tested):
            await until(lambda: "will deliver again: ['job_0-succeeded']" in caplog.text)
            assert tested._ended == []
            store.away = False
        assert store.settled == []

    go(run())


def test_a_mistake_of_the_store_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        store = FakeStore("k a:443")
        settle = store.settle
        broken = True

        def settles(outcomes: Sequence[Outcome]) -> list[bool]:
            if broken:
                raise ValueError("a bug")
            return settle(outcomes)

        cast(Any, store).settle = settles
        tested = courier(store)
        async with running(tested):
            await until(lambda: "a bug" in caplog.text)
            broken = False
            store.due.append(due_delivery("", id="job_9-failed"))
            tested.wake()
            await until(lambda: [each.delivery_id for each in store.settled] == ["job_9-failed"])

    go(run())


def test_stopping_lets_attempts_end_and_claims_no_more() -> None:
    async def run() -> None:
        store = FakeStore(*["k a:443"] * 5)
        free, begun = asyncio.Event(), []

        async def attempt(due: DueDelivery) -> Outcome:
            begun.append(due)
            await free.wait()
            return outcome(due)

        tested = courier(store, attempt, concurrency=2)
        task = asyncio.create_task(tested.run())
        await until(lambda: len(begun) == 2)
        tested.stop()
        await asyncio.sleep(0)
        assert not task.done()
        free.set()
        await asyncio.wait_for(task, PATIENCE)
        assert (len(store.settled), len(store.due)) == (2, 3)

    go(run())


def test_stopping_ends_what_hangs(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        store = FakeStore("k a:443", "k b:443")

        async def attempt(due: DueDelivery) -> Outcome:
            if due.lane == "k a:443":
                await asyncio.Event().wait()
            return outcome(due)

        tested = courier(store, attempt, timeout_seconds=0.2)
        async with running(tested):
            await until(lambda: len(store.settled) == 1)

    go(run())
    assert "1 attempts have no outcome in Redis" in caplog.text


def test_log_lines_tell_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def run() -> None:
        async with receiving(sequence(status(200), status(500))) as receiver:
            sender = Sender(Settings(callback_schedule_seconds=(0.0,)))
            store = FakeStore()
            store.due = [due_delivery(receiver.url, lane="k 127.0.0.1:80") for _ in range(2)]
            async with running(courier(store, sender.attempt, concurrency=1)):
                await until(lambda: len(store.settled) == 2)

    go(run())
    first, second = (r for r in caplog.records if r.name == "worker.callbacks.courier")
    assert "succeeded job.succeeded to 127.0.0.1:80: delivered, 200 in" in first.getMessage()
    assert "http_500 in" in second.getMessage()
    assert second.getMessage().endswith("; given up")
    assert cast(Any, second).error == "http_500"
    for private in ("hidden", "hook", "whsec", "MfKQ", "Füchse", "v1,"):
        assert private not in caplog.text


# With the store itself


@pytest.fixture(params=["fakeredis", "redis"])
def redis(request: pytest.FixtureRequest) -> Iterator[Redis]:
    if request.param == "fakeredis":
        with fakeredis.FakeRedis(decode_responses=True) as fake:
            yield fake
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    with Redis.from_url(server.url, decode_responses=True) as real:
        real.flushall()
        yield real


class Service:
    """A store, and a key whose callbacks may go to loopback."""

    def __init__(self, redis: Redis) -> None:
        self.store = JobStore(redis)
        self.owner = self.key()

    def key(self) -> KeyProof:
        made = self.store.keys.create(KeySettings(name="k", callback_hosts=["127.0.0.1"]))
        return KeyProof.of(made.token)

    def end_job(self, url: str, owner: KeyProof | None = None) -> str:
        callback = CallbackTarget(url, JOB_ENDS, link="https://slm.example/jobs/1")
        asked = spec().model_copy(update={"callback": callback})
        job = self.store.create(asked, owner=owner or self.owner).job
        assert complete(self.store, claim(self.store))
        return job.id

    def delivery(self, job_id: str) -> Any:
        [found] = self.store.callbacks.of(job_id)
        return found


def deliver(
    redis: Redis,
    answer: Answer,
    test: Callable[[Service, Receiver, Courier], Awaitable[None]],
    **settings: Any,
) -> None:
    chosen = Settings(**{f"callback_{name}": value for name, value in settings.items()})

    async def run() -> None:
        service = Service(redis)
        tested = Courier(service.store.callbacks, Sender(chosen).attempt, chosen)
        async with receiving(answer) as receiver, running(tested):
            await test(service, receiver, tested)

    asyncio.run(run())


def test_delivered(redis: Redis) -> None:
    async def test(service: Service, receiver: Receiver, tested: Courier) -> None:
        job_id = service.end_job(receiver.url)
        tested.wake()
        await until(lambda: service.delivery(job_id).status is DeliveryStatus.DELIVERED)
        [request] = receiver.requests
        assert request.headers["webhook-id"] == f"{job_id}-succeeded"
        assert [a.status for a in service.delivery(job_id).attempts] == [200]

    deliver(redis, status(200), test)


def test_tried_again_until_it_is_given_up_and_replayed(redis: Redis) -> None:
    async def test(service: Service, receiver: Receiver, tested: Courier) -> None:
        job_id = service.end_job(receiver.url)
        tested.wake()
        await until(lambda: service.delivery(job_id).status is DeliveryStatus.FAILED)
        errors = [a.error for a in service.delivery(job_id).attempts]
        assert errors == ["http_500", "http_503", "http_500"]
        assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
        assert len({request.body for request in receiver.requests}) == 1

        service.store.callbacks.replay([f"{job_id}-succeeded"])
        tested.wake()
        await until(lambda: service.delivery(job_id).status is DeliveryStatus.DELIVERED)
        assert len(service.delivery(job_id).attempts) == 5

    answers = [status(500), status(503), status(500), status(500), status(200)]
    deliver(redis, sequence(*answers), test, schedule_seconds=(0, 0.01, 0.01))


def test_one_that_hangs_holds_up_no_other(redis: Redis) -> None:
    released = asyncio.Event()

    async def hangs(request: Request, writer: asyncio.StreamWriter) -> None:
        await released.wait()

    async def test(service: Service, receiver: Receiver, tested: Courier) -> None:
        async with receiving(status(200)) as other:
            for _ in range(20):
                service.end_job(receiver.url)
            tested.wake()
            await until(lambda: receiver.connections == 4)
            jobs = [service.end_job(other.url) for _ in range(20)]
            tested.wake()
            await until(
                lambda: all(service.delivery(j).status is DeliveryStatus.DELIVERED for j in jobs)
            )
            assert receiver.connections == 4
            assert not any(service.delivery(j).attempts[1:] for j in jobs)
        tested.stop()
        released.set()

    deliver(redis, hangs, test, per_host=4, concurrency=16, timeout_seconds=3 * PATIENCE)


def test_one_that_hangs_holds_up_no_other_though_many_keys_use_it(redis: Redis) -> None:
    released = asyncio.Event()

    async def hangs(request: Request, writer: asyncio.StreamWriter) -> None:
        await released.wait()

    async def test(service: Service, receiver: Receiver, tested: Courier) -> None:
        async with receiving(status(200)) as other:
            for key in [service.key() for _ in range(40)]:
                for _ in range(2):
                    service.end_job(receiver.url, key)
            tested.wake()
            await until(lambda: receiver.connections == 4)
            jobs = [service.end_job(other.url, service.key()) for _ in range(5)]
            tested.wake()
            await until(
                lambda: all(service.delivery(j).status is DeliveryStatus.DELIVERED for j in jobs)
            )
            assert receiver.connections == 4  # an eighth
        tested.stop()
        released.set()

    deliver(redis, hangs, test, per_host=2, concurrency=32, timeout_seconds=3 * PATIENCE)


def test_callbacks_of_a_revoked_key_end(redis: Redis) -> None:
    async def test(service: Service, receiver: Receiver, tested: Courier) -> None:
        job_id = service.end_job(receiver.url)
        service.store.keys.revoke(service.owner.key)
        tested.wake()
        await until(lambda: service.delivery(job_id).status is DeliveryStatus.FAILED)
        assert [a.error for a in service.delivery(job_id).attempts] == ["key_revoked"]
        assert receiver.connections == 0

    deliver(redis, status(200), test)


def test_one_that_cannot_be_read_holds_up_no_other(redis: Redis) -> None:
    async def test(service: Service, receiver: Receiver, tested: Courier) -> None:
        jobs = [service.end_job(receiver.url) for _ in range(3)]
        redis.hset(f"{keys.DELIVERY}{jobs[0]}-succeeded", "record_usage", "[")
        tested.wake()
        await until(
            lambda: all(service.delivery(j).status is DeliveryStatus.DELIVERED for j in jobs[1:])
        )
        await until(lambda: service.delivery(jobs[0]).status is DeliveryStatus.FAILED)
        errors = [a.error for a in service.delivery(jobs[0]).attempts]
        assert errors == ["internal_error"] * 2

    deliver(redis, status(200), test, schedule_seconds=(0, 0.01))


def test_another_key_to_the_same_host_has_a_lane_of_its_own(redis: Redis) -> None:
    async def test(service: Service, receiver: Receiver, tested: Courier) -> None:
        for _ in range(5):
            service.end_job(receiver.url)
        tested.wake()
        await until(lambda: receiver.connections == 1)
        service.end_job(receiver.url, service.key())
        tested.wake()
        await until(lambda: receiver.connections == 2)

    deliver(redis, hangs, test, per_host=1, timeout_seconds=0.5)


def test_what_was_claimed_and_not_settled_comes_again(redis: Redis) -> None:
    async def test(service: Service, receiver: Receiver, tested: Courier) -> None:
        job_id = service.end_job(receiver.url)
        [lost], _ = service.store.callbacks.claim(1, lease_seconds=60)
        service.store.clock_offset_ms += 60_001
        tested.wake()
        await until(lambda: service.delivery(job_id).status is DeliveryStatus.DELIVERED)
        assert service.store.callbacks.settle([outcome(lost, "timeout")]) == [False]
        assert service.delivery(job_id).status is DeliveryStatus.DELIVERED

    deliver(redis, status(200), test)


def test_events_wake_it(redis_server: RedisServer) -> None:
    async def run() -> None:
        with Redis.from_url(redis_server.url, decode_responses=True) as real:
            heard = []
            settings = Settings(redis_url=redis_server.url)
            async with DueEvents(settings, lambda: heard.append(1)):
                await until(lambda: len(heard) == 1)  # it listens
                real.publish(keys.CALLBACKS_DUE, "job_1-succeeded")
                await until(lambda: len(heard) == 2)
                real.client_kill_filter(_type="pubsub")
                await until(lambda: len(heard) >= 3)  # and again
                real.publish(keys.CALLBACKS_DUE, "job_2-succeeded")
                await until(lambda: len(heard) >= 4)

    asyncio.run(run())
