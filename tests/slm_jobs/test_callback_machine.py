"""The outbox against a model of it: whatever processes do, and wherever they die, each delivery
stays due until its outcome is written, and is claimed by one at a time.
"""

from __future__ import annotations

import os
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
from slm_jobs.callback_schemas import (
    JOB_ENDS,
    Attempt,
    CallbackTarget,
    Delivery,
    DueDelivery,
    Outcome,
)
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import claim, complete, spec

# Steps are whole seconds, so half ones leave room for what passes by itself.
LEASE_SECONDS = 60.5
PER_LANE = 2
PER_KEY = 4
HOSTS = ["a.example", "b.example", "c.example"]
PAUSES = [None, 0.5, 5.5, 300.5]


@dataclass
class Told:
    """What the model knows about a delivery. Times are seconds of the machine's clock."""

    job_id: str
    host: str
    due: float | None  # None: it has ended
    claim: int = 0
    tries: int = 0
    attempts: int = 0
    failed: bool = False


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
        self.owner = KeyProof.of(self.store.keys.create(KeySettings(name="k")).token)
        self.start_ms = self.now()
        self.clock = 0.0
        self.told: dict[str, Told] = {}

    def now(self) -> int:
        seconds, micros = self.redis.time()
        return seconds * 1000 + micros // 1000

    def step(self) -> None:
        """Time passes only where a rule says so: the offset takes back what passes by itself."""
        self.clock += 1
        passed = self.now() - self.start_ms
        self.store.clock_offset_ms = round(self.clock * 1000) - passed

    @rule(host=st.sampled_from(HOSTS))
    def end_a_job(self, host: str) -> None:
        self.step()
        target = CallbackTarget(f"https://{host}/", JOB_ENDS)
        job = self.store.create(
            spec().model_copy(update={"callback": target}), owner=self.owner
        ).job
        assert complete(self.store, claim(self.store))
        self.told[f"{job.id}-succeeded"] = Told(job.id, host, self.clock)

    @rule(
        target=claims,
        room=st.integers(1, 5),
        busy=st.dictionaries(st.sampled_from(HOSTS), st.integers(0, PER_LANE)),
        of_key=st.integers(0, PER_KEY),
    )
    def claim(self, room: int, busy: dict[str, int], of_key: int) -> Any:
        self.step()
        held = {f"{self.owner.key} {host}:443": held for host, held in busy.items()}
        claimed, _ = self.store.callbacks.claim(
            room,
            per_lane=PER_LANE,
            per_key=PER_KEY,
            busy={**held, self.owner.key: of_key},
            lease_seconds=LEASE_SECONDS,
        )
        room = min(room, PER_KEY - of_key)
        assert len(claimed) <= room
        taken = dict(busy)
        for due in claimed:
            told = self.told[due.delivery.id]
            assert told.due is not None
            assert told.due <= self.clock
            assert due.tries == told.tries
            told.claim, told.due = due.claim, self.clock + LEASE_SECONDS
            taken[told.host] = taken.get(told.host, 0) + 1
            assert taken[told.host] <= PER_LANE
        if len(claimed) < room:  # nothing was left out that could have been taken
            for told in self.told.values():
                full = taken.get(told.host, 0) >= PER_LANE
                assert full or told.due is None or told.due > self.clock
        return multiple(*(Claim(due.delivery.id, due.claim) for due in claimed))

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
        delivery = Delivery.model_construct(id=claimed.delivery_id)
        self.store.callbacks.release([DueDelivery(delivery, b"", 0, claimed.number, "", (), ())])
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
        delivery_id = data.draw(st.sampled_from(sorted(self.told)))
        self.store.delete(self.told.pop(delivery_id).job_id)

    @invariant()
    def the_store_agrees(self) -> None:
        failed, _ = self.store.callbacks.failed(self.owner.key, limit=1_000)
        assert {each.id for each in failed} == {k for k, v in self.told.items() if v.failed}
        for delivery_id, told in self.told.items():
            [delivery] = self.store.callbacks.of(told.job_id)
            assert delivery.id == delivery_id
            assert (delivery.status == "pending") == (told.due is not None)
            assert len(delivery.attempts) == min(told.attempts, 50)

    @invariant()
    def each_lane_stands_where_its_first_delivery_does(self) -> None:
        first = {}
        for name in self.redis.keys(keys.DUE + "*"):
            [(_, due)] = self.redis.zrange(name, 0, 0, withscores=True)
            first[name.removeprefix(keys.DUE)] = due
        assert dict(self.redis.zrange(keys.LANES, 0, -1, withscores=True)) == first


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
