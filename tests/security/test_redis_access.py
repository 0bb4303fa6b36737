"""What Redis may do to us, and who may do what in it by the rules of docs/security.md."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from kombu.exceptions import ContentDisallowed
from kombu.serialization import loads, prepare_accept_content
from redis import Redis, exceptions

from slm_client.redis_server import RedisServer
from slm_jobs import keys
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.batch_schemas import BatchDraft, BatchRow, RowEnd
from slm_jobs.callback_schemas import JOB_ENDS, CallbackTarget
from slm_jobs.manifest import Manifest
from slm_jobs.schemas import GenerationParams
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore, SweepReport
from tests.slm_jobs.examples import MODEL, OUTPUTS, USAGE, claim, complete, spec
from tests.slm_jobs.test_callbacks import LEASE_SECONDS, outcome
from worker.callbacks.janitor import sweep
from worker.factory import create_app
from worker.host import Host

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
Connect = Callable[[str], Redis]


def rules(user: str) -> list[str]:
    """As the page has them, in the form of Redis's ACL files."""
    [line] = re.findall(rf"^user {user} on (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    return [word for word in str(line).split() if not word.startswith(("#", ">"))]


def reads_only(redis: Redis) -> bool:
    """Whether this Redis knows rights to read and no more, as those of the page: from 7 on."""
    return int(redis.info("server")["redis_version"].partition(".")[0]) >= 7


@pytest.fixture
def connect(redis_server: RedisServer) -> Iterator[Connect]:
    """As one of the page's users."""
    with Redis.from_url(redis_server.url, decode_responses=True) as redis:
        redis.flushall()
        opened: list[Redis] = []

        def connect(user: str) -> Redis:
            words = rules(user)
            if not reads_only(redis):
                words = [word.replace("%R~", "~") for word in words]
            redis.execute_command("ACL", "SETUSER", user, "on", ">secret", *words)
            url = redis_server.url.replace("redis://", f"redis://{user}:secret@")
            opened.append(Redis.from_url(url, decode_responses=True))
            return opened[-1]

        yield connect
        for each in opened:
            each.close()
        for user in ("slm", "slm-callbacks"):
            redis.execute_command("ACL", "DELUSER", user)


def told(store: JobStore) -> KeyProof:
    """Ends a job that has a callback. Returns whose it was."""
    owner = KeyProof.of(store.keys.create(KeySettings(name="k")).token)
    target = CallbackTarget("https://hooks.example/", JOB_ENDS, link="https://slm.example/jobs/1")
    store.create(spec().model_copy(update={"callback": target}), owner=owner)
    assert complete(store, claim(store))
    return owner


def test_no_message_is_unpickled() -> None:
    """Whoever can write Redis still runs no code here."""
    host = SimpleNamespace(settings=Settings(), manifest=Manifest({}), concurrency=1)
    accepted = create_app(cast(Host, host)).conf.accept_content
    assert set(accepted) == {"json"}
    with pytest.raises(ContentDisallowed):
        loads(
            b"", "application/x-python-serialize", "binary", accept=prepare_accept_content(accepted)
        )


def test_the_service(connect: Connect) -> None:
    redis = connect("slm")
    store = JobStore(redis)
    owner = told(store)
    batch = store.batches.begin(BatchDraft(MODEL, GenerationParams(seed=1)), owner=owner).batch_id
    store.batches.add_rows(batch, [BatchRow("a", 1, ["Once"], {}, 10, 1)])
    store.batches.commit(batch, "digest")
    [work] = store.claim_next(MODEL, worker="w1", rows=1)
    assert store.batches.finish([RowEnd(work, "succeeded", OUTPUTS, USAGE, "fp32")]) == [True]
    upload = store.files.upload(owner.key)
    upload.write(b"a")
    store.files.delete(upload.commit("a", "batch"))
    assert store.sweep() is not None
    assert store.callbacks.secrets(owner.key)
    for forbidden in ("FLUSHALL", "KEYS *", "CONFIG SET dir /tmp", "ACL LIST", "GET elsewhere"):
        with pytest.raises(exceptions.NoPermissionError):
            redis.execute_command(*forbidden.split())


def test_the_page_names_tests_that_there_are() -> None:
    named = set(re.findall(r"[\w/]*test_[\w]+\*?\.py", PAGE.read_text("utf-8")))
    root = PAGE.parents[1]
    assert named
    assert [name for name in named if not list(root.glob(f"tests/**/{Path(name).name}"))] == []


def test_who_delivers_callbacks(
    connect: Connect, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    owner = told(JobStore(connect("slm")))
    redis = connect("slm-callbacks")
    store = JobStore(redis)
    [due] = store.callbacks.claim(10, lease_seconds=LEASE_SECONDS)[0]
    assert due.secrets
    assert store.callbacks.settle([outcome(due, delivered=True)]) == [True]
    with pytest.raises(exceptions.RedisError, match=r"can't access|permissions"):
        store.keys.create(KeySettings(name="mine", admin=True))
    for forbidden in (
        f"HGETALL {keys.JOB}{due.id.partition('-')[0]}",
        f"LPUSH slm:serve:{MODEL} x",
        f"PUBLISH {keys.COMMANDS}w1 x",
        "CONFIG GET *",
    ):
        with pytest.raises(exceptions.NoPermissionError):
            redis.execute_command(*forbidden.split())
    reports: list[SweepReport] = []
    asyncio.run(asyncio.wait_for(sweep(store, reports.append), 30))  # it sees that it may not
    assert reports == []
    assert "sweep failed" not in caplog.text
    with Redis.from_url(redis_server.url, decode_responses=True) as admin:
        if reads_only(admin):
            with pytest.raises(exceptions.NoPermissionError):
                redis.hset(keys.KEY + owner.key, "admin", "1")
