from __future__ import annotations

from collections.abc import Iterator

import pytest

from slm_client import Client
from tests.slm_client.fake_service import FakeService
from tests.slm_client.processes import STANDINS


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLM_URL", "SLM_REDIS_URL", "SLM_THREADS", "SLM_MODELS_FILE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[Client]:
    """Talks to `service` without a network."""
    with Client("http://fake", transport=service.transport()) as client:
        yield client


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children take our stand-ins for uvicorn and celery. Redis is real."""
    monkeypatch.setenv("PYTHONPATH", str(STANDINS))
