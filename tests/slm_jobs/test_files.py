"""Files: written in pieces, seen only when they are whole, read in pieces, gone without a trace."""

from __future__ import annotations

import hashlib
import random
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from slm_jobs import files, keys
from slm_jobs.api_keys import ApiKey, KeySettings, KeyStore
from slm_jobs.errors import FileNotFound, QueueFull, StoreUnavailable, TooManyFiles
from slm_jobs.files import File, FileStore, Upload
from slm_jobs.gauges import Memory
from slm_jobs.store import JobStore

CONTENT = "".join(f'{{"custom_id": "row-{i}", "prompt": "☃ {i}"}}\n' for i in range(9_000)).encode()


@pytest.fixture
def store(redis: Redis) -> FileStore:
    return JobStore(redis).files


def upload(store: FileStore, content: bytes = CONTENT, key: str = "a", **options: Any) -> File:
    incoming = store.upload(key)
    incoming.write(content)
    return incoming.commit("rows.jsonl", "batch", **options)


def read(store: FileStore, file: File) -> bytes:
    return b"".join(store.content(file))


def names(redis: Redis) -> set[str]:
    return set(redis.keys("*"))


def expire(redis: Redis, name: str) -> None:
    assert redis.delete(name)


def viewer(redis: Redis, **settings: Any) -> ApiKey:
    return KeyStore(redis).create(KeySettings(name="viewer", **settings))


def test_what_was_written_is_read(store: FileStore) -> None:
    file = upload(store)
    assert file.id.startswith("file-")
    assert (file.key, file.filename, file.purpose) == ("a", "rows.jsonl", "batch")
    assert file.bytes == len(CONTENT)
    assert file.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert (file.expires_at - file.created_at).total_seconds() == 7 * 86_400
    assert store.get(file.id) == file
    assert read(store, file) == CONTENT
    assert read(store, file) == CONTENT


@pytest.mark.parametrize("size", [0, 1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 1 << 20])
def test_any_bytes_in_any_pieces(store: FileStore, size: int) -> None:
    random_bytes = random.Random(size)
    content = random_bytes.randbytes(size)
    incoming, rest = store.upload("a"), content
    while rest:
        cut = random_bytes.randint(1, 100_000)
        incoming.write(rest[:cut])
        rest = rest[cut:]
    file = incoming.commit("x", "batch")
    assert (file.bytes, read(store, file)) == (size, content)


def test_nobody_sees_an_unfinished_file(store: FileStore, redis: Redis) -> None:
    before = names(redis)
    incoming = store.upload("a")
    incoming.write(CONTENT)
    with pytest.raises(FileNotFound):
        store.get(incoming.id)
    assert store.of_key("a") == []
    [parts] = names(redis) - before
    assert 0 < redis.ttl(parts) <= files.UPLOAD_SECONDS  # it goes by itself
    incoming.abandon()
    assert names(redis) == before
    incoming.abandon()


