"""docs/metrics.md names every series there is, with its type and labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from prometheus_client import CollectorRegistry

from api.metrics import LIMITS, ApiMetrics
from slm_core.stats import EngineStats
from slm_jobs.fleet import FleetStand, ModelStand
from worker.callbacks.metrics import OUTCOMES, CallbackMetrics
from worker.lane import Measured
from worker.metrics import WorkerMetrics
from worker.step_stats import StepStats

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text("utf-8")
Series = dict[str, tuple[str, frozenset[str]]]  # name -> type and labels


def documented(section: str) -> Series:
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    [found] = (part for part in text if part.startswith(section))
    rows = re.findall(r"^\| `(slm_\w+)` \| (\w+) \|(.*?)\| .+ \|$", found, re.MULTILINE)
    assert rows
    return {name: (kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in rows}


def there(registry: CollectorRegistry) -> Series:
    found = {}
    for family in registry.collect():
        if family.name.startswith("slm_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = frozenset(label for sample in family.samples for label in sample.labels)
            found[name] = (family.type, labels - {"le"})
    return found


def test_of_the_api_and_the_fleet() -> None:
    stand = FleetStand({"m": ModelStand(*[0] * len(ModelStand._fields))}, 0, 0, 0.0, 0, 0)
    store = Mock()
    store.fleet.read.return_value = stand
    metrics = ApiMetrics(store, ["m"])
    metrics.answered({"method": "GET"}, 200, 0.1)
    assert there(metrics._shown) == {**documented("The fleet"), **documented("The api")}


def test_of_workers() -> None:
    measured = {"m": Measured(StepStats(), EngineStats(), 0)}
    assert there(WorkerMetrics({"m": 4}, lambda: measured).registry) == documented("Workers")


def test_of_callback_processes() -> None:
    assert there(CallbackMetrics(["m"]).registry) == documented("Callback processes")


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_are_named(limit: str) -> None:
    assert f"`{limit}`" in PAGE


def test_labels_name_nobody() -> None:
    found = map(documented, ("The fleet", "The api", "Workers", "Callback processes"))
    assert {label for series in found for _, labels in series.values() for label in labels} == {
        *("model_name", "finished_reason", "code", "phase"),
        *("method", "route", "status", "limit", "outcome"),
    }
    assert len(OUTCOMES) < 20
