"""The figures of docs/scaling.md are those that were measured, and what follows from them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.capacity import CPU, LOADS, Costs, Limits, Load, ends_at, need
from benchmarks.capacity_tables import RESULT, tables
from tests.docs.pages import read


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


def test_the_rate_of_a_worker_was_measured() -> None:
    assert f"| 30M, slm_core int8 | {CPU:,} |" in read("benchmarks/LOG.md")


def test_needs_follow_from_costs(costs: Costs) -> None:
    load = Load("", 1_000, tokens=100, kept_seconds=1_000, waiting_seconds=0, slots=0)
    one, many = (need(costs, load, workers) for workers in (1, 50))
    assert one.per_second == 10
    assert one.memory_gb == pytest.approx(10 * 1_000 * costs.ended_job / 1e9)
    assert one.redis_cores == pytest.approx((10 * costs.job_us + costs.worker_us) / 1e6)
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
