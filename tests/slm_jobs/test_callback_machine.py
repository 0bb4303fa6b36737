"""The outbox against a model of it: whatever processes do, and wherever they die, each delivery
stays due until its outcome is written, is claimed by one at a time, and can be looked up.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import fakeredis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from slm_jobs import keys
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.callback_schemas import Attempt, CallbackTarget, DueDelivery, Outcome
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import claim, complete, spec

# Steps are whole seconds, so half ones leave room for what passes by itself.
LEASE_SECONDS = 60.5
PER_LANE = 2
PER_HOST = 3
HOSTS = ["a.example", "b.example", "c.example"]
KEYS = [0, 1]
PAUSES = [None, 0.5, 5.5, 300.5]


@dataclass
class Told:
    """What the model knows about a delivery. Times are seconds of the machine's clock."""

    job_id: str
    key: str
    host: str
    due: float | None  # None: it has ended
    claim: int = 0
    tries: int = 0
    attempts: int = 0
    failed: bool = False

    @property
    def lane(self) -> str:
        return f"{self.key} {self.host}:443"


@dataclass(frozen=True)
class Claim:
    delivery_id: str
    number: int


class CallbackMachine(RuleBasedStateMachine):
    claims = Bundle("claims")

    redis: Redis

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushall()
        self.store = JobStore(self.redis)
        made = (self.store.keys.create(KeySettings(name="k")).token for _ in KEYS)
        self.owners = [KeyProof.of(token) for token in made]
        for owner in self.owners:
            self.store.callbacks.secrets(owner.key)
        self.start_ms = self.now()
        self.clock = 0.0
        self.told: dict[str, Told] = {}
        self.lost: list[Claim] = []  # of the last claim, whose reply did not come

    def now(self) -> int:
        seconds, micros = self.redis.time()
        return seconds * 1000 + micros // 1000

    def step(self) -> None:
        """Time passes only where a rule says so: the offset takes back what passes by itself."""
        self.clock += 1
        passed = self.now() - self.start_ms
        self.store.clock_offset_ms = round(self.clock * 1000) - passed

    @rule(host=st.sampled_from(HOSTS), key=st.sampled_from(KEYS))
    def end_a_job(self, host: str, key: int) -> None:
        """It tells twice."""
        self.step()
        owner = self.owners[key]
        target = CallbackTarget(f"https://{host}/", ("running", "succeeded"))
        job = self.store.create(spec().model_copy(update={"callback": target}), owner=owner).job
        work = claim(self.store)
        self.told[f"{job.id}-running-1"] = Told(job.id, owner.key, host, self.clock)
        self.step()
        assert complete(self.store, work)
        self.told[f"{job.id}-succeeded"] = Told(job.id, owner.key, host, self.clock)

    @rule(
        target=claims,
        room=st.integers(1, 9),
        busy=st.dictionaries(
            st.tuples(st.sampled_from(KEYS), st.sampled_from(HOSTS)), st.integers(0, PER_LANE)
        ),
        shut=st.sets(st.tuples(st.sampled_from(KEYS), st.sampled_from(HOSTS)), max_size=2),
        is_lost=st.sampled_from([False, False, True]),
    )
    def claim(
        self,
        room: int,
        busy: dict[tuple[int, str], int],
        shut: set[tuple[int, str]],
        is_lost: bool,
    ) -> Any:
        """`busy`: how many the process has of lanes; `shut`: those that it leaves alone."""
        self.step()
        for lost in self.lost:  # comes back now
            told = self.told.get(lost.delivery_id)
            if told and told.due is not None and told.claim == lost.number:
                told.claim, told.due = -1, self.clock
        running = Counter({self.lane(*at): count for at, count in busy.items()})
        limits = {self.lane(*at): 0 for at in shut}
        found, wait = self.run_claim(room, running, limits)
        claimed = [Claim(due.id, due.claim) for due in found]
        before = Share(room, running, limits)
        after = Share(room - len(found), running + Counter(due.lane for due in found), limits)
        if not found:
            assert not any(
                self.is_due(told) and before.may_take(told) for told in self.told.values()
            )
        for due in found:
            told = self.told[due.id]
            assert told.due is not None
            assert told.due <= self.clock
            assert (due.tries, due.lane) == (told.tries, told.lane)
            assert due.payload
            assert before.may_take(told)
            told.claim, told.due = due.claim, self.clock + LEASE_SECONDS
        after.check(before)
        next_due = min(
            (each.due for each in self.told.values() if each.due and after.may_take(each)),
            default=self.clock + 60,
        )
        assert abs(wait - min(max(next_due - self.clock, 0), 60)) < 0.5
        self.lost = claimed if is_lost else []
        if is_lost:
            self.store.callbacks._answered -= 1
        return multiple(*([] if is_lost else claimed))

    def run_claim(
        self, room: int, running: Counter[str], limits: dict[str, int]
    ) -> tuple[list[DueDelivery], float]:
        return self.store.callbacks.claim(
            room,
            per_lane=PER_LANE,
            per_host=PER_HOST,
            running=running,
            limits=limits,
            lease_seconds=LEASE_SECONDS,
        )

    def lane(self, key: int, host: str) -> str:
        return f"{self.owners[key].key} {host}:443"

    def is_due(self, told: Told) -> bool:
        return told.due is not None and told.due <= self.clock

    @rule(claimed=claims, pause=st.sampled_from(PAUSES), delivered=st.booleans())
    def settle(self, claimed: Claim, pause: float | None, delivered: bool) -> None:
        """Also again, or long after the claim lapsed and another has it."""
        self.step()
        attempt = Attempt(at=datetime(2026, 1, 1, tzinfo=UTC), duration_ms=1)
        outcome = Outcome(claimed.delivery_id, claimed.number, attempt, pause, delivered)
        told = self.told.get(claimed.delivery_id)
        mine = told is not None and told.due is not None and told.claim == claimed.number
        assert self.store.callbacks.settle([outcome]) == [mine]
        if told and mine:
            told.claim = -1
            told.tries += 1
            told.attempts += 1
            told.due = None if pause is None else self.clock + pause
            told.failed = pause is None and not delivered

    @rule(claimed=claims)
    def release(self, claimed: Claim) -> None:
        """Also again, or long after the claim lapsed and another has it."""
        self.step()
        told = self.told.get(claimed.delivery_id)
        due = DueDelivery(claimed.delivery_id, "", "", b"", 0, claimed.number, "", (), ())
        self.store.callbacks.release([due])
        if told and told.due is not None and told.claim == claimed.number:
            told.claim, told.due = -1, self.clock

    @rule(seconds=st.sampled_from([1, 30, 61, 400]))
    def wait(self, seconds: float) -> None:
        self.clock += seconds

    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        if not self.told:
            return
        self.step()
        delivery_id = data.draw(st.sampled_from(sorted(self.told)))
        told = self.told[delivery_id]
        assert self.store.callbacks.replay([delivery_id]) == (told.due is None)
        if told.due is None:
            told.due, told.tries, told.failed = self.clock, 0, False

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if not self.told:
            return
        self.step()
        job_id = data.draw(st.sampled_from(sorted({told.job_id for told in self.told.values()})))
        self.store.delete(job_id)
        self.told = {name: told for name, told in self.told.items() if told.job_id != job_id}

    @invariant()
    def the_store_agrees(self) -> None:
        for owner in self.owners:
            failed, _ = self.store.callbacks.failed(owner.key, limit=1_000)
            mine = {name for name, told in self.told.items() if told.key == owner.key}
            assert {each.id for each in failed} == {n for n in mine if self.told[n].failed}
        for job_id in {told.job_id for told in self.told.values()}:
            expected = [name for name, told in self.told.items() if told.job_id == job_id]
            found = self.store.callbacks.of(job_id)
            assert [delivery.id for delivery in found] == expected
            for delivery in found:
                told = self.told[delivery.id]
                assert (delivery.status == "pending") == (told.due is not None)
                assert len(delivery.attempts) == min(told.attempts, 50)
            pending = any(self.told[name].due is not None for name in expected)
            assert (self.redis.ttl(keys.DELIVERIES_OF + job_id) == -1) == pending

    @invariant()
    def only_what_has_ended_expires(self) -> None:
        for name, told in self.told.items():
            assert (self.redis.ttl(keys.DELIVERY + name) == -1) == (told.due is not None)
            if told.attempts:
                assert (self.redis.ttl(keys.ATTEMPTS + name) == -1) == (told.due is not None)

    @invariant()
    def each_line_stands_where_its_first_delivery_does(self) -> None:
        pending = [told for told in self.told.values() if told.due is not None]
        by_key = Counter(told.key for told in pending)
        counted = self.redis.hgetall(keys.PENDING_CALLBACKS)
        assert counted == {key: str(count) for key, count in by_key.items()}
        assert self.first_of(keys.DUE).keys() == {told.lane for told in pending}
        lanes: dict[str, dict[str, float]] = {}
        for lane, due in self.first_of(keys.DUE).items():
            lanes.setdefault(lane.partition(" ")[0], {})[lane] = due
        for key, expected in lanes.items():
            assert dict(self.redis.zrange(keys.LANES + key, 0, -1, withscores=True)) == expected
        firsts = self.first_of(keys.LANES)
        assert dict(self.redis.zrange(keys.TELLING, 0, -1, withscores=True)) == firsts

    def first_of(self, prefix: str) -> dict[str, float]:
        """The first score of each sorted set, by what comes after the prefix."""
        firsts = {}
        for name in self.redis.keys(prefix + "*"):
            [(_, first)] = self.redis.zrange(name, 0, 0, withscores=True)
            firsts[name.removeprefix(prefix)] = first
        return firsts


