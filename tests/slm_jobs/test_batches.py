"""Batches in the store: uploads, ceilings, idempotency, fair share, suspects, results."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from slm_jobs import keys
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.batch_schemas import (
    Batch,
    BatchDraft,
    BatchRow,
    BatchStatus,
    RowEnd,
    RowProblem,
)
from slm_jobs.batches import UPLOAD_SECONDS
from slm_jobs.errors import (
    BatchGone,
    BatchInProgress,
    BatchNotFound,
    IdempotencyConflict,
    KeyRejected,
    RateLimited,
)
from slm_jobs.schemas import Company, GenerationParams, JobError, Output, Usage, Work
from slm_jobs.store import JobStore
from slm_jobs.tickets import queue_name
from tests.slm_jobs.conftest import MakeStore
from tests.slm_jobs.examples import LEASE_MS, MODEL, WORKER, create, sweep

USAGE = Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)


def owner(store: JobStore, **limits: Any) -> KeyProof:
    return KeyProof.of(store.keys.create(KeySettings(name="k", **limits)).token)


def row(number: int, *, tokens: int = 10, outputs: int = 1, **overrides: Any) -> BatchRow:
    return BatchRow(f"row-{number}", number + 1, [f"Prompt {number}"], overrides, tokens, outputs)


def submit(store: JobStore, who: KeyProof, rows: int, *, tokens: int = 10, **draft: Any) -> Batch:
    params = GenerationParams(seed=100, **draft.pop("params", {}))
    begun = store.batches.begin(BatchDraft(MODEL, params, **draft), owner=who)
    store.batches.add_rows(begun.batch_id, [row(i, tokens=tokens) for i in range(rows)])
    return store.batches.commit(begun.batch_id, "digest")


def claim(store: JobStore, rows: int, worker: str = "w1", **options: Any) -> list[Work]:
    return store.claim_next(MODEL, worker=worker, rows=rows, **options)


def succeed(store: JobStore, works: list[Work]) -> None:
    outputs = [Output(index=0, text="a time", finish_reason="stop")]
    ends = [RowEnd(work, "succeeded", outputs, USAGE, "fp32") for work in works]
    assert all(store.batches.finish(ends))


def test_rows_run_and_are_told_in_order_of_completion(store: JobStore) -> None:
    batch = submit(store, owner(store), 3, params={"max_tokens": 7, "n": 2})
    first, second, third = claim(store, 3)
    assert [work.spec.seed for work in (first, second, third)] == [100, 102, 104]
    assert (first.spec.max_tokens, first.spec.prompts) == (7, ["Prompt 0"])
    assert first.row is not None
    assert first.row.custom_id == "row-0"

    succeed(store, [third])
    succeed(store, [first])
    error = JobError(code="engine_fault", message="no luck")
    assert store.batches.finish([RowEnd(second, "failed", [], None, None, error)]) == [True]

    lines = store.batches.results(batch.id, 0, 10)
    assert [(line.seq, line.custom_id) for line in lines] == [(1, "row-2"), (2, "row-0")]
    assert lines[0].prompts == ["Prompt 2"]
    assert lines[0].outputs[0].text == "a time"
    assert [line.custom_id for line in store.batches.results(batch.id, 1, 10)] == ["row-0"]
    [failure] = store.batches.failures(batch.id, 0, 10)
    assert (failure.custom_id, failure.error) == ("row-1", error)

    ended = store.batches.get(batch.id)
    assert ended.status is BatchStatus.COMPLETED
    assert ended.usage == Usage(prompt_tokens=6, completion_tokens=8, total_tokens=14)
    assert (ended.counts.succeeded, ended.counts.failed) == (2, 1)


def test_a_stale_attempt_changes_nothing(store: JobStore) -> None:
    batch = submit(store, owner(store), 1)
    [stale] = claim(store, 1)
    assert store.hand_back([stale]) == 1
    [work] = claim(store, 1)
    assert work.attempt == 2
    end = RowEnd(stale, "succeeded", [], USAGE, "fp32")
    assert store.batches.finish([end]) == [False]
    assert store.batches.get(batch.id).counts.running == 1


def test_a_job_goes_before_rows(store: JobStore) -> None:
    submit(store, owner(store), 2)
    job = create(store)
    [work] = claim(store, 5)
    assert work.id == job.id
    assert len(claim(store, 5)) == 2


def test_a_feeder_asks_for_rows_only(store: JobStore) -> None:
    create(store)
    assert claim(store, 5, jobs=False) == []
    submit(store, owner(store), 1)
    assert [work.row is not None for work in claim(store, 5, jobs=False)] == [True]


def test_a_claim_takes_as_many_outputs_as_there_is_room_for(store: JobStore) -> None:
    who = owner(store)
    begun = store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=who)
    store.batches.add_rows(begun.batch_id, [row(i, outputs=4) for i in range(4)])
    store.batches.commit(begun.batch_id, "digest")
    assert len(claim(store, 5)) == 2
    assert claim(store, 0) == []


@pytest.mark.parametrize("first", [0, 1])
def test_keys_share_fairly_whatever_they_have(store: JobStore, first: int) -> None:
    keys_of = [owner(store), owner(store)]
    counts = [40, 8] if first == 0 else [8, 40]
    batches = [submit(store, who, n).id for who, n in zip(keys_of, counts, strict=True)]
    served = [work.id.partition(":")[0] for work in claim(store, 16)]
    assert sorted(served.count(batch) for batch in batches) == [8, 8]


def test_shares_are_of_tokens_not_of_rows(store: JobStore) -> None:
    long, short = owner(store), owner(store)
    big = submit(store, long, 30, tokens=100).id
    small = submit(store, short, 30, tokens=25).id
    served = [work.id.partition(":")[0] for work in claim(store, 25)]
    assert (served.count(big), served.count(small)) == (5, 20)


def test_batches_of_a_key_share_its_share(store: JobStore) -> None:
    one, two = owner(store), owner(store)
    ids = [submit(store, one, 20).id, submit(store, one, 20).id, submit(store, two, 20).id]
    served = [work.id.partition(":")[0] for work in claim(store, 20)]
    assert [served.count(batch) for batch in ids] == [5, 5, 10]


def test_who_comes_later_starts_level(store: JobStore) -> None:
    """What was served before does not count, nor does having waited."""
    first, second = owner(store), owner(store)
    submit(store, first, 100)
    claim(store, 50)
    late = submit(store, second, 100).id
    served = [work.id.partition(":")[0] for work in claim(store, 20)]
    assert served.count(late) == 10


def test_ceilings_refuse_a_batch_and_charges_go_back(store: JobStore) -> None:
    who = owner(store, batch_rows=5, batch_tokens=1_000)
    first = submit(store, who, 3)
    begun = store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=who)
    with pytest.raises(RateLimited, match="batch-rows") as refused:
        store.batches.add_rows(begun.batch_id, [row(i) for i in range(3)])
    assert refused.value.retry_after == 1
    store.batches.abandon(begun.batch_id)
    begun = store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=who)
    store.batches.add_rows(begun.batch_id, [row(i) for i in range(2)])
    with pytest.raises(RateLimited) as refused:  # more than it will ever have, with the next
        store.batches.add_rows(begun.batch_id, [row(9, tokens=1_000)])
    assert refused.value.retry_after is None
    store.batches.abandon(begun.batch_id)
    store.batches.cancel(first.id)
    submit(store, who, 5)


def test_a_custom_id_may_come_once(store: JobStore) -> None:
    begun = store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=owner(store))
    assert store.batches.add_rows(begun.batch_id, [row(0), row(1)]) == []
    again = row(1)._replace(line=9)
    [duplicate] = store.batches.add_rows(begun.batch_id, [again, row(2)])
    assert duplicate == (again, 2)
    assert store.batches.commit(begun.batch_id, "digest").counts.total == 3


def test_an_idempotency_key_makes_one_batch(store: JobStore) -> None:
    who, draft = owner(store), BatchDraft(MODEL, GenerationParams())
    first = store.batches.begin(draft, owner=who, idempotency_key="a")
    with pytest.raises(BatchInProgress):
        store.batches.begin(draft, owner=who, idempotency_key="a")
    store.batches.add_rows(first.batch_id, [row(0)])
    store.batches.commit(first.batch_id, "digest")
    store.batches.commit(first.batch_id, "digest")  # its reply was lost
    with pytest.raises(BatchGone):
        store.batches.commit(first.batch_id, "other")
    assert store.batches.begin(draft, owner=who, idempotency_key="a") == (first.batch_id, "digest")

    store.batches.cancel(first.batch_id)
    store.batches.delete(first.batch_id)
    with pytest.raises(BatchGone):
        store.batches.begin(draft, owner=who, idempotency_key="a")


def test_an_upload_that_was_given_up_frees_its_key(store: JobStore, redis: Redis) -> None:
    who, draft = owner(store), BatchDraft(MODEL, GenerationParams())
    first = store.batches.begin(draft, owner=who, idempotency_key="a")
    store.batches.abandon(first.batch_id)
    second = store.batches.begin(draft, owner=who, idempotency_key="a")
    store.batches.add_rows(second.batch_id, [row(0)])
    store.clock_offset_ms += UPLOAD_SECONDS * 1000
    sweep(store, redis)
    with pytest.raises(BatchGone):
        store.batches.commit(second.batch_id, "digest")
    assert store.batches.begin(draft, owner=who, idempotency_key="a").digest is None
    assert not redis.exists(keys.ROWS + second.batch_id)


def test_a_job_and_a_batch_do_not_share_an_idempotency_key(store: JobStore) -> None:
    from slm_jobs.admission import Idempotency
    from tests.slm_jobs.examples import spec

    who = owner(store)
    store.create(spec(), owner=who, tokens=1, idempotency=Idempotency("a", "body"))
    with pytest.raises(IdempotencyConflict):
        store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=who, idempotency_key="a")


def test_nobody_begins_a_batch_without_a_key(store: JobStore) -> None:
    with pytest.raises(KeyRejected):
        store.batches.begin(
            BatchDraft(MODEL, GenerationParams()), owner=KeyProof("abcdefghij", "x")
        )


def test_a_rejected_batch_tells_its_errors_and_holds_no_rows(store: JobStore) -> None:
    begun = store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=owner(store))
    store.batches.add_rows(begun.batch_id, [row(0)])
    problem = RowProblem(line=2, code="invalid_row", message="no prompt")
    batch = store.batches.reject(begun.batch_id, [problem], "digest")
    assert (batch.status, batch.errors) == (BatchStatus.FAILED, [problem])
    assert claim(store, 1) == []


def test_skipped_rows_are_failures_that_cannot_run_again(store: JobStore) -> None:
    begun = store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=owner(store))
    store.batches.add_invalid(begun.batch_id, [RowProblem(line=1, code="invalid_row", message="x")])
    batch = store.batches.commit(begun.batch_id, "digest")
    assert (batch.status, batch.counts.failed) == (BatchStatus.COMPLETED, 1)
    [failure] = store.batches.failures(batch.id, 0, 10)
    assert (failure.line, failure.custom_id, failure.prompts) == (1, None, [])
    assert store.batches.unsuccessful(batch.id, 0, 10) == []


def test_cancel_keeps_results_and_tells_the_rest(store: JobStore) -> None:
    batch = submit(store, owner(store), 5)
    done, running = claim(store, 2)
    succeed(store, [done])
    told = store.batches.cancel(batch.id)
    assert (told.status, told.cancel_requested) == (BatchStatus.RUNNING, True)
    assert store.heartbeat(WORKER, [running]).cancelled == {running.id}
    partial = [Output(index=0, text="a", finish_reason="cancelled")]
    assert store.batches.finish([RowEnd(running, "cancelled", partial, USAGE, "fp32")]) == [True]
    assert store.batches.get(batch.id).status is BatchStatus.CANCELLED

    failures = store.batches.failures(batch.id, 0, 10)
    assert [line.custom_id for line in failures] == ["row-1", "row-2", "row-3", "row-4"]
    assert failures[0].outputs == partial
    assert [line.seq for line in store.batches.failures(batch.id, 2, 1)] == [3]
    again = store.batches.unsuccessful(batch.id, 0, 10)
    assert [(seq, r.overrides["seed"]) for seq, r in again] == [
        (1, 101),
        (2, 102),
        (3, 103),
        (4, 104),
    ]


def test_what_has_not_started_expires_with_the_window(store: JobStore, redis: Redis) -> None:
    batch = submit(store, owner(store), 3, window_seconds=60)
    [running] = claim(store, 1)
    store.clock_offset_ms += 60_000
    store.heartbeat(WORKER, [running])
    sweep(store, redis)
    assert store.batches.get(batch.id).counts.expired == 2
    succeed(store, [running])
    ended = store.batches.get(batch.id)
    assert (ended.status, ended.counts.succeeded) == (BatchStatus.EXPIRED, 1)
    assert [line.error.code for line in store.batches.failures(batch.id, 0, 9) if line.error] == [
        "expired",
        "expired",
    ]


def test_suspects_run_among_themselves_and_then_alone(store: JobStore, redis: Redis) -> None:
    batch = submit(store, owner(store), 6)
    crashed = claim(store, 3)
    store.clock_offset_ms += LEASE_MS
    sweep(store, redis)
    assert claim(store, 1, worker="busy", company=Company.ANY) == []  # it empties itself now
    [mate] = claim(store, 1, worker="third", company=Company.ANY)  # others go on
    assert mate.company is Company.ANY
    suspects = claim(store, 2, worker="busy")
    suspects += claim(store, 9, worker="busy", company=Company.SUSPECTS)
    assert [(s.id, s.attempt, s.company) for s in suspects] == [
        (row.id, 2, Company.SUSPECTS) for row in crashed
    ]
    assert claim(store, 9, worker="busy", company=Company.SUSPECTS) == []

    store.clock_offset_ms += LEASE_MS  # another crash would end them
    succeed(store, [mate])
    sweep(store, redis)
    assert claim(store, 9, worker="w2", company=Company.SUSPECTS) == []
    for row in crashed:
        [suspect] = claim(store, 9, worker="w2")
        assert (suspect.id, suspect.attempt, suspect.company) == (row.id, 3, Company.NONE)
        succeed(store, [suspect])
    assert len(claim(store, 9, worker="w2")) == 2
    assert store.batches.get(batch.id).counts.succeeded == 4


def test_a_suspect_job_has_a_place(make_store: MakeStore, redis: Redis) -> None:
    """Its line may be empty, which once was divided by."""
    store = make_store()
    busy = WORKER.model_copy(update={"tokens_per_second": {MODEL: 100.0}})
    job = create(store)
    claim(store, 0)
    store.clock_offset_ms += LEASE_MS
    sweep(store, redis)
    store.heartbeat(busy, [])
    fresh = make_store(clock_offset_ms=store.clock_offset_ms)  # which has not asked for rates yet
    queue = fresh.get(job.id).queue
    assert queue is not None
    assert (queue.ahead, queue.estimated_wait_seconds) == (0, 0.0)


def test_a_poison_row_fails_after_its_attempts(make_store: MakeStore, redis: Redis) -> None:
    store = make_store(max_crashes=2)
    batch = submit(store, owner(store), 2)
    for _ in range(2):
        claim(store, 1)
        store.clock_offset_ms += LEASE_MS
        sweep(store, redis)
    [failure] = store.batches.failures(batch.id, 0, 9)
    assert failure.error is not None
    assert (failure.custom_id, failure.error.code) == ("row-0", "attempts_exhausted")
    succeed(store, claim(store, 9))
    assert store.batches.get(batch.id).status is BatchStatus.COMPLETED


def test_rows_get_a_ticket_for_each_worker(store: JobStore, redis: Redis) -> None:
    for name in ("w1", "w2", "w3"):
        store.heartbeat(WORKER.model_copy(update={"id": name}), [])
    submit(store, owner(store), 50)
    assert redis.llen(queue_name(MODEL)) == 3


def test_batches_are_their_owners_business(store: JobStore) -> None:
    mine, other = (store.keys.create(KeySettings(name=name)) for name in "ab")
    admin = store.keys.create(KeySettings(name="c", admin=True))
    batch = submit(store, KeyProof.of(mine.token), 1)
    assert store.batches.get(batch.id, viewer=mine).id == batch.id
    assert store.batches.get(batch.id, viewer=admin).id == batch.id
    with pytest.raises(BatchNotFound):
        store.batches.get(batch.id, viewer=other)


def test_pages_go_from_the_newest_to_the_oldest(store: JobStore) -> None:
    key = store.keys.create(KeySettings(name="k"))
    who = KeyProof.of(key.token)
    made = [submit(store, who, 1).id for _ in range(5)]
    found: list[str] = []
    below = None
    while True:
        page, below = store.batches.page(key.id, limit=2, below=below)
        found += [batch.id for batch in page]
        if below is None:
            break
    assert found == made[::-1]


def test_a_batch_is_forgotten_after_its_time(store: JobStore, redis: Redis) -> None:
    key = store.keys.create(KeySettings(name="k"))
    batch = submit(store, KeyProof.of(key.token), 1)
    succeed(store, claim(store, 1))
    assert redis.ttl(keys.RESULTS + batch.id) > 0
    store.clock_offset_ms += 604_800_000
    sweep(store, redis)
    assert store.batches.page(key.id) == ([], None)
    left = [name for name in redis.keys("slm:*") if batch.id in name]
    assert left == []


def test_the_largest_seed_wraps(store: JobStore) -> None:
    begun = store.batches.begin(
        BatchDraft(MODEL, GenerationParams(seed=2**63 - 65)), owner=owner(store)
    )
    store.batches.add_rows(begun.batch_id, [row(i) for i in range(3)])
    store.batches.commit(begun.batch_id, "digest")
    assert [work.spec.seed for work in claim(store, 3)] == [2**63 - 65, 0, 1]


# What a review found


def test_a_batch_that_is_deleted_before_its_turn_stops_nobody(store: JobStore) -> None:
    """It stands in its line until then, behind who has been served less."""
    large, small = owner(store), owner(store)
    others = submit(store, large, 5, tokens=50)
    deleted = submit(store, small, 1, tokens=120)
    while not store.batches.get(deleted.id).status.is_terminal:
        succeed(store, claim(store, 1))
    store.batches.delete(deleted.id)
    while works := claim(store, 1):
        succeed(store, works)
    assert store.batches.get(others.id).status is BatchStatus.COMPLETED


def test_jobs_come_between_suspects(store: JobStore, redis: Redis) -> None:
    submit(store, owner(store), 3)
    for _ in range(2):
        assert len(claim(store, 3)) == 3
        store.clock_offset_ms += LEASE_MS + 1
        sweep(store, redis)
        redis.delete(keys.TURN, keys.TURN_JOBS)
    jobs = [create(store).id for _ in range(3)]

    [suspect] = claim(store, 8, "w2")
    assert (suspect.company, suspect.row is not None) == (Company.NONE, True)
    succeed(store, [suspect])
    [first] = claim(store, 8, "w2")
    [second] = claim(store, 8, "w2", company=Company.ANY)  # others come along, for a second
    assert [first.id, second.id] == jobs[:2]
    redis.delete(keys.TURN_JOBS)  # which is over
    assert claim(store, 8, "w2", company=Company.ANY) == []
    [next_suspect] = claim(store, 8, "w2")
    assert next_suspect.company is Company.NONE
    assert claim(store, 8, "w3")[0].id == jobs[2]  # a worker whose turn it is not runs jobs
    succeed(store, [next_suspect])
    assert claim(store, 8, "w2")[0].company is Company.NONE  # no job waits


def test_what_a_lost_reply_held_goes_back_without_a_crash(store: JobStore) -> None:
    submit(store, owner(store), 3)
    job = create(store)
    first = claim(store, 8, claim=1)
    assert [work.id for work in first] == [job.id]
    lost = claim(store, 8, claim=2, answered=1)
    assert len(lost) == 3
    again = claim(store, 8, claim=3, answered=1)
    assert [(w.id, w.attempt, w.company) for w in again] == [(w.id, 2, Company.ANY) for w in lost]
    assert not any(store.batches.finish([RowEnd(w, "succeeded", [], USAGE, "f") for w in lost]))
    assert claim(store, 8, claim=4, answered=3) == []
    succeed(store, again)
    assert store.get(job.id).attempt == 1


def test_a_nearly_full_redis_hands_out_jobs_and_no_rows(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(store, owner(store), 1)
    monkeypatch.setattr(store._memory, "nearly_full", lambda: True)
    assert claim(store, 8) == []
    job = create_anyway(store, monkeypatch)
    assert [work.id for work in claim(store, 8)] == [job]
    monkeypatch.setattr(store._memory, "nearly_full", lambda: False)
    assert len(claim(store, 8)) == 1


def create_anyway(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """As if it had come before Redis was nearly full."""
    with monkeypatch.context() as patch:
        patch.setattr(store._memory, "nearly_full", lambda: False)
        return create(store).id


def test_a_batch_cancelled_while_its_rows_come_in_promises_none(store: JobStore) -> None:
    begun = store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=owner(store))
    store.batches.add_rows(begun.batch_id, [row(0), row(1)])
    store.batches.add_invalid(
        begun.batch_id, [RowProblem(line=3, code="invalid_row", message="no")]
    )
    ended = store.batches.cancel(begun.batch_id)
    assert ended.status is BatchStatus.CANCELLED
    assert set(ended.counts.model_dump().values()) == {0}
    assert store.batches.failures(begun.batch_id, 0, 10) == []


def test_calls_of_an_upload_may_be_repeated(store: JobStore) -> None:
    batches = store.batches
    begun = batches.begin(BatchDraft(MODEL, GenerationParams()), owner=owner(store))
    problem = RowProblem(line=3, code="invalid_row", message="no")
    for _ in range(2):
        assert batches.add_rows(begun.batch_id, [row(0)], call=1) == []
    for _ in range(2):
        [duplicate] = batches.add_rows(begun.batch_id, [row(1), row(0)], call=2)
        assert (duplicate.row, duplicate.first_line) == (row(0), 1)
    for _ in range(2):
        batches.add_invalid(begun.batch_id, [problem], call=3)
    counts = batches.commit(begun.batch_id, "digest").counts
    assert (counts.total, counts.pending, counts.failed) == (3, 2, 1)
    assert len(claim(store, 8)) == 2


def test_what_is_refused_leaves_no_custom_id_behind(store: JobStore) -> None:
    begun = store.batches.begin(
        BatchDraft(MODEL, GenerationParams()), owner=owner(store, batch_rows=2)
    )
    with pytest.raises(RateLimited):
        store.batches.add_rows(begun.batch_id, [row(i) for i in range(3)])
    assert store.batches.add_rows(begun.batch_id, [row(0), row(1)]) == []


def test_an_upload_that_fell_silent_gives_its_idempotency_key_back(store: JobStore) -> None:
    """Also where no janitor has come by."""
    who = owner(store, batch_rows=1)
    draft = BatchDraft(MODEL, GenerationParams())
    begun = store.batches.begin(draft, owner=who, idempotency_key="k")
    store.batches.add_rows(begun.batch_id, [row(0)])
    with pytest.raises(BatchInProgress):
        store.batches.begin(draft, owner=who, idempotency_key="k")
    store.clock_offset_ms += UPLOAD_SECONDS * 1000 + 1
    again = store.batches.begin(draft, owner=who, idempotency_key="k")
    assert store.batches.add_rows(again.batch_id, [row(0)]) == []
    with pytest.raises(BatchNotFound):
        store.batches.get(begun.batch_id)


def test_what_is_large_is_freed_bit_by_bit(store: JobStore, redis: Redis) -> None:
    begun = store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=owner(store))
    for first in range(0, 12_000, 500):
        store.batches.add_rows(begun.batch_id, [row(i) for i in range(first, first + 500)])
    store.batches.commit(begun.batch_id, "digest")
    assert redis.lrange(keys.DISCARDED, 0, -1)  # the custom_ids
    store.batches.cancel(begun.batch_id)
    store.batches.delete(begun.batch_id)
    assert redis.llen(keys.DISCARDED) == 2
    left = []
    while redis.exists(keys.DISCARDED):
        names = redis.lrange(keys.DISCARDED, 0, -1)
        left.append(sum(redis.hlen(name) for name in names))
        sweep(store, redis)
    assert left == sorted(left, reverse=True)
    assert len(left) >= 4
    assert not redis.keys(keys.DISCARDED_KEY + "*")
    assert not redis.keys(keys.ROWS + "*")
