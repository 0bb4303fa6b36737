"""API keys in the store, on fakeredis and on real Redis."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from slm_jobs import keys
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.errors import KeyRejected, NoSuchKey
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import spec

SETTINGS = KeySettings(name="reports", requests_per_minute=5, callback_hosts=["example.org"])


def test_a_key_is_known_by_its_token_only(store: JobStore, redis: Redis) -> None:
    made = store.keys.create(SETTINGS)
    assert made.token.startswith(made.prefix)
    assert len(made.token) > len(made.prefix) + 43

    key = store.keys.authorise(KeyProof.of(made.token))
    assert (key.id, key.name, key.admin, key.requests_per_minute) == (made.id, "reports", False, 5)
    assert (key.jobs_in_flight, key.callback_hosts) == (1_000, ["example.org"])

    everything = " ".join(str(redis.hgetall(name)) for name in redis.keys("slm:key:*"))
    assert made.token not in everything
    assert made.token.split("_", 2)[2] not in everything


@pytest.mark.parametrize("token", ["", "slm_", "slm_abcdefghij_short", "sk-1234", "slm_ABC\n"])
def test_what_is_no_token_is_rejected(token: str) -> None:
    with pytest.raises(KeyRejected):
        KeyProof.of(token)


def test_another_secret_is_rejected(store: JobStore) -> None:
    made = store.keys.create(SETTINGS)
    last = "A" if made.token[-1] != "A" else "B"
    with pytest.raises(KeyRejected):
        store.keys.authorise(KeyProof.of(made.token[:-1] + last))
    with pytest.raises(KeyRejected):
        store.create(spec(), owner=KeyProof.of(made.token[:-1] + last))


def test_a_rotated_key_keeps_its_settings_and_its_old_token_is_dead(store: JobStore) -> None:
    made = store.keys.create(SETTINGS)
    new = store.keys.rotate(made.id)
    assert new.model_dump(exclude={"token"}) == made.model_dump(exclude={"token"})
    assert store.keys.authorise(KeyProof.of(new.token)).id == made.id
    with pytest.raises(KeyRejected):
        store.create(spec(), owner=KeyProof.of(made.token))


def test_a_revoked_key_is_dead_at_once_and_for_ever(store: JobStore) -> None:
    made = store.keys.create(SETTINGS)
    owner = KeyProof.of(made.token)
    store.create(spec(), owner=owner)
    store.keys.revoke(made.id)
    store.keys.revoke(made.id)
    with pytest.raises(KeyRejected):
        store.create(spec(), owner=owner)
    with pytest.raises(KeyRejected):
        store.keys.authorise(owner)
    with pytest.raises(NoSuchKey):
        store.keys.rotate(made.id)
    assert [key.revoked_at is not None for key in store.keys.list()] == [True]


@pytest.mark.parametrize("key", ["nobody", "aaaaaaaaaa", "a b", "*"])
def test_no_such_key(store: JobStore, key: str) -> None:
    with pytest.raises(NoSuchKey):
        store.keys.rotate(key)
    with pytest.raises(NoSuchKey):
        store.keys.revoke(key)


def test_keys_are_listed_by_age(store: JobStore) -> None:
    made = []
    for hour, name in enumerate("cab"):
        store.keys.clock_offset_ms = hour * 3_600_000
        made.append(store.keys.create(KeySettings(name=name)).id)
    assert [key.id for key in store.keys.list()] == made


def bootstrap(redis: Redis, file: Path) -> subprocess.CompletedProcess[str]:
    port = redis.connection_pool.connection_kwargs["port"]
    return subprocess.run(
        [sys.executable, "-m", "slm_jobs.bootstrap_key", "--file", str(file)],
        env={**os.environ, "SLM_REDIS_URL": f"redis://127.0.0.1:{port}/0"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_first_key_is_made_once(real_redis: Redis, tmp_path: Path) -> None:
    file = tmp_path / "data" / "api_key"
    first = bootstrap(real_redis, file)
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    token = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = JobStore(real_redis).keys.authorise(KeyProof.of(token))
    assert (key.admin, key.requests_per_minute, key.max_priority) == (True, None, 9)

    assert bootstrap(real_redis, file).returncode == 0
    assert file.read_text().strip() == token
    assert len(JobStore(real_redis).keys.list()) == 1

    real_redis.flushall()  # Redis has lost it: the file still holds
    assert bootstrap(real_redis, file).returncode == 0
    assert JobStore(real_redis).keys.authorise(KeyProof.of(token)).admin


def test_a_revoked_first_key_stays_dead(real_redis: Redis, tmp_path: Path) -> None:
    file = tmp_path / "api_key"
    assert bootstrap(real_redis, file).returncode == 0
    store = JobStore(real_redis)
    store.keys.revoke(store.keys.list()[0].id)
    again = bootstrap(real_redis, file)
    assert again.returncode == 1
    assert str(file) in again.stderr
    assert file.read_text().strip() not in again.stderr


def test_the_first_key_needs_redis(tmp_path: Path, real_redis: Redis) -> None:
    file = tmp_path / "api_key"
    file.write_text("my dog's name\n")
    wrong = bootstrap(real_redis, file)
    assert (wrong.returncode, "remove it" in wrong.stderr) == (1, True)
    assert real_redis.zcard(keys.KEYS_MADE) == 0