@dataclass
class Share:
    """What a process may take: with so much room, so many under way by lane, and limits of some."""

    room: int
    running: Counter[str]
    limits: dict[str, int]

    def of_key(self, key: str) -> int:
        return sum(count for lane, count in self.running.items() if lane.startswith(f"{key} "))

    def of_host(self, host: str) -> int:
        return sum(count for lane, count in self.running.items() if lane.endswith(f" {host}"))

    def left_to(self, key: str) -> int:
        """As many as it leaves, and one at least to who holds nothing."""
        mine = self.of_key(key)
        return (self.room - mine) // 2 if mine else min(self.room, max(1, self.room // 2))

    def may_take(self, told: Told) -> bool:
        free = self.limits.get(told.lane, PER_LANE) - self.running[told.lane]
        _, host = told.lane.split()
        return free > 0 and self.of_host(host) < PER_HOST and self.left_to(told.key) > 0

    def check(self, before: Share) -> None:
        """What became of it by one claim."""
        assert self.room >= 0
        for lane in self.running - before.running:
            key, host = lane.split()
            assert self.running[lane] <= PER_LANE
            assert self.of_host(host) <= PER_HOST
            assert self.of_key(key) - before.of_key(key) <= before.left_to(key)


def search(redis: Redis, *, max_examples: int) -> None:
    profile = settings.get_profile(os.environ.get("SLM_HYPOTHESIS", "slm-stable"))
    machine = type("Machine", (CallbackMachine,), {"redis": redis})
    if profile.derandomize:
        profile = settings(profile, max_examples=max_examples, stateful_step_count=40)
    run_state_machine_as_test(machine, settings=profile)


def test_on_fakeredis() -> None:
    with fakeredis.FakeRedis(decode_responses=True) as redis:
        search(redis, max_examples=60)


def test_on_redis(real_redis: Redis) -> None:
    search(real_redis, max_examples=60)
