"""Why each key of ours may be in a Redis in which nothing waits or runs any more. A key of
`slm_jobs.keys` without a rule here is a mistake, and so is one in Redis without a living record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from redis import Redis

from slm_jobs import keys
from slm_jobs.tickets import queue_name

Rule = Callable[[Redis, str], bool]  # of Redis, and what comes after the prefix

_JOB_ENDS = {"succeeded", "failed", "cancelled", "expired"}
_BATCH_ENDS = {"completed", "cancelled", "expired", "failed"}
_CELERY = "slm:celery:"  # what kombu keeps of tickets that were taken, see `worker.factory`
_KOMBU = "_kombu."  # its queues


def _never(redis: Redis, rest: str) -> bool:
    """Only while something waits or runs."""
    return False


def _always(redis: Redis, rest: str) -> bool:
    return True


def _is_zero(key: str) -> Rule:
    """A hash of counters of what waits or runs."""
    return lambda redis, _: set(redis.hvals(key)) <= {"0"}


def _fades(prefix: str) -> Rule:
    return lambda redis, rest: redis.pttl(prefix + rest) != -1


def _names(key: str, record: str) -> Rule:
    """A sorted set of what there is a record of."""

    def rule(redis: Redis, rest: str) -> bool:
        members = cast("list[str]", redis.zrange(key + rest, 0, -1))
        return all(redis.exists(record + member.split(" ")[-1]) for member in members)

    return rule


def _belongs(prefix: str, record: str) -> Rule:
    """It goes when its record does."""
    return lambda redis, rest: bool(redis.exists(record + rest)) and redis.pttl(prefix + rest) != -1


def _of_key(redis: Redis, rest: str) -> bool:
    return bool(redis.exists(keys.KEY + rest))


def _is_job(redis: Redis, rest: str) -> bool:
    status, key = redis.hmget(keys.JOB + rest, "status", "key")
    listed = redis.zscore(keys.ENDED, f"{key} {rest}") and redis.zscore(keys.JOBS_OF + key, rest)
    return status in _JOB_ENDS and bool(listed) and redis.pttl(keys.JOB + rest) != -1


def _is_batch(redis: Redis, rest: str) -> bool:
    record = redis.hmget(keys.BATCH + rest, "status", "key", "pending", "running", "waiting_tokens")
    status, key, *open_ones = record
    listed = redis.zscore(keys.ENDED, f"{key} {rest}") and redis.zscore(keys.BATCHES_OF + key, rest)
    ended = status in _BATCH_ENDS and open_ones == ["0"] * 3
    return ended and bool(listed) and redis.pttl(keys.BATCH + rest) != -1


def _is_ended(redis: Redis, rest: str) -> bool:
    return all(
        redis.exists((keys.BATCH if work.startswith("batch_") else keys.JOB) + work)
        for work in (member.split(" ")[-1] for member in redis.zrange(keys.ENDED, 0, -1))
    )


def _is_usage(redis: Redis, rest: str) -> bool:
    held = redis.hmget(keys.USAGE + rest, "queued_tokens", "batch_rows", "batch_tokens")
    return _of_key(redis, rest) and set(held) <= {None, "0"}


def _is_delivery(redis: Redis, rest: str) -> bool:
    """It outlives its job, for a time."""
    status = redis.hget(keys.DELIVERY + rest, "status")
    return status in ("delivered", "failed") and redis.pttl(keys.DELIVERY + rest) != -1


def _is_worker(redis: Redis, rest: str) -> bool:
    return set(redis.hkeys(keys.WORKER_INFO)) == set(redis.zrange(keys.WORKERS, 0, -1))


def _is_deliveries(redis: Redis, rest: str) -> bool:
    ids = redis.lrange(keys.DELIVERIES_OF + rest, 0, -1)
    return len(set(ids)) == len(ids) and all(redis.exists(keys.DELIVERY + each) for each in ids)


RULES: dict[str, Rule] = {
    keys.JOB: _is_job,
    keys.STREAM: _belongs(keys.STREAM, keys.JOB),
    keys.SENT: _belongs(keys.SENT, keys.JOB),
    keys.WAITING: _never,
    keys.LEASES: _never,
    keys.QUEUE_DEADLINES: _never,
    keys.DEAD_LETTERS: _names(keys.DEAD_LETTERS, keys.JOB),
    keys.ENDED: _is_ended,
    keys.MODELS: _never,
    keys.RUNNING: _is_zero(keys.RUNNING),
    keys.QUEUED_TOKENS: _is_zero(keys.QUEUED_TOKENS),
    keys.SEQUENCE: _always,
    keys.TICKETS: _always,
    keys.WORKERS: _is_worker,
    keys.WORKER_INFO: _is_worker,
    keys.JANITOR: _fades(keys.JANITOR),
    keys.SWEPT_AT: _always,
    keys.QUIET: _fades(keys.QUIET),
    keys.DISCARDED: _never,
    keys.DISCARDED_KEY: _never,
    keys.NOTHING: _never,
    keys.KEY: lambda redis, rest: redis.zscore(keys.KEYS_MADE, rest) is not None,
    keys.KEYS_MADE: _names(keys.KEYS_MADE, keys.KEY),
    keys.USAGE: _is_usage,
    keys.IN_FLIGHT: _never,
    keys.JOBS_OF: _names(keys.JOBS_OF, keys.JOB),
    keys.IDEMPOTENCY: _fades(keys.IDEMPOTENCY),
    keys.SUSPECTS: _never,
    keys.TURN: _fades(keys.TURN),
    keys.TURN_JOBS: _fades(keys.TURN_JOBS),
    keys.APART: _is_worker,
    keys.CLAIMED: _fades(keys.CLAIMED),
    keys.BATCH: _is_batch,
    keys.ROWS: _belongs(keys.ROWS, keys.BATCH),
    keys.LEASED: _never,
    keys.BACK: _never,
    keys.RESULTS: _belongs(keys.RESULTS, keys.BATCH),
    keys.FAILURES: _belongs(keys.FAILURES, keys.BATCH),
    keys.CUSTOM_IDS: _never,
    keys.SHARES: _never,
    keys.ROWS_WAITING: _is_zero(keys.ROWS_WAITING),
    keys.ROW_TOKENS_WAITING: _is_zero(keys.ROW_TOKENS_WAITING),
    keys.ROWS_RUNNING: _is_zero(keys.ROWS_RUNNING),
    keys.BATCHES_OF: _names(keys.BATCHES_OF, keys.BATCH),
    keys.UPLOADS: _never,
    keys.WINDOWS: _never,
    keys.FILE: _fades(keys.FILE),
    keys.FILE_PARTS: _belongs(keys.FILE_PARTS, keys.FILE),
    keys.FILE_UPLOAD: _fades(keys.FILE_UPLOAD),
    keys.FILES_OF: _fades(keys.FILES_OF),
    keys.DELIVERY: _is_delivery,
    keys.ATTEMPTS: _belongs(keys.ATTEMPTS, keys.DELIVERY),
    keys.DELIVERIES_OF: _is_deliveries,
    keys.DUE: _never,
    keys.LANES: _never,
    keys.TELLING: _never,
    keys.PENDING_CALLBACKS: _never,
    keys.EXPIRED: _always,
    keys.CLAIMED_CALLBACKS: _fades(keys.CLAIMED_CALLBACKS),
    keys.UNDELIVERED: _fades(keys.UNDELIVERED),
    keys.CALLBACK_SECRETS: _of_key,
    queue_name(""): _never,
    # A killed worker's tickets stay there until Celery's visibility timeout; they carry no work.
    _CELERY: _always,
    _KOMBU: _always,
}


def orphans(redis: Redis) -> Iterator[str]:
    """Keys that no living record explains."""
    for key in redis.scan_iter("*", count=1_000):
        prefix = _prefix(key)
        explained = prefix is not None and RULES[prefix](redis, key.removeprefix(prefix))
        if not explained and redis.exists(key):  # else it has gone by itself meanwhile
            yield key


def awake(redis: Redis) -> list[str]:
    """The keys that show that something waits, runs, or is to be told."""
    found = ((key, _prefix(key)) for key in redis.scan_iter("slm:*", count=1_000))
    return [key for key, prefix in found if prefix and RULES[prefix] is _never]


def _prefix(key: str) -> str | None:
    return max((prefix for prefix in RULES if key.startswith(prefix)), key=len, default=None)