def test_what_comes_slowly_stays(
    store: FileStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_TOUCH_SECONDS", 0.0)
    incoming = store.upload("a")
    for byte in b"slow":
        incoming.write(bytes([byte]))
        redis.expire(keys.FILE_UPLOAD + incoming.id, 5)
    incoming.write(b"er")
    assert redis.ttl(keys.FILE_UPLOAD + incoming.id) > 5
    assert read(store, incoming.commit("x", "batch")) == b"slower"


@pytest.mark.parametrize("again", [Upload.write, lambda incoming, _: incoming.commit("x", "batch")])
def test_an_upload_that_was_forgotten_fails(
    store: FileStore, redis: Redis, again: Callable[[Upload, bytes], object]
) -> None:
    incoming = store.upload("a")
    incoming.write(CONTENT)
    expire(redis, keys.FILE_UPLOAD + incoming.id)
    with pytest.raises(StoreUnavailable):
        again(incoming, CONTENT)
    assert store.of_key("a") == []
    assert names(redis) == set()


def test_a_commit_may_be_repeated(store: FileStore) -> None:
    incoming = store.upload("a")
    incoming.write(CONTENT)
    file = incoming.commit("x", "batch")
    assert incoming.commit("x", "batch") == file
    incoming.abandon()  # as who got no reply to the first
    assert read(store, file) == CONTENT
    assert store.of_key("a") == [file]


def test_files_are_listed_by_key_and_age(redis: Redis) -> None:
    jobs = JobStore(redis)
    mine = []
    for _ in range(3):
        mine.append(upload(jobs.files))
        jobs.clock_offset_ms += 1000
    upload(jobs.files, key="b")
    assert jobs.files.of_key("a") == mine
    assert [file.created_at for file in mine] == sorted(file.created_at for file in mine)


def test_strangers_see_nothing(store: FileStore, redis: Redis) -> None:
    owner, admin = viewer(redis), viewer(redis, admin=True)
    file = upload(store, key=owner.id)
    assert store.get(file.id, viewer=owner) == store.get(file.id, viewer=admin) == file
    with pytest.raises(FileNotFound):
        store.get(file.id, viewer=viewer(redis))


def test_a_deleted_file_leaves_nothing(store: FileStore, redis: Redis) -> None:
    before = names(redis)
    file = upload(store)
    store.delete(file)
    with pytest.raises(FileNotFound):
        store.get(file.id)
    store.delete(file)
    assert names(redis) == before


def test_reading_what_is_deleted_meanwhile_fails(store: FileStore) -> None:
    """A part of a file must never pass for all of it."""
    file = upload(store, random.Random(1).randbytes(2_000_000))
    pieces = store.content(file)
    next(pieces)
    store.delete(file)
    with pytest.raises(FileNotFound):
        next(pieces)


def test_everything_expires(store: FileStore, redis: Redis) -> None:
    for seconds, kept in ((3600, 3600), (None, 7 * 86_400), (30 * 86_400, 7 * 86_400)):
        file = upload(store, ttl_seconds=seconds)
        assert (file.expires_at - file.created_at).total_seconds() == kept
        for prefix in (keys.FILE, keys.FILE_PARTS):
            assert kept - 5 <= redis.ttl(prefix + file.id) <= kept
    upload(store, ttl_seconds=60)
    assert redis.ttl(keys.FILES_OF + "a") > 86_400  # as long as the file that stays longest
    expire(redis, keys.FILE + file.id)
    assert len(store.of_key("a")) == 3


def test_a_key_has_so_many_files_and_no_more(
    store: FileStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_FILES", 3)
    made = [upload(store, b"x") for _ in range(3)]
    with pytest.raises(TooManyFiles):
        upload(store, b"x")
    upload(store, b"x", key="b")
    expire(redis, keys.FILE + made[0].id)
    made.append(upload(store, b"x"))
    store.delete(made[1])
    made.append(upload(store, b"x"))
    with pytest.raises(TooManyFiles):
        upload(store, b"x")
    assert store.of_key("a") == made[2:]


def test_the_limit_holds_for_uploads_at_once(
    real_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_FILES", 5)
    store = JobStore(real_redis).files
    outcomes: list[str] = []
    together = threading.Barrier(12)

    def run() -> None:
        incoming = store.upload("a")
        incoming.write(CONTENT)
        together.wait()
        try:
            outcomes.append(incoming.commit("x", "batch").id)
        except TooManyFiles:
            incoming.abandon()

    threads = [threading.Thread(target=run) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == sorted(file.id for file in store.of_key("a"))
    assert len(outcomes) == 5
    assert len(real_redis.keys(keys.FILE_PARTS + "*")) == 5
    assert not real_redis.keys(keys.FILE_UPLOAD + "*")


def test_a_redis_that_is_nearly_full_takes_no_more(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Memory, "nearly_full", lambda _: True)
    incoming = JobStore(redis).files.upload("a")
    incoming.write(b"a little")
    with pytest.raises(QueueFull):
        incoming.write(CONTENT)
    assert names(redis) == set()


def test_a_file_is_held_in_memory_in_parts_only(real_redis: Redis) -> None:
    store = JobStore(real_redis).files
    piece = random.Random(1).randbytes(1 << 18)
    upload(store, b"warm")
    tracemalloc.start()
    try:
        incoming = store.upload("a")
        for _ in range(128):
            incoming.write(piece)
        file = incoming.commit("x", "batch")
        assert sum(map(len, store.content(file))) == file.bytes == 128 << 18
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20
