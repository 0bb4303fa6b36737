"""The service in this process, on fakeredis, with a manifest of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from slm_jobs.schemas import WorkerInfo
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore

WORKER = WorkerInfo(id="w1", models=["tiny", "unserved"], slots=8, pid=7, host="here")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """`tiny` (the default; 128 tokens) and `small` (512 tokens)."""
    lines = []
    for name, context_length in (("tiny", 128), ("small", 512)):
        (tmp_path / name).mkdir()
        config = {"model": {"context_length": context_length}, "tokenizer": "gpt2"}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        lines.append(f'[{name}]\ncheckpoint = "{name}"\n')
    manifest = tmp_path / "models.toml"
    manifest.write_text("\n".join(lines))
    return Settings(models_file=manifest)


@pytest.fixture
def redis_process() -> fakeredis.FakeServer:
    """Set `connected` to False, and it is down."""
    return fakeredis.FakeServer()


@pytest.fixture
def redis(redis_process: fakeredis.FakeServer) -> Iterator[fakeredis.FakeRedis]:
    with fakeredis.FakeRedis(server=redis_process, decode_responses=True) as redis:
        yield redis


@pytest.fixture
def store(redis: fakeredis.FakeRedis) -> JobStore:
    return JobStore(redis)


@pytest.fixture
def client(settings: Settings, store: JobStore) -> Iterator[TestClient]:
    with TestClient(create_app(settings, store), follow_redirects=False) as client:
        yield client
