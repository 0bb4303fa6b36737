"""Files that clients leave with us, whole and unread, in Redis.

A file's content is a list of deflated parts, so that whoever writes or reads one holds a part of it
in memory and no more. Knows nothing of what files hold.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, cast

from ulid import ULID

from slm_jobs import keys
from slm_jobs.api_keys import ApiKey
from slm_jobs.batches import Run
from slm_jobs.connection import execute_raw, store_errors
from slm_jobs.errors import FileNotFound, QueueFull, StoreUnavailable, TooManyFiles
from slm_jobs.records import fields, flattened, to_time

if TYPE_CHECKING:
    from redis import Redis

MOST_FILES = 100  # of a key
UPLOAD_SECONDS = 60  # after which an upload of which nothing more came is forgotten
_TOUCH_SECONDS = 15.0  # after which what came is written, though it is little
_PART_BYTES = 1 << 16  # before they are deflated
_PARTS_READ = 8  # at once
_FASTEST = 1  # of zlib's levels: texts shrink to about 40 %, at 100 MB/s or so


class File(NamedTuple):
    """What is known about a file but its content. Times are UTC."""

    id: str
    key: str  # of the API key that it belongs to
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: datetime
    expires_at: datetime
    parts: int


class FileStore:
    """The files of a `JobStore`, which makes it. Methods raise StoreUnavailable as its do."""

    def __init__(
        self,
        redis: Redis,
        run: Run,
        *,
        nearly_full: Callable[[], bool],
        ttl_seconds: int,
    ) -> None:
        self.ttl_seconds = ttl_seconds
        self._redis = redis
        self._run = run
        self._nearly_full = nearly_full

    def upload(self, key: str) -> Upload:
        """A new file of this API key, which nobody sees before it is committed."""
        return Upload(self, key)

    def get(self, file_id: str, *, viewer: ApiKey | None = None) -> File:
        """Raises FileNotFound, also for a viewer who neither owns it nor is an admin."""
        with store_errors():
            record = cast("dict[str, str]", self._redis.hgetall(keys.FILE + file_id))
        if not record or not (viewer is None or viewer.admin or record["key"] == viewer.id):
            raise FileNotFound(file_id)
        return _to_file(file_id, record)

    def of_key(self, key: str) -> list[File]:
        """A key's files, the oldest first."""
        with store_errors():
            ids = cast("list[str]", self._redis.zrange(keys.FILES_OF + key, 0, -1))
            pipeline = self._redis.pipeline(transaction=False)
            for file_id in ids:
                pipeline.hgetall(keys.FILE + file_id)
            records = pipeline.execute()
        return [_to_file(i, record) for i, record in zip(ids, records, strict=True) if record]

    def content(self, file: File) -> Iterator[bytes]:
        """Its content in pieces. Raises FileNotFound where some of it is gone meanwhile."""
        for start in range(0, file.parts, _PARTS_READ):
            end = min(start + _PARTS_READ, file.parts)
            with store_errors():
                name = keys.FILE_PARTS + file.id
                parts = execute_raw(self._redis, "LRANGE", name, start, end - 1)
            if len(parts) != end - start:
                raise FileNotFound(file.id)
            yield b"".join(map(zlib.decompress, parts))

    def delete(self, file: File) -> None:
        """Forgets it and its content; harmless if it is gone."""
        with store_errors():
            pipeline = self._redis.pipeline()
            pipeline.unlink(keys.FILE + file.id, keys.FILE_PARTS + file.id)
            pipeline.zrem(keys.FILES_OF + file.key, file.id)
            pipeline.execute()

    def _append(self, file_id: str, part: bytes, *, first: bool) -> None:
        if self._nearly_full():
            raise QueueFull("Redis is nearly out of memory")
        name = keys.FILE_UPLOAD + file_id
        with store_errors():
            pipeline = self._redis.pipeline()
            append = "RPUSH" if first else "RPUSHX"
            pipeline.execute_command(append, name, part)  # type: ignore[no-untyped-call]
            pipeline.expire(name, UPLOAD_SECONDS)
            length, _ = pipeline.execute()
        if not length:
            raise _lost()

    def _commit(self, upload: Upload, parts: int, seconds: int, record: Mapping[str, str]) -> File:
        outcome, *details = self._run(
            "file_commit", upload.id, upload.key, MOST_FILES, parts, seconds, *flattened(record)
        )
        if outcome == "many":
            raise TooManyFiles(MOST_FILES)
        if outcome == "lost":
            raise _lost()
        return _to_file(upload.id, fields(details[0]))

    def _forget(self, upload: Upload) -> None:
        with store_errors():
            self._redis.unlink(keys.FILE_UPLOAD + upload.id)


class Upload:
    """A file on its way in. Write it, then commit or abandon it; one that is left alone is
    forgotten after `UPLOAD_SECONDS`. For one thread at a time."""

    def __init__(self, store: FileStore, key: str) -> None:
        self.id = f"file-{ULID()}"
        self.key = key
        self.bytes = 0
        self._store = store
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self._parts = 0
        self._written = time.monotonic()

    def write(self, data: bytes) -> None:
        """Raises QueueFull when Redis is nearly full."""
        self.bytes += len(data)
        self._hash.update(data)
        self._buffer += data
        while len(self._buffer) >= _PART_BYTES:
            self._flush()
        if self._buffer and time.monotonic() - self._written > _TOUCH_SECONDS:
            self._flush()

    def commit(self, filename: str, purpose: str, *, ttl_seconds: int | None = None) -> File:
        """From now on the file is there, for `ttl_seconds`, but no longer than any. Raises
        TooManyFiles and QueueFull."""
        if self._buffer:
            self._flush()
        record = {
            "filename": filename,
            "purpose": purpose,
            "bytes": str(self.bytes),
            "sha256": self._hash.hexdigest(),
        }
        most = self._store.ttl_seconds
        seconds = most if ttl_seconds is None else min(ttl_seconds, most)
        return self._store._commit(self, self._parts, seconds, record)

    def abandon(self) -> None:
        """As if it had never begun; a file that was committed stays."""
        self._store._forget(self)

    def _flush(self) -> None:
        part = bytes(self._buffer[:_PART_BYTES])
        self._store._append(self.id, zlib.compress(part, _FASTEST), first=not self._parts)
        del self._buffer[:_PART_BYTES]
        self._parts += 1
        self._written = time.monotonic()


def _lost() -> StoreUnavailable:
    return StoreUnavailable("Redis lost what had come of a file")


def _to_file(file_id: str, record: Mapping[str, str]) -> File:
    return File(
        id=file_id,
        key=record["key"],
        filename=record["filename"],
        purpose=record["purpose"],
        bytes=int(record["bytes"]),
        sha256=record["sha256"],
        created_at=to_time(record["created_at"]),
        expires_at=to_time(record["expires_at"]),
        parts=int(record["parts"]),
    )
