"""The service in this process, on fakeredis, with a manifest of its own."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import fakeredis
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from slm_jobs.api_keys import KeySettings, NewKey
from slm_jobs.events import JobEvents
from slm_jobs.lookups import Resolve
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
    lines.append(
        '[small.templates.animal]\ntext = "A {animal} named {name}"\n'
        'variables = {animal = "what it is about", name = "how it is called"}\n'
    )
    manifest = tmp_path / "models.toml"
    manifest.write_text("\n".join(lines))
    return Settings(models_file=manifest, allowed_hosts="testserver")


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
def events(redis_process: fakeredis.FakeServer) -> JobEvents:
    return JobEvents(fakeredis.FakeAsyncRedis(server=redis_process, decode_responses=True))


@pytest.fixture
def key(store: JobStore) -> NewKey:
    """An ordinary key, with limits that no test reaches by accident."""
    return store.keys.create(KeySettings(name="test", requests_per_minute=100_000))


@pytest.fixture
def admin(store: JobStore) -> NewKey:
    return store.keys.create(KeySettings(name="boss", admin=True))


def bearer(key: NewKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.token}"}


@pytest.fixture
def dns() -> dict[str, list[str]]:
    """What names lead to; others do not exist."""
    return {"example.com": ["93.184.215.14", "2606:2800:21f::1"]}


@pytest.fixture
def resolve(dns: dict[str, list[str]]) -> Resolve:
    async def resolve(host: str, port: int) -> list[str]:
        if host in dns:
            return dns[host]
        with suppress(ValueError):
            return [str(ip_address(host))]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    return resolve


@pytest.fixture
def client(
    settings: Settings, store: JobStore, events: JobEvents, resolve: Resolve, key: NewKey
) -> Iterator[TestClient]:
    """Sends `key` with every request."""
    app = create_app(settings, store, events, resolve)
    with TestClient(app, follow_redirects=False, headers=bearer(key)) as client:
        yield client
