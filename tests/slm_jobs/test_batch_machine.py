"""Batches under every interleaving that hypothesis finds: several workers and clients, lost leases,
windows that close, uploads that fall silent. Each row ends once, and what is counted is there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

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
from slm_jobs.batch_schemas import BatchDraft, BatchRow, BatchStatus, RowEnd
from slm_jobs.batches import UPLOAD_SECONDS
from slm_jobs.errors import BatchGone, BatchNotEnded, BatchNotFound, RateLimited
from slm_jobs.schemas import Company, GenerationParams, JobError, Output, Usage, Work
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import MODEL, USAGE, WORKER

LEASE_S, WINDOW_S, MAX_CRASHES = 600, 3_000, 3
MOST_ROWS = 12  # of a key
KEYS = 2
ENDED = ("succeeded", "failed", "cancelled", "expired")

# One output each: of rows that came back in the same millisecond any may be first, and a claim
# has to have as many rows in every run.
ROWS = st.lists(st.tuples(st.integers(1, 9), st.just(1)), min_size=1, max_size=4)
clients = st.integers(0, 2)
companies = st.sampled_from([None, Company.ANY, Company.SUSPECTS])  # of what the worker holds


@dataclass
class Row:
    tokens: int
    outputs: int
    state: str = "pending"
    attempt: int = 0
    crashes: int = 0
    lease_until: int = 0


@dataclass
class Known:
    """A batch as the model knows it."""

    key: int
    status: BatchStatus = BatchStatus.VALIDATING
    rows: list[Row] = field(default_factory=list)
    stopped: str | None = None
    cancel_requested: bool = False
    until: int = 0  # of its upload, then of its window

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows)

    @property
    def charged(self) -> list[Row]:
        return [row for row in self.rows if row.state == "pending"]


class BatchMachine(RuleBasedStateMachine):
    redis: Redis  # set by the tests below

    batches = Bundle("batches")
    works = Bundle("works")  # every claim ever made, so most of them are stale

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushall()
        self.stores = [
            JobStore(self.redis, lease_seconds=LEASE_S, max_crashes=MAX_CRASHES) for _ in range(3)
        ]
        limits = KeySettings(name="k", batch_rows=MOST_ROWS)
        self.owners = [KeyProof.of(self.stores[0].keys.create(limits).token) for _ in range(KEYS)]
        self.clock = 0
        self.known: dict[str, Known] = {}
        self.turn: int | None = None
        self.names = 0

    # Clients

    @rule(target=batches, client=clients, key=st.integers(0, KEYS - 1), rows=ROWS)
    def submit(self, client: int, key: int, rows: list[tuple[int, int]]) -> str:
        batch = self.begin(client, key)
        self.add_rows(client, batch, rows)
        self.commit(client, batch)
        return batch

    @rule(target=batches, client=clients, key=st.integers(0, KEYS - 1))
    def begin(self, client: int, key: int) -> str:
        draft = BatchDraft(MODEL, GenerationParams(seed=0), WINDOW_S)
        begun = self.stores[client].batches.begin(draft, owner=self.owners[key])
        self.known[begun.batch_id] = Known(key, until=self.clock + UPLOAD_SECONDS)
        return begun.batch_id

    @rule(client=clients, batch=batches, rows=ROWS)
    def add_rows(self, client: int, batch: str, rows: list[tuple[int, int]]) -> None:
        known, store = self.known[batch], self.stores[client].batches
        new = [self.new_row(*row) for row in rows]
        if known.status is not BatchStatus.VALIDATING:
            with pytest.raises(BatchGone):
                store.add_rows(batch, new)
        elif self.waiting_of(known.key) + len(rows) > MOST_ROWS:
            with pytest.raises(RateLimited, match="batch-rows"):
                store.add_rows(batch, new)
        else:
            assert store.add_rows(batch, new) == []
            known.rows += [Row(*row) for row in rows]
            known.until = self.clock + UPLOAD_SECONDS

    @rule(client=clients, batch=batches)
    def commit(self, client: int, batch: str) -> None:
        known, store = self.known[batch], self.stores[client].batches
        if self.is_gone(batch) or known.status in (BatchStatus.FAILED,) or known.stopped == "up":
            with pytest.raises(BatchGone):
                store.commit(batch, "digest")
            return
        told = store.commit(batch, "digest")
        if known.status is BatchStatus.VALIDATING:
            known.status, known.until = BatchStatus.RUNNING, self.clock + WINDOW_S
            self.settle(known)
        assert told.status is known.status

    @rule(client=clients, batch=batches, reject=st.booleans())
    def give_up(self, client: int, batch: str, reject: bool) -> None:
        known, store = self.known[batch], self.stores[client].batches
        if known.status is not BatchStatus.VALIDATING:
            store.abandon(batch)  # changes nothing
        elif reject:
            assert store.reject(batch, [], "refused").status is BatchStatus.FAILED
            known.status, known.rows = BatchStatus.FAILED, []
        else:
            store.abandon(batch)
            del known.rows[:]
            known.status = BatchStatus.EXPIRED
            known.stopped = "gone"

    @rule(client=clients, batch=batches)
    def cancel(self, client: int, batch: str) -> None:
        known, store = self.known[batch], self.stores[client].batches
        if self.is_gone(batch):
            with pytest.raises(BatchNotFound):
                store.cancel(batch)
            return
        if known.status is BatchStatus.VALIDATING:
            known.status, known.rows, known.stopped = BatchStatus.CANCELLED, [], "up"
        elif known.status is BatchStatus.RUNNING:
            known.cancel_requested = True
            self.stop(known, "cancelled")
        assert store.cancel(batch).status is known.status

    @rule(client=clients, batch=batches)
    def delete(self, client: int, batch: str) -> None:
        known, store = self.known[batch], self.stores[client].batches
        if known.status.is_terminal:
            store.delete(batch)
            known.stopped, known.rows = "gone", []
        else:
            with pytest.raises(BatchNotEnded):
                store.delete(batch)

    # Workers

    @rule(target=works, client=clients, room=st.integers(0, 5), company=companies)
    def claim(self, client: int, room: int, company: Company | None) -> object:
        works = self.stores[client].claim_next(
            MODEL, worker=f"w{client}", rows=room, company=company
        )
        suspects, waiting = self.waiting(suspect=True), self.waiting(suspect=False)
        if self.turn == client and not suspects:
            self.turn = None
        if suspects and self.turn is None and company is not Company.SUSPECTS:
            self.turn = client
        if self.turn == client and company is Company.ANY:
            assert not works  # it empties itself
        elif suspects and (company is Company.SUSPECTS or self.turn == client):
            self.are_suspects(works, suspects, room, company)
        elif company is Company.SUSPECTS:
            assert not works
        else:
            self.fill(works, waiting, room)
            assert all(work.company is Company.ANY for work in works)
        for work in works:
            row = self.row(work.id)
            row.state, row.attempt = "running", row.attempt + 1
            row.lease_until = self.clock + LEASE_S
            assert work.attempt == row.attempt
            assert work.spec.seed == int(work.id.rpartition(":")[2])
        return multiple(*works)

    def are_suspects(
        self, works: list[Work], suspects: list[str], room: int, company: Company | None
    ) -> None:
        doomed = [row for row in suspects if self.row(row).crashes + 1 >= MAX_CRASHES]
        if len(doomed) < len(suspects) and room:
            self.fill(works, list(set(suspects) - set(doomed)), room)
            assert all(work.company is Company.SUSPECTS for work in works)
        elif doomed and not company:
            [work] = works
            assert work.id in doomed
            assert work.company is Company.NONE
        else:
            assert not works

    def fill(self, works: list[Work], waiting: list[str], room: int) -> None:
        outputs = [self.row(work.id).outputs for work in works]
        assert {work.id for work in works} <= set(waiting)
        assert len(works) == len(waiting) or sum(outputs) >= room
        assert sum(outputs[:-1]) < room or not works

    @rule(
        client=clients,
        held=st.lists(works, max_size=4, unique_by=lambda work: work.id),
        status=st.sampled_from(["succeeded", "failed", "cancelled"]),
    )
    def finish(self, client: int, held: list[Work], status: str) -> None:
        expected = [self.end(work, status) for work in held]
        ends = [row_end(work, status) for work in held]
        if held:
            assert self.stores[client].batches.finish(ends) == expected

    @rule(client=clients, held=st.lists(works, max_size=4), crashed=st.booleans())
    def hand_back(self, client: int, held: list[Work], crashed: bool) -> None:
        returned = 0
        for work in held:
            if self.owned(work):
                self.count_crash(work.id) if crashed else self.requeue(work.id)
                returned += 1
        assert self.stores[client].hand_back(held, crashed=crashed) == returned

    @rule(client=clients, held=st.lists(works, max_size=4))
    def heartbeat(self, client: int, held: list[Work]) -> None:
        newest = {work.id: work for work in sorted(held, key=lambda work: work.attempt)}
        lost = {row for row, work in newest.items() if not self.owned(work)}
        cancelled = set()
        for row in newest.keys() - lost:
            self.row(row).lease_until = self.clock + LEASE_S
            if self.batch_of(row).cancel_requested:
                cancelled.add(row)
        assert self.stores[client].heartbeat(WORKER, held) == (lost, cancelled)

    # Time

    @rule(seconds=st.sampled_from([1, 30, 61, 601, 3_001]))
    def move_clock(self, seconds: int) -> None:
        self.clock += seconds
        for store in self.stores:
            store.clock_offset_ms = self.clock * 1000

    @rule(client=clients)
    def lose_every_lease(self, client: int) -> None:
        self.move_clock(LEASE_S)
        self.sweep(client)

    @rule()
    def lose_the_turn(self) -> None:
        self.redis.delete(keys.TURN)
        self.turn = None

    @rule(client=clients)
    def sweep(self, client: int) -> None:
        self.redis.delete(keys.JANITOR)
        report = self.stores[client].sweep()
        assert report is not None
        requeued = exhausted = 0
        for batch, known in self.known.items():
            for number, row in enumerate(known.rows):
                if row.state == "running" and row.lease_until <= self.clock:
                    if self.count_crash(f"{batch}:{number}"):
                        exhausted += 1
                    else:
                        requeued += 1
        assert (report.requeued, report.exhausted) == (requeued, exhausted)
        for known in self.known.values():
            if known.status is BatchStatus.VALIDATING and known.until <= self.clock:
                known.status, known.rows, known.stopped = BatchStatus.EXPIRED, [], "gone"
            elif known.status is BatchStatus.RUNNING and known.until <= self.clock:
                self.stop(known, "expired")

    # What always holds

    @invariant()
    def records_are_as_expected(self) -> None:
        for batch, known in self.known.items():
            if self.is_gone(batch):
                with pytest.raises(BatchNotFound):
                    self.stores[0].batches.get(batch)
                continue
            told = self.stores[0].batches.get(batch)
            assert told.status is known.status
            for state in ("pending", "running", *ENDED):
                if known.stopped != "up":
                    assert getattr(told.counts, state) == known.count(state), state
            assert (self.redis.ttl(keys.BATCH + batch) > 0) is known.status.is_terminal

    @invariant()
    def what_is_counted_is_there(self) -> None:
        running = {
            f"{batch}:{n}"
            for batch, known in self.known.items()
            for n, row in enumerate(known.rows)
            if row.state == "running"
        }
        assert set(self.redis.zrange(keys.LEASES, 0, -1)) == running
        assert int(self.redis.hget(keys.ROWS_RUNNING, MODEL) or 0) == len(running)
        suspects = self.redis.zrange(keys.SUSPECTS + MODEL, 0, -1)
        assert sorted(suspects) == sorted(self.waiting(suspect=True))
        for key, owner in enumerate(self.owners):
            rows = [r for k in self.known.values() if k.key == key for r in k.charged]
            usage = self.redis.hmget(keys.USAGE + owner.key, "batch_rows", "batch_tokens")
            assert [int(n or 0) for n in usage] == [len(rows), sum(r.tokens for r in rows)]

    @invariant()
    def every_ended_row_is_told_once(self) -> None:
        for batch, known in self.known.items():
            if self.is_gone(batch):
                continue
            store = self.stores[0].batches
            told = [line.custom_id for line in store.results(batch, 0, 100)]
            assert len(told) == len(set(told)) == known.count("succeeded")
            failed = [line.custom_id for line in store.failures(batch, 0, 100)]
            assert len(failed) == len(set(failed))
            assert not set(told) & set(failed)
            if known.status.is_terminal:
                assert len(told) + len(failed) == len(known.rows)

    def teardown(self) -> None:
        """Whatever happened: time, sweeps and claims bring every batch to an end."""
        for _ in range(2 * MAX_CRASHES):
            self.lose_the_turn()
            while works := self.stores[0].claim_next(MODEL, worker="w0", rows=100):
                self.stores[0].batches.finish([row_end(work, "succeeded") for work in works])
            for store in self.stores:
                store.clock_offset_ms += 3_001_000
            self.redis.delete(keys.JANITOR)
            self.stores[1].sweep()
        for batch in self.known:
            if self.redis.exists(keys.BATCH + batch):
                assert self.stores[0].batches.get(batch).status.is_terminal
        left = {str(key).split(":batch_")[0] for key in self.redis.keys("slm:*")}
        assert not left & {"slm:leased", "slm:back", "slm:custom_ids"}
        for key in (keys.LEASES, keys.UPLOADS, keys.WINDOWS, keys.SHARES + MODEL):
            assert not self.redis.exists(key)

    # The model

    def new_row(self, tokens: int, outputs: int) -> BatchRow:
        self.names += 1
        return BatchRow(f"row {self.names}", self.names, ["Once"], {}, tokens, outputs)

    def batch_of(self, row_id: str) -> Known:
        return self.known[row_id.rpartition(":")[0]]

    def row(self, row_id: str) -> Row:
        return self.batch_of(row_id).rows[int(row_id.rpartition(":")[2])]

    def is_gone(self, batch: str) -> bool:
        return self.known[batch].stopped == "gone"

    def owned(self, work: Work) -> bool:
        if self.is_gone(work.id.rpartition(":")[0]):
            return False
        row = self.row(work.id)
        return row.state == "running" and row.attempt == work.attempt

    def waiting_of(self, key: int) -> int:
        return sum(len(known.charged) for known in self.known.values() if known.key == key)

    def waiting(self, *, suspect: bool) -> list[str]:
        return [
            f"{batch}:{n}"
            for batch, known in self.known.items()
            if known.status is BatchStatus.RUNNING
            for n, row in enumerate(known.rows)
            if row.state == "pending" and (row.crashes > 0) is suspect
        ]

    def end(self, work: Work, status: str) -> bool:
        if not self.owned(work):
            return False
        self.row(work.id).state = status
        self.settle(self.batch_of(work.id))
        return True

    def count_crash(self, row_id: str) -> bool:
        known, row = self.batch_of(row_id), self.row(row_id)
        row.crashes += 1
        if row.crashes < MAX_CRASHES or known.stopped:
            self.requeue(row_id)
            return False
        row.state = "failed"
        self.settle(known)
        return True

    def requeue(self, row_id: str) -> None:
        known = self.batch_of(row_id)
        self.row(row_id).state = known.stopped or "pending"
        self.settle(known)

    def stop(self, known: Known, how: str) -> None:
        if not known.stopped:
            known.stopped = how
            for row in known.charged:
                row.state = how
            self.settle(known)

    def settle(self, known: Known) -> None:
        if known.status is BatchStatus.RUNNING and not (
            known.count("pending") or known.count("running")
        ):
            known.status = BatchStatus(known.stopped or "completed")


def row_end(work: Work, status: str) -> RowEnd:
    outputs = [Output(index=0, text="a time", finish_reason="stop")]
    usage: Usage | None = USAGE
    error = JobError(code="out_of_memory", message="no luck") if status == "failed" else None
    return RowEnd(work, status, outputs, usage, "fp32", error)  # type: ignore[arg-type]


def search(redis: Redis, *, max_examples: int) -> None:
    profile = settings.get_profile(os.environ.get("SLM_HYPOTHESIS", "slm-stable"))
    machine = type("Machine", (BatchMachine,), {"redis": redis})
    if profile.derandomize:
        profile = settings(profile, max_examples=max_examples, stateful_step_count=40)
    run_state_machine_as_test(machine, settings=profile)


def test_on_fakeredis() -> None:
    with fakeredis.FakeRedis(decode_responses=True) as redis:
        search(redis, max_examples=100)


def test_on_redis(real_redis: Redis) -> None:
    search(real_redis, max_examples=40)
