"""Shared fixtures. Every server that a test needs is its own, on a free port, and stopped again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slm_client.redis_server import RedisServer, free_port


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis for the whole run; tests flush it."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
