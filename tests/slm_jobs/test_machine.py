"""The store against a plain Python model: any order of calls, repeated ones included, from several
clients, with workers that vanish, clocks that jump, and tickets that get lost or doubled.

A script happens entirely or not at all, so a crash can only fall between two calls: whoever drew a
claim and does nothing more with it is a worker that vanished. A call whose reply was lost and that
is sent again is the same call twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import fakeredis
import pytest
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
from slm_jobs.callback_schemas import JOB_ENDS, CallbackTarget
from slm_jobs.errors import DeadLetterNotFound, RateLimited
from slm_jobs.schemas import Company, Job, JobStatus, Work
from slm_jobs.store import JobStore
from slm_jobs.tickets import TICKETS_MAX, queue_name
from tests.slm_jobs.examples import ERROR, OUTPUTS, USAGE, WORKER, spec

MODELS = ["small", "large"]
MAX_CRASHES = 3
LEASE_S = 1_000
QUEUE_TIMEOUT_S = 450  # nor of them and this
CLOCK_JUMPS_S = [300, 600, 1_200, -300]  # no sum of them comes near a lease, however slow the test
KEYS = 2
IN_FLIGHT = 4  # jobs of a key
CALLBACK = CallbackTarget("https://hooks.example/", JOB_ENDS)
QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED, EXPIRED = (
    JobStatus.QUEUED,
    JobStatus.RUNNING,
    JobStatus.SUCCEEDED,
    JobStatus.FAILED,
    JobStatus.CANCELLED,
    JobStatus.EXPIRED,
)

clients = st.integers(0, 2)
models = st.sampled_from(MODELS)
companies = st.sampled_from([None, Company.ANY, Company.SUSPECTS])  # of what the worker holds


@dataclass
class Expected:
    """A job as the model knows it."""

    model: str
    age: int
    priority: int
    key: int | None
    tokens: int
    queue_deadline: int | None  # until it has started
    hurried: bool
    told: bool  # of its end
    retry_of: str | None = None
    redriven_as: str | None = None
    status: JobStatus = QUEUED
    cancel_requested: bool = False
    attempt: int = 0
    crashes: int = 0
    lease_until: int = 0
    ended: Job | None = None  # as first read after its end

    @property
    def cancelling(self) -> bool:
        return self.cancel_requested and not self.status.is_terminal

    def owned_by(self, work: Work) -> bool:
        return self.status is RUNNING and self.attempt == work.attempt


class StoreMachine(RuleBasedStateMachine):
    redis: Redis  # set by the tests below

    jobs = Bundle("jobs")
    works = Bundle("works")  # every claim ever made, so most of them are stale

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushall()
        self.stores = [
            JobStore(self.redis, lease_seconds=LEASE_S, max_crashes=MAX_CRASHES) for _ in range(3)
        ]
        self.owners = [
            KeyProof.of(
                self.stores[0]
                .keys.create(KeySettings(name="k", jobs_in_flight=IN_FLIGHT, max_priority=2))
                .token
            )
            for _ in range(KEYS)
        ]
        self.clock = 0
        self.expected: dict[str, Expected] = {}
        self.claims: set[tuple[str, int]] = set()
        self.locked = False
        self.turn: tuple[str, int] | None = None  # who empties itself for a model's suspects
        self.jobs_come = ""  # before the turn's next suspect, as `claim.lua` has it
        self.alive: dict[int, int] = {}  # until when, by client
        self.apart: dict[int, bool] = {}  # who runs suspects, and whether it may take more of them
        self.claim_numbers = [0] * 3  # of each client, and the last one that was answered
        self.answered = [0] * 3
        self.unheard: list[Work | None] = [None] * 3  # what a claim got whose reply was lost

    # Clients

    @rule(
        target=jobs,
        client=clients,
        model=models,
        seed=st.none() | st.integers(0, 9),
        priority=st.integers(0, 2),
        key=st.integers(0, KEYS - 1) | st.none(),
        tokens=st.integers(1, 9),
        hurried=st.booleans(),
        told=st.booleans(),
    )
    def create(
        self,
        client: int,
        model: str,
        seed: int | None,
        priority: int,
        key: int | None,
        tokens: int,
        hurried: bool,
        told: bool,
    ) -> str:
        request = spec(
            model=model,
            seed=seed,
            priority=priority,
            queue_timeout=QUEUE_TIMEOUT_S if hurried else None,
            callback=CALLBACK if told else None,
        )
        owner = None if key is None else self.owners[key]
        in_flight = [k for k in self.expected.values() if k.key == key and not k.status.is_terminal]
        if key is not None and len(in_flight) >= IN_FLIGHT:
            with pytest.raises(RateLimited, match="jobs-in-flight"):
                self.stores[client].create(request, owner=owner, tokens=tokens)
            return multiple()  # type: ignore[return-value]
        job = self.stores[client].create(request, owner=owner, tokens=tokens).job
        assert job.id not in self.expected
        self.expected[job.id] = Expected(
            model,
            age=len(self.expected),
            priority=priority,
            key=key,
            tokens=tokens,
            queue_deadline=self.clock + QUEUE_TIMEOUT_S if hurried else None,
            hurried=hurried,
            told=told,
        )
        return job.id

    @rule(target=jobs, client=clients, job=jobs)
    def redrive(self, client: int, job: str) -> object:
        known = self.expected[job]
        if known.status is not FAILED:
            with pytest.raises(DeadLetterNotFound):
                self.stores[client].dead_letters.redrive(job)
            return multiple()
        new = self.stores[client].dead_letters.redrive(job)
        assert new.retry_of == job
        if known.redriven_as:
            assert new.id == known.redriven_as
            return multiple()
        assert new.seed == self.stores[client].get(job).seed
        known.redriven_as = new.id
        deadline = self.clock + QUEUE_TIMEOUT_S if known.hurried else None
        self.expected[new.id] = Expected(
            known.model,
            age=len(self.expected),
            priority=known.priority,
            key=known.key,
            tokens=known.tokens,
            queue_deadline=deadline,
            hurried=known.hurried,
            told=known.told,
            retry_of=job,
        )
        return new.id

    @rule(client=clients, job=jobs)
    def cancel(self, client: int, job: str) -> None:
        known = self.expected[job]
        before = self.stores[0].get(job)
        told = self.stores[client].cancel(job)
        if known.status is QUEUED:
            known.status = CANCELLED
        elif known.status is RUNNING:
            known.cancel_requested = True
        else:
            assert told == before
        assert (told.status, told.cancel_requested) == (known.status, known.cancelling)

    @rule(client=clients, job=jobs, model=models)
    def create_again(self, client: int, job: str, model: str) -> None:
        before = self.stores[0].get(job)
        again = self.stores[client].create(spec("Something else", model=model), job_id=job)
        assert (again.job, again.replayed) == (before, False)

    # Workers

    @rule(target=works, client=clients, model=models, company=companies)
    def claim(self, client: int, model: str, company: Company | None) -> object:
        work = self.claim_a_job(client, model, company)
        self.answered[client] = self.claim_numbers[client]
        self.unheard[client] = None
        return work or multiple()

    @rule(client=clients, model=models, company=companies)
    def lose_the_reply_of_a_claim(self, client: int, model: str, company: Company | None) -> None:
        self.unheard[client] = self.claim_a_job(client, model, company)

    def claim_a_job(self, client: int, model: str, company: Company | None) -> Work | None:
        unheard = self.unheard[client]
        if unheard and self.expected[unheard.id].owned_by(unheard):
            job = self.expected[unheard.id]
            job.status = CANCELLED if job.cancel_requested else QUEUED
        self.claim_numbers[client] += 1
        works = self.stores[client].claim_next(
            model,
            worker=f"w{client}",
            company=company,
            claim=self.claim_numbers[client],
            answered=self.answered[client],
        )
        self.redis.persist(keys.TURN_JOBS)  # it runs out when the machine says so
        expected = self.expect_claim(client, model, company)
        assert set(self.redis.zrange(keys.APART, 0, -1)) == {f"w{n}" for n in self.apart}
        if self.apart.get(client):
            self.redis.zadd(keys.APART, {f"w{client}": "+inf"})  # likewise
        if not works:
            assert expected is None
            return None
        [work] = works
        assert (work.id, work.company) == expected
        job = self.expected[work.id]
        job.status, job.attempt, job.queue_deadline = RUNNING, job.attempt + 1, None
        job.lease_until = self.clock + LEASE_S
        assert (work.attempt, work.model) == (job.attempt, model)
        assert work.spec.seed == self.stores[client].get(work.id).seed
        assert (work.id, work.attempt) not in self.claims
        self.claims.add((work.id, work.attempt))
        return work

    @rule(client=clients, work=works)
    def complete(self, client: int, work: Work) -> None:
        done = self.stores[client].complete(work, OUTPUTS, USAGE, fingerprint="fp32")
        assert done is self.end(work, SUCCEEDED)

    @rule(client=clients, work=works)
    def fail(self, client: int, work: Work) -> None:
        assert self.stores[client].fail(work, ERROR) is self.end(work, FAILED)

    @rule(client=clients, work=works)
    def end_cancelled(self, client: int, work: Work) -> None:
        done = self.stores[client].cancelled(work, OUTPUTS, USAGE, fingerprint="fp32")
        assert done is self.end(work, CANCELLED)

    @rule(client=clients, held=st.lists(works, max_size=4), crashed=st.booleans())
    def hand_back(self, client: int, held: list[Work], crashed: bool) -> None:
        returned = 0
        for work in held:
            job = self.expected[work.id]
            if job.owned_by(work):
                job.crashes += crashed
                job.status = CANCELLED if job.cancel_requested else QUEUED
                if job.crashes >= MAX_CRASHES and job.status is QUEUED:
                    job.status = FAILED
                returned += 1
        assert self.stores[client].hand_back(held, crashed=crashed) == returned

    @rule(client=clients, held=st.lists(works, max_size=4))
    def heartbeat(self, client: int, held: list[Work]) -> None:
        newest = {work.id: work for work in sorted(held, key=lambda work: work.attempt)}
        lost = {job for job, work in newest.items() if not self.expected[job].owned_by(work)}
        for job in newest.keys() - lost:
            self.expected[job].lease_until = self.clock + LEASE_S
        cancelled = {job for job in newest.keys() - lost if self.expected[job].cancelling}
        worker = WORKER.model_copy(update={"id": f"w{client}"})
        assert self.stores[client].heartbeat(worker, held) == (lost, cancelled)
        self.alive[client] = self.clock + LEASE_S

    # Time, and what goes wrong with it

    @rule(seconds=st.sampled_from(CLOCK_JUMPS_S))
    def move_clock(self, seconds: int) -> None:
        self.clock += seconds
        for store in self.stores:
            store.clock_offset_ms = self.clock * 1000

    @rule(client=clients, lock_ran_out=st.booleans())
    def sweep(self, client: int, lock_ran_out: bool) -> None:
        if lock_ran_out:
            self.redis.delete(keys.JANITOR)
            self.locked = False
        report = self.stores[client].sweep()
        if self.locked:
            assert report is None
            return
        assert report is not None
        self.redis.persist(keys.JANITOR)  # it runs out when the machine says so
        self.locked = True
        requeued, exhausted = self.take_leases_back()
        for job in list(self.expected):
            self.expire(job)
        assert (report.requeued, report.exhausted) == (requeued, exhausted)
        for dead in [n for n, until in self.alive.items() if until <= self.clock]:
            del self.alive[dead]
            self.apart.pop(dead, None)
            if self.turn and self.turn[1] == dead:
                self.turn, self.jobs_come = None, ""
        for model in MODELS:
            count = len(self.waiting(model)) + len(self.suspects(model))
            assert self.redis.llen(queue_name(model)) >= min(count, TICKETS_MAX)

    @rule()
    def lose_the_turn(self) -> None:
        self.redis.delete(keys.TURN, keys.TURN_JOBS)  # they run out when the machine says so
        self.turn, self.jobs_come = None, ""

    @rule()
    def end_the_time_of_jobs(self) -> None:
        self.redis.delete(keys.TURN_JOBS)
        self.jobs_come = ""

    @rule()
    def end_the_time_of_suspects(self) -> None:
        for client in self.apart:
            self.apart[client] = False
            self.redis.zadd(keys.APART, {f"w{client}": 0})

    @rule(model=models, count=st.integers(1, 3))
    def lose_tickets(self, model: str, count: int) -> None:
        self.redis.rpop(queue_name(model), count)

    @rule(model=models)
    def double_a_ticket(self, model: str) -> None:
        if ticket := self.redis.lindex(queue_name(model), -1):
            self.redis.lpush(queue_name(model), ticket)

    @rule(client=clients, model=models)
    def request_ticket(self, client: int, model: str) -> None:
        self.stores[client].request_ticket(model)
        waits = self.waiting(model) or self.suspects(model)
        assert bool(self.redis.llen(queue_name(model))) or not waits

    # What always holds

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        for model in MODELS:
            assert self.redis.zrange(keys.waiting(model), 0, -1) == self.waiting(model)
            assert self.redis.zrange(keys.SUSPECTS + model, 0, -1) == self.suspects(model)
        running = {job for job, known in self.expected.items() if known.status is RUNNING}
        assert set(self.redis.zrange(keys.LEASES, 0, -1)) == running

    @invariant()
    def what_failed_is_a_dead_letter_until_it_is_redriven(self) -> None:
        failed = {j for j, k in self.expected.items() if k.status is FAILED and not k.redriven_as}
        assert set(self.redis.zrange(keys.DEAD_LETTERS, 0, -1)) == failed
        hurried = {j for j, k in self.expected.items() if k.status is QUEUED and k.queue_deadline}
        assert set(self.redis.zrange(keys.QUEUE_DEADLINES, 0, -1)) == hurried

    @invariant()
    def each_end_is_told_once(self) -> None:
        for job, known in self.expected.items():
            ended = known.told and known.status.is_terminal
            deliveries = self.redis.lrange(keys.DELIVERIES_OF + job, 0, -1)
            assert deliveries == ([f"{job}-{known.status}"] if ended else [])

    @invariant()
    def what_is_counted_is_there(self) -> None:
        for model in MODELS:
            queued = [self.expected[j] for j in self.waiting(model) + self.suspects(model)]
            counted = int(self.redis.hget(keys.QUEUED_TOKENS, model) or 0)
            assert counted == sum(known.tokens for known in queued)
            running = [k for k in self.expected.values() if (k.model, k.status) == (model, RUNNING)]
            assert int(self.redis.hget(keys.RUNNING, model) or 0) == len(running)
        for key, owner in enumerate(self.owners):
            ours = {job: k for job, k in self.expected.items() if k.key == key}
            in_flight = {job for job, k in ours.items() if not k.status.is_terminal}
            assert set(self.redis.zrange(keys.IN_FLIGHT + owner.key, 0, -1)) == in_flight
            waiting = sum(k.tokens for k in ours.values() if k.status is QUEUED)
            counted = int(self.redis.hget(keys.USAGE + owner.key, "queued_tokens") or 0)
            assert counted == waiting

    @invariant()
    def records_are_as_expected(self) -> None:
        for job_id, known in self.expected.items():
            job = self.stores[0].get(job_id)
            assert (job.status, job.attempt) == (known.status, known.attempt)
            assert job.cancel_requested is known.cancelling
            key = keys.job(job_id)
            assert self.redis.hget(key, "crashes") == str(known.crashes)
            assert (self.redis.ttl(key) > 0) is job.status.is_terminal
            if job.status.is_terminal:
                known.ended = known.ended or job
                assert job == known.ended, "an ended job changed"

    def teardown(self) -> None:
        """Whatever happened: time, sweeps and claims bring every job to an end."""
        for _ in range(MAX_CRASHES):
            self.move_clock(1_200)
            self.sweep(0, lock_ran_out=True)
            for model in MODELS:
                self.lose_the_turn()
                n = 0
                while self.waiting(model) or self.suspects(model):
                    work = self.claim(1, model, None)
                    assert isinstance(work, Work) or not self.waiting(model)
                    n += 1
                    if n % 2 and isinstance(work, Work):  # the others vanish
                        self.complete(1, work)
        self.move_clock(1_200)
        self.sweep(2, lock_ran_out=True)
        self.every_job_is_in_one_place()
        self.records_are_as_expected()
        assert all(known.status.is_terminal for known in self.expected.values())

    # The model

    def waiting(self, model: str) -> list[str]:
        return self.line(model, lambda known: known.crashes == 0)

    def suspects(self, model: str) -> list[str]:
        return self.line(model, lambda known: known.crashes > 0)

    def line(self, model: str, wanted: Callable[[Expected], bool]) -> list[str]:
        jobs = [
            (-known.priority, known.age, job)
            for job, known in self.expected.items()
            if known.model == model and known.status is QUEUED and wanted(known)
        ]
        return [job for _, _, job in sorted(jobs)]

    def expect_claim(
        self, client: int, model: str, company: Company | None
    ) -> tuple[str, Company] | None:
        """The job, and what may run beside it."""
        suspects, mine = self.suspects(model), (model, client)
        if self.turn == mine and not suspects:
            self.turn, self.jobs_come = None, ""
        if company is Company.SUSPECTS:
            over = self.apart.get(client) is False and self.waiting(model)
            return None if over else self.next_suspect(suspects, client, company)
        self.apart.pop(client, None)
        if suspects and self.turn in (None, mine):
            self.turn = mine
            come = self.jobs_come == "now" or (not company and self.jobs_come == "next")
            if come and (fresh := self.next_fresh(model)):
                self.jobs_come = "now"
                return fresh
            if company:
                return None
            self.jobs_come = "next"
            return self.next_suspect(suspects, client, company)
        if self.turn and self.turn[1] == client:
            if self.suspects(self.turn[0]):
                return None
            self.turn, self.jobs_come = None, ""
        if fresh := self.next_fresh(model):
            return fresh
        helps = suspects and not company and len(self.apart) < len(self.alive) - 1
        return self.next_suspect(suspects, client, company) if helps else None

    def next_fresh(self, model: str) -> tuple[str, Company] | None:
        fresh = (job for job in self.waiting(model) if not self.expire(job))
        return next(((job, Company.ANY) for job in fresh), None)

    def next_suspect(
        self, suspects: list[str], client: int, company: Company | None
    ) -> tuple[str, Company] | None:
        if not company:
            self.apart[client] = True
        for job in suspects:
            if self.expected[job].crashes + 1 < MAX_CRASHES:
                return job, Company.SUSPECTS
        return (suspects[0], Company.NONE) if suspects and not company else None

    def expire(self, job: str) -> bool:
        known = self.expected[job]
        if known.status is QUEUED and known.queue_deadline and known.queue_deadline <= self.clock:
            known.status = EXPIRED
        return known.status is EXPIRED

    def end(self, work: Work, status: JobStatus) -> bool:
        job = self.expected[work.id]
        if not job.owned_by(work):
            return False
        job.status = status
        return True

    def take_leases_back(self) -> tuple[int, int]:
        requeued = exhausted = 0
        for job in self.expected.values():
            if job.status is RUNNING and job.lease_until <= self.clock:
                job.crashes += 1
                if job.crashes >= MAX_CRASHES and not job.cancel_requested:
                    job.status = FAILED
                    exhausted += 1
                else:
                    job.status = CANCELLED if job.cancel_requested else QUEUED
                    requeued += 1
        return requeued, exhausted


def search(redis: Redis, *, max_examples: int) -> None:
    profile = settings.get_profile(os.environ.get("SLM_HYPOTHESIS", "slm-stable"))
    machine = type("Machine", (StoreMachine,), {"redis": redis})
    if profile.derandomize:
        profile = settings(profile, max_examples=max_examples, stateful_step_count=40)
    run_state_machine_as_test(machine, settings=profile)


def test_on_fakeredis() -> None:
    with fakeredis.FakeRedis(decode_responses=True) as redis:
        search(redis, max_examples=100)


def test_on_redis(real_redis: Redis) -> None:
    search(real_redis, max_examples=25)
