"""The page of a worker or callback process, and what sweeps count."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from slm_client.redis_server import free_port
from slm_jobs.metrics import EndMetrics, MetricsServer, new_registry
from slm_jobs.settings import Settings
from slm_jobs.store import SweepReport


@pytest.fixture
def registry() -> CollectorRegistry:
    return new_registry()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def server(registry: CollectorRegistry, port: int) -> Iterator[MetricsServer]:
    server = MetricsServer(Settings(metrics_port=port), registry)
    server.start()
    yield server
    server.stop()


def get(port: int, path: str = "/metrics") -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


@pytest.mark.usefixtures("server")
def test_a_page(port: int) -> None:
    answer = get(port)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    assert "process_resident_memory_bytes" in names
    assert get(port, "/metrics?name=x").status_code == 200


@pytest.mark.usefixtures("server")
def test_a_port_that_is_taken_stops_nobody(
    registry: CollectorRegistry, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    second = MetricsServer(Settings(metrics_port=port), registry)
    with caplog.at_level(logging.INFO):
        second.start()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"no /metrics at 127.0.0.1 port {port}" in record.getMessage()
    assert "SLM_METRICS_PORT" in record.getMessage()
    second.stop()
    assert get(port).status_code == 200


def test_a_host_that_is_none_stops_nobody(
    registry: CollectorRegistry, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    MetricsServer(Settings(metrics_port=port, metrics_host="256.1.1.1"), registry).start()
    assert "no /metrics at 256.1.1.1" in caplog.text


def test_without_a_port_there_is_no_server(registry: CollectorRegistry) -> None:
    before = threading.active_count()
    server = MetricsServer(Settings(), registry)
    server.start()
    assert threading.active_count() == before
    server.stop()


def test_who_says_nothing_holds_up_nobody(registry: CollectorRegistry, port: int) -> None:
    server = MetricsServer(Settings(metrics_port=port), registry)
    server.start()
    with closing(socket.create_connection(("127.0.0.1", port))):
        assert get(port).status_code == 200
    server.stop()


def test_a_folder_that_is_the_apis_is_noticed(
    registry: CollectorRegistry,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/somewhere")
    server = MetricsServer(Settings(metrics_port=port), registry)
    server.start()
    server.stop()
    assert "PROMETHEUS_MULTIPROC_DIR is for the api alone" in caplog.text


def test_what_sweeps_did_is_counted(registry: CollectorRegistry) -> None:
    ends = EndMetrics(registry, ["m"])
    assert value(registry, "slm_leases_recovered_total") == 0
    failure = {"model_name": "m", "code": "attempts_exhausted"}
    assert value(registry, "slm_request_failure_total", **failure) == 0
    assert value(registry, "slm_dead_lettered_total", model_name="m") == 0
    ends.swept(SweepReport(2, 3, 1, ("m", "new"), ("m",)))
    assert value(registry, "slm_leases_recovered_total") == 5
    assert value(registry, "slm_request_failure_total", **failure) == 2
    assert value(registry, "slm_dead_lettered_total", model_name="m") == 1
    assert value(registry, "slm_dead_lettered_total", model_name="new") == 1
