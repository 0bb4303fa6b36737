from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from slm_client import Client
from tests.slm_client.fake_service import KEY, FakeService
from tests.slm_client.processes import STANDINS


def _is_ours(name: str) -> bool:
    return name.startswith("SLM_")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*filter(_is_ours, os.environ), "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def service() -> FakeService:
    """Knows one key, `KEY`."""
    return FakeService(tokens={KEY: "admin"})


@pytest.fixture
def client(service: FakeService) -> Iterator[Client]:
    """Talks to `service` without a network."""
    with Client("http://fake", KEY, transport=service.transport()) as client:
        yield client


@pytest.fixture
def url(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`service` on a real port; commands find it and its key through the environment."""
    with service.served() as url:
        monkeypatch.setenv("SLM_URL", url)
        monkeypatch.setenv("SLM_API_KEY", KEY)
        yield url


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children take our stand-ins for uvicorn and celery. Redis is real."""
    monkeypatch.setenv("PYTHONPATH", str(STANDINS))
