"""The figures of docs/scaling.md are those that were measured, and what follows from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import pytest
from redis import Redis

from benchmarks.capacity import (
    CALLBACK,
    CPU,
    DAY,
    HOUR,
    IDEMPOTENCY,
    LOADS,
    Costs,
    Limits,
    Load,
    ends_at,
    fills_in,
    kept,
    need,
)
from benchmarks.capacity_tables import RESULT, tables
from slm_client.redis_server import RedisServer
from slm_jobs import keys
from slm_jobs.admission import Idempotency
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.callback_schemas import JOB_ENDS, CallbackTarget
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.docs.pages import read
from tests.slm_jobs.examples import claim, complete, spec
from tests.slm_jobs.test_callbacks import due, settle


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(RESULT.read_text("utf-8"))
    return recorded


@pytest.fixture(scope="module")
def costs(document: dict[str, Any]) -> Costs:
    return Costs.of(document)


def test_the_tables_are_those_of_the_recorded_run(document: dict[str, Any]) -> None:
    for name, table in tables(document).items():
        assert table in read("docs/scaling.md"), (
            f"docs/scaling.md needs this table ({name}):\n{table}"
        )


def test_growth_was_linear_to_95_percent(document: dict[str, Any]) -> None:
    for kind in ("rows", "jobs"):
        stands = document["growth"][kind]
        assert [stand["workers"] for stand in stands][:3] == [1, 2, 4]
        for stand in stands[:3]:
            assert len(stand["efficiency_by_round"]) == 5
            assert stand["efficiency"] >= 0.95


def test_the_page_tells_how_many_rounds_there_were(document: dict[str, Any]) -> None:
    growth = document["growth"]
    rounds = {
        stand["workers"]: len(stand["efficiency_by_round"])
        for stand in (*growth["rows"], *growth["jobs"])
    }
    assert rounds == {1: 5, 2: 5, 4: 5, 8: 5, 16: 1}
    page = " ".join(read("docs/scaling.md").split())
    assert "Medians of five rounds (16 workers: one)" in page
    [eight] = [stand for stand in growth["jobs"] if stand["workers"] == 8]
    worst, best = (f(eight["efficiency_by_round"]) for f in (min, max))
    assert f"rounds differ ({100 * worst:.0f} to {100 * best:.0f} % of linear)" in page
    shares = [100 * stand["cores"]["redis"] / stand["workers"] for stand in growth["rows"]]
    told = f"{min(shares):.1f} to {max(shares):.1f} % of a core of Redis for each worker"
    assert told in page


def test_what_a_job_leaves_beside_its_record_was_measured(redis_server: RedisServer) -> None:
    """The order of it: versions of Redis differ."""
    with Redis.from_url(redis_server.url, decode_responses=True) as redis:
        redis.flushall()
        store = JobStore(redis)
        owner = KeyProof.of(store.keys.create(KeySettings(name="k")).token)
        target = CallbackTarget(
            "https://hooks.example/ended", JOB_ENDS, False, "https://slm.example/jobs/1"
        )
        job = spec().model_copy(update={"callback": target})
        store.create(job, owner=owner, idempotency=Idempotency("a" * 64, "b" * 64))
        assert complete(store, claim(store))
        assert settle(store, due(store)[0])

        def taken(prefixes: Iterable[str]) -> int:
            found = (key for prefix in prefixes for key in redis.scan_iter(f"{prefix}*"))
            return sum(redis.memory_usage(key) or 0 for key in found)

        callback = taken((keys.DELIVERY, keys.ATTEMPTS, keys.DELIVERIES_OF))
        assert IDEMPOTENCY / 2 < taken([keys.IDEMPOTENCY]) < 1.2 * IDEMPOTENCY
        assert CALLBACK / 2 < callback < 1.2 * CALLBACK


def test_callbacks_are_kept_as_long_as_batches(costs: Costs) -> None:
    week = Settings.model_fields["batch_ttl_seconds"].default
    assert week == 7 * DAY
    bare = Load("", CPU, kept_seconds=HOUR)
    told = Load("", CPU, kept_seconds=HOUR, callbacks_seconds=week)
    more = need(costs, told, 1).memory_gb - need(costs, bare, 1).memory_gb
    assert more == pytest.approx(CPU / 200 * week * CALLBACK / 1e9)


def test_when_memory_is_full(costs: Costs) -> None:
    load = Load("", 1_000, tokens=100, kept_seconds=1_000, waiting_seconds=100, keyed=False)
    first, second = (10 * size for _, size in kept(costs, load))  # bytes a second
    most = need(costs, load, 1).memory_gb
    assert fills_in(costs, load, most * 1.001) == math.inf
    assert fills_in(costs, load, 50 * (first + second) / 1e9) == pytest.approx(50)
    after = (100 * first + 500 * second) / 1e9  # what waited has ended since
    assert fills_in(costs, load, after) == pytest.approx(500)


def test_the_rate_of_a_worker_was_measured() -> None:
    assert f"| 30M, slm_core int8 | {CPU:,} |" in read("benchmarks/LOG.md")


def test_needs_follow_from_costs(costs: Costs) -> None:
    load = Load("", 1_000, tokens=100, kept_seconds=1_000, keyed=False, waiting_seconds=0, slots=0)
    one, many = (need(costs, load, workers) for workers in (1, 50))
    assert one.per_second == 10
    assert one.memory_gb == pytest.approx(10 * 1_000 * costs.ended_job / 1e9)
    assert one.replayed_cores == pytest.approx((10 * costs.job_us + costs.worker_us) / 1e6)
    assert one.service_cores == pytest.approx(10 * costs.service_job_us / 1e6)
    assert many.per_second == 500
    assert many.connections == pytest.approx(50 * one.connections)


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_where_it_ends_all_of_it_is_used(costs: Costs, load: Load) -> None:
    limits = Limits()
    for name, workers in ends_at(costs, load, limits).items():
        below, above = (need(costs, load, int(workers) + n).shares(limits)[name] for n in (0, 1))
        assert below <= 1 <= above


def test_what_is_assumed_says_so() -> None:
    for load in LOADS:
        assert load.assumed == (load.tokens_per_second != CPU) == ("assumed" in load.name)
