"""The outbox: what happens is told once or again, never not at all; no lane holds up others."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

from slm_jobs import callbacks, keys
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.batch_schemas import BatchDraft, BatchRow, RowEnd
from slm_jobs.callback_schemas import (
    BATCH_ENDS,
    JOB_ENDS,
    Attempt,
    CallbackTarget,
    DeliveryStatus,
    DueDelivery,
    Outcome,
)
from slm_jobs.errors import StoreUnavailable, TooManyCallbacks
from slm_jobs.schemas import GenerationParams, Job
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import (
    ERROR,
    LEASE_MS,
    MODEL,
    OUTPUTS,
    USAGE,
    claim,
    complete,
    spec,
    sweep,
)

URL = "https://hooks.example/ended"
LINK = "https://slm.example/jobs/1"
LEASE_SECONDS = 60.0


@pytest.fixture
def owner(store: JobStore) -> KeyProof:
    settings = KeySettings(name="k", callback_hosts=["10.0.0.0/8"])
    return KeyProof.of(store.keys.create(settings).token)


def target(*events: str, url: str = URL, outputs: bool = False) -> CallbackTarget:
    return CallbackTarget(url, events or JOB_ENDS, outputs, LINK)


def submit(store: JobStore, owner: KeyProof, callback: CallbackTarget, **fields: Any) -> Job:
    return store.create(spec(**fields).model_copy(update={"callback": callback}), owner=owner).job


def ended_job(store: JobStore, owner: KeyProof, callback: CallbackTarget | None = None) -> Job:
    job = submit(store, owner, callback or target())
    assert complete(store, claim(store))
    return store.get(job.id)


def submit_batch(store: JobStore, owner: KeyProof, rows: int, *events: str) -> str:
    callback = CallbackTarget(URL, events or BATCH_ENDS, link=LINK)
    draft = BatchDraft(MODEL, GenerationParams(seed=1), callback=callback, name="night")
    batch_id = store.batches.begin(draft, owner=owner).batch_id
    store.batches.add_rows(
        batch_id, [BatchRow(f"row-{i}", i + 1, ["Once"], {}, 10, 1) for i in range(rows)]
    )
    store.batches.commit(batch_id, "digest")
    return batch_id


def run_rows(store: JobStore, rows: int) -> None:
    works = store.claim_next(MODEL, worker="w1", rows=rows)
    store.batches.finish([RowEnd(work, "succeeded", OUTPUTS, USAGE, "fp32") for work in works])


def due(store: JobStore, room: int = 100, **options: Any) -> list[DueDelivery]:
    return store.callbacks.claim(room, lease_seconds=LEASE_SECONDS, **options)[0]


def body(claimed: DueDelivery) -> Any:
    assert claimed.payload
    return json.loads(claimed.payload)


def outcome(claimed: DueDelivery, pause: float | None = None, **fields: Any) -> Outcome:
    attempt = Attempt(at=datetime(2026, 1, 1, tzinfo=UTC), duration_ms=5, status=200)
    return Outcome(claimed.id, claimed.claim, attempt, pause, **fields)


def settle(store: JobStore, claimed: DueDelivery, pause: float | None = None, **f: Any) -> bool:
    [done] = store.callbacks.settle([outcome(claimed, pause, **f)])
    return done


def status(store: JobStore, work_id: str) -> list[DeliveryStatus]:
    return [delivery.status for delivery in store.callbacks.of(work_id)]


def pass_time(store: JobStore, seconds: float) -> None:
    store.clock_offset_ms += round(seconds * 1000)


# What is told


def test_a_job_that_ended_is_told_once(store: JobStore, owner: KeyProof) -> None:
    job = ended_job(store, owner)
    [claimed] = due(store)
    assert claimed.id == f"{job.id}-succeeded"
    assert claimed.type == "job.succeeded"
    [delivery] = store.callbacks.of(job.id)
    assert (delivery.id, delivery.of, delivery.url) == (claimed.id, job.id, claimed.url)
    assert claimed.url == URL
    assert not claimed.revoked
    assert claimed.lane == f"{owner.key} hooks.example:443"
    assert claimed.allowed == ("10.0.0.0/8",)
    told = body(claimed)
    assert datetime.fromisoformat(told.pop("timestamp")) == delivery.created_at
    assert told == {
        "type": "job.succeeded",
        "data": {
            "id": job.id,
            "status": "succeeded",
            "model": MODEL,
            "created_at": job.model_dump(mode="json")["created_at"],
            "started_at": job.model_dump(mode="json")["started_at"],
            "finished_at": job.model_dump(mode="json")["finished_at"],
            "usage": USAGE.model_dump(),
            "error": None,
            "metadata": {},
            "url": LINK,
        },
    }
    assert due(store) == []
    assert settle(store, claimed, delivered=True)
    assert status(store, job.id) == [DeliveryStatus.DELIVERED]
    pass_time(store, 1e6)
    assert due(store) == []


def test_outputs_are_in_it_only_where_asked_for(store: JobStore, owner: KeyProof) -> None:
    ended_job(store, owner, target(outputs=True))
    [claimed] = due(store)
    assert body(claimed)["data"]["outputs"] == [OUTPUTS[0].model_dump()]


def test_every_end_of_a_job_is_told(store: JobStore, redis: Redis, owner: KeyProof) -> None:
    failed = submit(store, owner, target())
    assert store.fail(claim(store), ERROR)
    cancelled = submit(store, owner, target())
    store.cancel(cancelled.id)
    lost = submit(store, owner, target())
    for _ in range(3):
        [work] = store.claim_next(MODEL, worker="w1")
        store.clock_offset_ms += LEASE_MS + 1
        sweep(store, redis)
        assert work.id == lost.id
    told = {claimed.id: body(claimed)["data"] for claimed in due(store)}
    assert told.keys() == {f"{failed.id}-failed", f"{cancelled.id}-cancelled", f"{lost.id}-failed"}
    assert told[f"{failed.id}-failed"]["error"] == ERROR.model_dump()
    assert told[f"{lost.id}-failed"]["error"]["code"] == "attempts_exhausted"


def test_running_is_told_at_each_attempt(store: JobStore, owner: KeyProof) -> None:
    job = submit(store, owner, target("running"))
    assert store.hand_back([claim(store)]) == 1
    complete(store, claim(store))
    told = due(store)
    assert [delivery.id for delivery in told] == [f"{job.id}-running-1", f"{job.id}-running-2"]


def test_who_asked_for_nothing_is_told_nothing(store: JobStore, owner: KeyProof) -> None:
    store.create(spec(), owner=owner)
    submit(store, owner, target("failed"))
    complete(store, claim(store))
    complete(store, claim(store))
    assert due(store) == []


def test_a_batch_is_told_of_at_its_end(store: JobStore, owner: KeyProof) -> None:
    batch_id = submit_batch(store, owner, 2)
    run_rows(store, 1)
    assert due(store) == []
    run_rows(store, 1)
    [claimed] = due(store)
    assert claimed.id == f"{batch_id}-completed"
    told = body(claimed)
    assert told["type"] == "batch.completed"
    assert (told["data"]["status"], told["data"]["name"]) == ("completed", "night")
    assert told["data"]["counts"]["succeeded"] == 2
    assert told["data"]["url"] == LINK


def test_a_batch_tells_each_tenth_once(store: JobStore, owner: KeyProof) -> None:
    batch_id = submit_batch(store, owner, 25, "running", "progress", "completed")
    while store.batches.get(batch_id).counts.pending:
        run_rows(store, 4)
    ids = [delivery.id.removeprefix(f"{batch_id}-") for delivery in store.callbacks.of(batch_id)]
    # 4 rows are 16 %: the second step passes two tenths at once, and tells the latest
    assert ids == ["running", *[f"progress-{n}" for n in range(1, 10)], "completed"]
    assert len(due(store, per_lane=100)) == len(ids)


def test_a_batch_that_is_cancelled_is_told_of(store: JobStore, owner: KeyProof) -> None:
    batch_id = submit_batch(store, owner, 3)
    store.batches.cancel(batch_id)
    [claimed] = due(store)
    assert claimed.id == f"{batch_id}-cancelled"


# Attempts


def test_an_attempt_that_failed_is_made_again_in_time(store: JobStore, owner: KeyProof) -> None:
    job = ended_job(store, owner)
    [first] = due(store)
    assert settle(store, first, 5.0)
    claimed, wait = store.callbacks.claim(10)
    assert claimed == []
    assert wait == pytest.approx(5, abs=1)
    pass_time(store, 5)
    [second] = due(store)
    assert second.payload == first.payload
    assert second.id == first.id
    assert (first.tries, second.tries) == (0, 1)
    assert settle(store, second)
    [delivery] = store.callbacks.of(job.id)
    assert delivery.status is DeliveryStatus.FAILED
    assert len(delivery.attempts) == 2


def test_a_claim_whose_process_died_comes_back(store: JobStore, owner: KeyProof) -> None:
    ended_job(store, owner)
    [lost] = due(store)
    pass_time(store, LEASE_SECONDS + 1)
    [again] = due(store)
    assert again.tries == 0
    assert not settle(store, lost, delivered=True)
    assert settle(store, again, delivered=True)
    assert not settle(store, again, delivered=True)


def test_a_claim_that_lapsed_and_nobody_took_may_settle(store: JobStore, owner: KeyProof) -> None:
    job = ended_job(store, owner)
    [claimed] = due(store)
    pass_time(store, LEASE_SECONDS + 1)
    assert settle(store, claimed, delivered=True)
    assert status(store, job.id) == [DeliveryStatus.DELIVERED]
    assert due(store) == []


def test_many_settle_in_one_call_each_for_itself(store: JobStore, owner: KeyProof) -> None:
    for _ in range(3):
        ended_job(store, owner)
    claimed = due(store)
    outcomes = [outcome(each, delivered=True) for each in claimed]
    outcomes[1] = outcomes[1]._replace(claim=99)
    assert store.callbacks.settle(outcomes) == [True, False, True]
    assert store.callbacks.settle([]) == []


# Lanes


def another_key(store: JobStore) -> KeyProof:
    return KeyProof.of(store.keys.create(KeySettings(name="other")).token)


def hosts(claimed: list[DueDelivery]) -> list[str]:
    return [each.lane.split()[1].partition(".")[0] for each in claimed]


def owners(claimed: list[DueDelivery]) -> Counter[str]:
    return Counter(each.key for each in claimed)


def test_a_lane_never_holds_more_than_its_share(store: JobStore, owner: KeyProof) -> None:
    for _ in range(5):
        ended_job(store, owner, target(url="https://slow.example/"))
    ended_job(store, owner)
    claimed, wait = store.callbacks.claim(100, per_lane=2)
    assert hosts(claimed) == ["slow", "slow", "hooks"]
    assert wait > 1  # what else is due is of a lane that is full

    lane = claimed[0].lane
    for running, limits, more in (
        ({lane: 2}, {}, 0),
        ({lane: 1}, {}, 1),
        ({lane: 1}, {lane: 1}, 0),
    ):
        found = store.callbacks.claim(100, per_lane=2, running=running, limits=limits)[0]
        assert len(found) == more
        store.callbacks.release(found)
    assert len(store.callbacks.claim(100, per_lane=2, limits={lane: 1})[0]) == 1


def test_a_host_is_called_so_often_whosever_lanes_lead_there(
    store: JobStore, owner: KeyProof
) -> None:
    keys_ = [owner, *(another_key(store) for _ in range(4))]
    for key in keys_:
        store.callbacks.secrets(key.key)
        for _ in range(3):
            ended_job(store, key, target(url="https://slow.example/"))
    claimed, wait = store.callbacks.claim(100, per_lane=2, per_host=5)
    assert len(claimed) == 5
    assert wait > 1
    assert max(owners(claimed).values()) == 2
    ended_job(store, keys_[-1])
    running = Counter(each.lane for each in claimed)
    assert hosts(store.callbacks.claim(95, per_lane=2, per_host=5, running=running)[0]) == ["hooks"]


def test_a_key_leaves_as_much_room_as_it_takes(store: JobStore, owner: KeyProof) -> None:
    for number in range(12):
        ended_job(store, owner, target(url=f"https://host-{number}.example/"))
    claimed, wait = store.callbacks.claim(8)
    assert len(claimed) == 4
    assert wait > 1
    running = Counter(each.lane for each in claimed)
    assert store.callbacks.claim(4, running=running)[0] == []
    other = another_key(store)
    for number in range(4):
        ended_job(store, other, target(url=f"https://other-{number}.example/"))
    found = store.callbacks.claim(4, running=running)[0]
    assert owners(found) == {other.key: 2}
    running += Counter(each.lane for each in found)
    assert store.callbacks.claim(2, running=running)[0] == []  # which stays for a third
    third = another_key(store)
    ended_job(store, third)
    assert owners(store.callbacks.claim(2, running=running)[0]) == {third.key: 1}
    assert len(store.callbacks.claim(1)[0]) == 1  # who holds nothing may take the last


def test_keys_take_turns(store: JobStore, owner: KeyProof) -> None:
    """Though one has asked for much, and before the others."""
    keys_ = [owner, *(another_key(store) for _ in range(2))]
    for key in keys_:
        store.callbacks.secrets(key.key)
        for number in range(20):
            ended_job(store, key, target(url=f"https://{key.key}-{number}.example/"))
    claimed = store.callbacks.claim(20)[0]
    assert owners(claimed) == dict.fromkeys((key.key for key in keys_), 5)
    running = Counter(each.lane for each in claimed if each.key != keys_[2].key)
    [first, *_] = store.callbacks.claim(16, running=running)[0]
    assert first.key == keys_[2].key  # who holds least comes first


def test_lanes_of_one_key_hide_nobody(store: JobStore, redis: Redis, owner: KeyProof) -> None:
    other = another_key(store)
    with redis.pipeline() as pipeline:
        for number in range(4_200):
            lane = f"{owner.key} host-{number}.example:443"
            pipeline.zadd(keys.DUE + lane, {f"job_{number}-failed": 1})
            pipeline.zadd(keys.LANES + owner.key, {lane: 1})
        pipeline.zadd(keys.TELLING, {owner.key: 1})
        pipeline.execute()
    ended_job(store, other)
    running = {f"{owner.key} host-{number}.example:443": 8 for number in range(16)}
    claimed, _ = store.callbacks.claim(128, running=running)
    assert owners(claimed) == {other.key: 1}


def test_who_cannot_be_served_leaves_the_rest_to_others(store: JobStore, owner: KeyProof) -> None:
    other = another_key(store)
    for number in range(9):
        ended_job(store, other, target(url=f"https://host-{number}.example/"))
    ended_job(store, owner, target(url="https://shut.example/"))
    claimed, _ = store.callbacks.claim(10, limits={f"{owner.key} shut.example:443": 0})
    assert owners(claimed) == {other.key: 5}


def test_it_tells_when_something_more_may_be_claimed(store: JobStore, owner: KeyProof) -> None:
    assert store.callbacks.claim(10)[1] == 60
    for name in ("first", "second"):
        ended_job(store, owner, target(url=f"https://{name}.example/"))
    first, second = due(store)
    settle(store, first, 5.0)
    settle(store, second, 20.0)
    assert store.callbacks.claim(10)[1] == pytest.approx(5, abs=1)
    assert store.callbacks.claim(10, limits={first.lane: 0})[1] == pytest.approx(20, abs=1)
    assert store.callbacks.claim(10, running={first.lane: 8, second.lane: 8})[1] == 60


def test_keys_without_a_secret_get_theirs_one_by_one(store: JobStore, owner: KeyProof) -> None:
    for key in (owner, another_key(store)):
        ended_job(store, key)
    first, wait = store.callbacks.claim(10)
    assert wait == 0
    second, wait = store.callbacks.claim(10)
    assert wait > 1
    for [claimed] in (first, second):
        [secret] = store.callbacks.secrets(claimed.key)
        assert claimed.secrets == (secret.secret,)
    assert first[0].secrets != second[0].secrets


def test_room_bounds_what_is_claimed(store: JobStore) -> None:
    for number in range(5):
        key = another_key(store)
        store.callbacks.secrets(key.key)
        ended_job(store, key, target(url=f"http://host-{number}.example/"))
    claimed, wait = store.callbacks.claim(3)
    assert len(claimed) == 3
    assert wait > 1  # there is no room
    assert claimed[0].lane.endswith(" host-0.example:80")


# What may go wrong


def test_a_claim_whose_reply_was_lost_comes_with_the_next(
    store: JobStore, owner: KeyProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        ended_job(store, owner)
    kept = due(store, 2)
    call = store.callbacks._run

    def lost(*args: Any) -> Any:
        call(*args)
        raise StoreUnavailable("it hung up")

    with monkeypatch.context() as patched:
        patched.setattr(store.callbacks, "_run", lost)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                due(store)
    again = due(store)
    assert len(again) == 2
    assert [each.tries for each in again] == [0, 0]
    assert {each.id for each in kept} & {each.id for each in again} == set()
    assert all(settle(store, each, delivered=True) for each in (*kept, *again))


def test_a_claim_that_comes_late_is_given_nothing(
    store: JobStore, owner: KeyProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood in a socket while its process, which gave up, made the next one."""
    ended_job(store, owner)
    calls: list[tuple[Any, ...]] = []

    def stuck(*args: Any) -> Any:
        calls.append(args)
        raise StoreUnavailable("it does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(store.callbacks, "_run", stuck)
        with pytest.raises(StoreUnavailable):
            due(store)
    [claimed] = due(store)
    ended_job(store, owner)
    assert store.callbacks._run(*calls[0]) == [0, [], []]
    assert len(due(store)) == 1
    assert settle(store, claimed, delivered=True)


def test_a_record_that_cannot_be_read_holds_up_no_other(
    store: JobStore, redis: Redis, owner: KeyProof, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [ended_job(store, owner) for _ in range(3)]
    redis.hset(keys.DELIVERY + f"{jobs[1].id}-succeeded", "record_usage", "[")
    claimed = due(store)
    assert [each.payload is None for each in claimed] == [False, True, False]
    assert f"callback {jobs[1].id}-succeeded cannot be read" in caplog.text
    assert settle(store, claimed[1], 5.0)


def test_what_a_later_version_has_added_is_left_out(
    store: JobStore, redis: Redis, owner: KeyProof
) -> None:
    job = ended_job(store, owner, target(outputs=True))
    before = redis.hgetall(keys.JOB + job.id)
    for record in (keys.DELIVERY + f"{job.id}-succeeded", keys.JOB + job.id):
        prefix = "record_" if record.startswith(keys.DELIVERY) else ""
        usage = {**json.loads(before["usage"]), "cached_tokens": 1}
        outputs = [{**output, "logprobs": []} for output in json.loads(before["outputs"])]
        redis.hset(record, prefix + "usage", json.dumps(usage))
        redis.hset(record, prefix + "outputs", json.dumps(outputs))
        redis.hset(record, prefix + "later", "x")
    [claimed] = due(store)
    assert body(claimed)["data"]["usage"] == USAGE.model_dump()
    assert body(claimed)["data"]["outputs"] == [OUTPUTS[0].model_dump()]
    assert store.get(job.id).usage == USAGE


def test_what_is_due_without_a_record_is_dropped(
    store: JobStore, redis: Redis, owner: KeyProof
) -> None:
    job = ended_job(store, owner)
    redis.delete(keys.DELIVERY + f"{job.id}-succeeded")
    assert due(store) == []
    left = {name.split(":")[1] for name in redis.keys("slm:*")}
    assert not left & {"delivery", "due", "lanes", "telling", "pending_callbacks"}


def test_callbacks_of_a_revoked_key_are_told_as_such(store: JobStore, owner: KeyProof) -> None:
    ended_job(store, owner)
    store.keys.revoke(owner.key)
    [claimed] = due(store)
    assert claimed.revoked


def test_so_many_are_pending_and_no_more(
    store: JobStore, redis: Redis, owner: KeyProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "MOST_PENDING", 2)
    ended_job(store, owner)
    store.callbacks.check_room(owner.key)
    job = ended_job(store, owner)
    with pytest.raises(TooManyCallbacks, match="2 callbacks of this key are pending"):
        store.callbacks.check_room(owner.key)
    store.callbacks.check_room("another")
    for claimed in due(store):
        settle(store, claimed, 5.0)
    with pytest.raises(TooManyCallbacks):
        store.callbacks.check_room(owner.key)
    store.delete(job.id)
    store.callbacks.check_room(owner.key)
    pass_time(store, 5)
    [claimed] = due(store)
    settle(store, claimed, delivered=True)
    assert not redis.exists(keys.PENDING_CALLBACKS)


def test_a_claim_that_is_released_is_due_at_once(store: JobStore, owner: KeyProof) -> None:
    job = ended_job(store, owner)
    [claimed] = due(store)
    store.callbacks.release([claimed])
    store.callbacks.release([])
    [again] = due(store)
    assert (again.tries, store.callbacks.of(job.id)[0].attempts) == (0, [])
    store.callbacks.release([claimed])  # stale
    assert due(store) == []


# To see, and to repair


def test_what_was_given_up_can_be_found_and_replayed(store: JobStore, owner: KeyProof) -> None:
    jobs = [ended_job(store, owner) for _ in range(3)]
    for claimed in due(store):
        settle(store, claimed)
        pass_time(store, 1)
    page, cursor = store.callbacks.failed(owner.key, limit=2)
    rest, end = store.callbacks.failed(owner.key, limit=2, cursor=cursor)
    assert [each.of for each in page + rest] == [job.id for job in reversed(jobs)]
    assert end is None
    assert store.callbacks.failed("another") == ([], None)

    assert store.callbacks.replay([page[0].id, "unknown"]) == 1
    assert store.callbacks.replay([page[0].id]) == 0  # it is pending
    [again] = due(store)
    assert again.id == page[0].id
    assert again.tries == 0
    assert len(store.callbacks.of(page[0].of)[0].attempts) == 1
    assert len(store.callbacks.failed(owner.key)[0]) == 2
    settle(store, again, delivered=True)
    assert status(store, page[0].of) == [DeliveryStatus.DELIVERED]
    assert store.callbacks.replay([again.id]) == 1


def test_deliveries_outlive_the_record_and_expire_after_their_end(
    store: JobStore, real_redis: Redis, owner: KeyProof
) -> None:
    if store.callbacks._redis is not real_redis:
        pytest.skip("fakeredis has a clock of its own")
    job = ended_job(store, owner)
    real_redis.delete(keys.job(job.id))
    [claimed] = due(store)
    assert body(claimed)["data"]["id"] == job.id
    names = [keys.DELIVERY + claimed.id, keys.DELIVERIES_OF + job.id]
    assert [real_redis.ttl(name) for name in names] == [-1, -1]
    settle(store, claimed)
    assert all(0 < real_redis.ttl(name) <= 604_800 for name in names)
    store.callbacks.replay([claimed.id])
    assert [real_redis.ttl(name) for name in names] == [-1, -1]


def test_the_list_stays_as_long_as_anything_in_it_is_pending(
    store: JobStore, redis: Redis, owner: KeyProof
) -> None:
    job = submit(store, owner, target("running", "succeeded"))
    work = claim(store)
    [running] = due(store)
    settle(store, running, delivered=True)
    name = keys.DELIVERIES_OF + job.id
    assert redis.ttl(name) > 0
    assert complete(store, work)
    assert redis.ttl(name) == -1
    [succeeded] = due(store)
    store.callbacks.replay([running.id])
    settle(store, succeeded, delivered=True)
    assert redis.ttl(name) == -1
    [running] = due(store)
    settle(store, running, delivered=True)
    assert redis.ttl(name) > 0


def test_deleting_a_job_or_batch_forgets_its_callbacks(
    store: JobStore, redis: Redis, owner: KeyProof
) -> None:
    job = ended_job(store, owner)
    [claimed] = due(store)
    settle(store, claimed)
    pending = ended_job(store, owner)
    batch_id = submit_batch(store, owner, 1)
    store.batches.cancel(batch_id)
    store.delete(job.id)
    store.delete(pending.id)
    store.batches.delete(batch_id)
    left = {name.split(":")[1] for name in redis.keys("slm:*")}
    assert not left & {"delivery", "attempts", "deliveries_of", "due", "lanes", "undelivered"}
    assert not left & {"telling", "pending_callbacks"}
    assert due(store) == []


def test_a_key_has_one_secret_until_it_is_rotated(store: JobStore, owner: KeyProof) -> None:
    [first] = store.callbacks.secrets(owner.key)
    assert first.secret.startswith("whsec_")
    assert first.expires_at is None
    assert store.callbacks.secrets(owner.key) == [first]
    second, old = store.callbacks.rotate_secret(owner.key, overlap_seconds=60)
    assert (second.expires_at, old.secret) == (None, first.secret)
    assert old.expires_at is not None
    assert old.expires_at - datetime.now(UTC) <= timedelta(seconds=61)
    ended_job(store, owner)
    assert due(store)[0].secrets == (second.secret, first.secret)
    third, *others = store.callbacks.rotate_secret(owner.key, overlap_seconds=30)
    assert len({third.secret, *[each.secret for each in others]}) == 3
    assert all(each.expires_at and each.expires_at <= old.expires_at for each in others)
    pass_time(store, 61)
    assert store.callbacks.secrets(owner.key) == [third]
    store.callbacks.rotate_secret(owner.key, overlap_seconds=60)
    assert len(store.callbacks.rotate_secret(owner.key, overlap_seconds=0)) == 1


def test_the_latest_four_secrets_sign(store: JobStore, owner: KeyProof) -> None:
    made = [store.callbacks.secrets(owner.key)[0].secret]
    for overlap in (600, 60, 6_000, 600, 600):
        [newest, *_] = store.callbacks.rotate_secret(owner.key, overlap_seconds=overlap)
        made.append(newest.secret)
    found = store.callbacks.secrets(owner.key)
    assert [each.secret for each in found] == made[:-5:-1]
    assert [each.expires_at is None for each in found] == [True, False, False, False]
    ended_job(store, owner)
    assert due(store)[0].secrets == tuple(made[:-5:-1])
    pass_time(store, 601)
    assert [each.secret for each in store.callbacks.secrets(owner.key)] == made[-1:]
    ended_job(store, owner)
    assert due(store)[0].secrets == tuple(made[-1:])


def test_another_key_has_another_secret(store: JobStore) -> None:
    assert store.callbacks.secrets("one") != store.callbacks.secrets("two")
