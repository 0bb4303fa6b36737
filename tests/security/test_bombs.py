"""Little that is sent never becomes much: what bodies unpack to, nest to or repeat is bounded, in
memory too, and is refused by a stable code."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import fakeredis
import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from api.body import MAX_BODY_BYTES
from slm_jobs.settings import Settings
from tests.api.batch_calls import JSONL, Upload, left_in
from tests.api.openai_calls import error
from tests.api.test_problems import problem

MIB = 1 << 20
MOST = 32 * MIB  # that a batch may unpack to, in these tests
JSON = {"Content-Type": "application/json"}
FORM = "multipart/form-data; boundary=x"
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
PURPOSE = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_batch_bytes": MOST})


@contextmanager
def memory(most: int) -> Iterator[None]:
    """At the peak, in bytes, besides what there was."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        assert tracemalloc.get_traced_memory()[1] - before < most
    finally:
        tracemalloc.stop()


# Gzip


def bomb(content: bytes) -> bytes:
    """1 GiB of it, in members of 64 MiB."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    member = b"".join(deflate.compress(content) for _ in range(64)) + deflate.flush()
    assert len(content) == MIB
    return member * 16


_LINE = b"a" * MIB
_WRONG = b"{\n" * (MIB // 2)
_EMPTY = gzip.compress(b"")


@pytest.mark.parametrize(
    ("content", "kind", "code"),
    [
        (_LINE, "text/plain", "body_too_large"),
        (_LINE, JSONL, "body_too_large"),
        (_LINE, "text/csv", "body_too_large"),
        (b'"' + b"a" * (MIB - 1), "text/csv", "body_too_large"),
        (_WRONG, JSONL, "invalid_rows"),
        (bytes(MIB), "text/plain", "body_too_large"),
    ],
)
@pytest.mark.parametrize("how", ["file", "coding", "both", "form"])
def test_gzip(
    client: TestClient,
    redis: fakeredis.FakeRedis,
    content: bytes,
    kind: str,
    code: str,
    how: str,
) -> None:
    packed = bomb(content)
    headers = {"Content-Type": kind, **({"Content-Encoding": "gzip"} if how == "coding" else {})}
    if how == "both":
        packed, headers["Content-Encoding"] = gzip.compress(packed), "gzip"
    if how == "form":
        packed = FILE.replace(b"\r\n\r\n", f"\r\nContent-Type: {kind}\r\n\r\n".encode()) + packed
        headers["Content-Type"] = FORM
    assert len(packed) < 3 * MIB
    with memory(8 * MIB):
        response = client.post(
            "/batches", params={"max_tokens": 5}, content=packed, headers=headers
        )
    problem(response, code)
    assert len(response.content) < 100_000
    assert left_in(redis) == []


def test_blank_lines(client: TestClient, redis: fakeredis.FakeRedis) -> None:
    packed = bomb(b"\n" * MIB)
    with memory(8 * MIB):
        response = client.post("/batches", content=packed, headers={"Content-Type": JSONL})
    assert "blank" in problem(response, "body_too_large")["detail"]
    assert left_in(redis) == []


def test_gzip_of_nothing_many_times(client: TestClient, redis: fakeredis.FakeRedis) -> None:
    response = client.post("/batches", content=_EMPTY * 20_000, headers={"Content-Type": JSONL})
    problem(response, "empty_batch")
    assert left_in(redis) == []


def test_a_file_of_openai_is_unpacked_no_further(client: TestClient) -> None:
    files = {"file": ("a.jsonl", bomb(_LINE))}
    file = client.post("/v1/files", data={"purpose": "batch"}, files=files).json()
    asked = {"endpoint": "/v1/completions", "completion_window": "24h", "input_file_id": file["id"]}
    with memory(8 * MIB):
        response = client.post("/v1/batches", json=asked)
    error(response, 413, "body_too_large")


# JSON

POSTS = ("/jobs", "/batches", "/generate", "/generate/tiny", "/v1/completions", "/v1/batches")


def code_of(response: Response) -> str:
    document = response.json()
    code: str = document.get("error", document)["code"]
    return code


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"[" * 500_000, "malformed_json"),
        (b'{"a":' * 200_000, "malformed_json"),
        (b'{"prompt": ' + b"9" * 900_000 + b"}", "malformed_json"),
        (b" " * (MAX_BODY_BYTES + 1), "body_too_large"),
    ],
)
def test_json(
    client: TestClient, redis: fakeredis.FakeRedis, path: str, content: bytes, code: str
) -> None:
    with memory(16 * MIB):
        response = client.post(path, content=content, headers=JSON)
    assert code_of(response) == code
    assert left_in(redis) == []


@pytest.mark.parametrize("path", POSTS)
def test_a_body_with_nothing_but_mistakes(client: TestClient, path: str) -> None:
    """The answer names some of them."""
    fields = b", ".join(b'"f%d": 0' % number for number in range(60_000))
    response = client.post(path, content=b"{" + fields + b"}", headers=JSON)
    assert 400 <= response.status_code < 500
    assert len(response.content) < 10_000


# Forms


def field(name: str, headers: bytes = b"", value: bytes = b"a") -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"\r\n'.encode()
    return b"--x\r\n" + disposition + headers + b"\r\n" + value + b"\r\n"


FORMS = {
    "many parts": b"".join(field(f"f{i}") for i in range(101)),
    "very many parts": b"".join(field(f"f{i}") for i in range(5_000)),
    "many headers": field("a", b"X: a\r\n" * 10_000),
    "a long header": field("a", b"X: " + b"a" * MIB + b"\r\n"),
    "a long name of a header": field("a", b"a" * MIB + b": a\r\n"),
    "a long name": field("a" * MIB),
    "a long value": field("a", value=b"a" * MIB),
    "what comes before": b"a" * MIB,
    "line breaks before": b"\r\n" * MIB,
}


@pytest.mark.parametrize("path", ["/batches", "/v1/files"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms(client: TestClient, redis: fakeredis.FakeRedis, path: str, form: bytes) -> None:
    with memory(16 * MIB):
        response = client.post(path, content=form + b"--x--", headers={"Content-Type": FORM})
    assert code_of(response) in ("malformed_multipart", "invalid_request")
    assert len(response.content) < 2_000
    assert left_in(redis) == []


def test_a_long_boundary(client: TestClient) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary={'x' * 100_000}"}
    problem(client.post("/batches", content=b"--x--", headers=headers), "malformed_multipart")


@pytest.mark.parametrize("path", ["/batches", "/v1/files"])
def test_what_follows_a_form_counts(
    client: TestClient, redis: fakeredis.FakeRedis, path: str
) -> None:
    upload = Upload(client, path, **{"content-type": FORM})
    before = PURPOSE if path == "/v1/files" else b""
    upload.push(before + FILE + b'"a"\r\n--x--\r\n')
    for _ in range(2 * MOST // MIB):
        upload.push(bytes(MIB))
    assert upload.end() == 413
    assert upload.body  # the rest was not even read
    assert left_in(redis) == []


# Strangers


@pytest.mark.parametrize("path", [*POSTS, "/v1/files", "/admin/keys"])
def test_nothing_of_a_stranger_is_read(client: TestClient, path: str) -> None:
    kind = FORM if path == "/v1/files" else "application/json"
    upload = Upload(client, path, **{"content-type": kind, "authorization": "Bearer slm_none"})
    upload.push(b"{}")
    assert upload.end() == 401
    assert upload.body == [b"{}"]
