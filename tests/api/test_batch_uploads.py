"""Uploads that are sent again, cost too much, come slowly, are broken off or are too many."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import fakeredis
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.batches.body import Uploads
from api.batches.upload import CHUNK_ROWS
from slm_jobs.api_keys import KeySettings, NewKey
from slm_jobs.errors import StoreUnavailable
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.batch_calls import JSONL, claim_all, jsonl, left_in, send, take
from tests.api.conftest import bearer
from tests.api.test_problems import problem

KEY = {"Idempotency-Key": "order-7"}
FIVE_ROWS = jsonl(*({"prompt": f"{i}"} for i in range(5)))


# Sent again


def test_the_same_upload_is_the_same_batch(client: TestClient, store: JobStore) -> None:
    first = send(client, FIVE_ROWS, headers=KEY, stop=["x", "y"], seed="1")
    assert "idempotent-replayed" not in first.headers
    claim_all(store)
    packed = gzip.compress(FIVE_ROWS)
    again = send(
        client, packed, headers={"Idempotency-Key": '"order-7"'}, seed="1", stop=["x", "y"]
    )
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    assert again.headers["location"] == first.headers["location"]
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["counts"]["running"] == 5
    files = {"file": ("a.jsonl", FIVE_ROWS)}
    fields = {"max_tokens": "5", "seed": "1", "stop": ["x", "y"]}
    assert (
        client.post("/batches", data=fields, files=files, headers=KEY).json()["id"]
        == (first.json()["id"])
    )
    assert len(client.get("/batches").json()["data"]) == 1


@pytest.mark.parametrize(
    ("content", "kind", "options"),
    [
        (FIVE_ROWS + b'"x"\n', JSONL, {}),
        (FIVE_ROWS[:-3], JSONL, {}),
        (FIVE_ROWS, JSONL, {"seed": "1"}),
        (FIVE_ROWS, "text/plain", {}),
        (b"{", JSONL, {}),
    ],
)
def test_the_same_key_with_other_content(
    client: TestClient, content: bytes, kind: str, options: dict[str, str]
) -> None:
    assert send(client, FIVE_ROWS, headers=KEY).status_code == 202
    problem(send(client, content, kind, headers=KEY, **options), "idempotency_conflict")


def test_the_key_of_a_job(client: TestClient) -> None:
    body = {"prompt": "a", "max_tokens": 5}
    assert client.post("/jobs", json=body, headers=KEY).status_code == 202
    problem(send(client, FIVE_ROWS, headers=KEY), "idempotency_conflict")


def test_json_sent_again(client: TestClient) -> None:
    bodies = ({"rows": ["a"], "seed": 4}, {"seed": 4.0, "rows": ["a"]}, {"rows": ["b"], "seed": 4})
    one, two, three = (
        client.post("/batches", json={**body, "max_tokens": 5}, headers=KEY) for body in bodies
    )
    assert one.json()["id"] == two.json()["id"]
    problem(three, "idempotency_conflict")


def test_a_key_whose_batch_is_gone(client: TestClient, store: JobStore) -> None:
    batch = send(client, FIVE_ROWS, headers=KEY).json()["id"]
    client.post(f"/batches/{batch}/cancel")
    assert client.delete(f"/batches/{batch}").status_code == 204
    assert batch in problem(send(client, FIVE_ROWS, headers=KEY), "batch_gone")["detail"]


@pytest.mark.parametrize("wrong", [b"{", b"", FIVE_ROWS + b"{}"])
def test_a_failed_upload_frees_its_key(
    client: TestClient, redis: fakeredis.FakeRedis, wrong: bytes
) -> None:
    assert send(client, wrong, headers=KEY).status_code == 422
    assert left_in(redis) == []
    assert send(client, FIVE_ROWS, headers=KEY).status_code == 202


def test_keys_that_are_none(client: TestClient, redis: fakeredis.FakeRedis) -> None:
    problem(send(client, FIVE_ROWS, headers={"Idempotency-Key": '""'}), "invalid_request")
    assert left_in(redis) == []


# Limits


@contextmanager
def limited(client: TestClient, store: JobStore, **limits: int) -> Iterator[NewKey]:
    key = store.keys.create(KeySettings(name="x", **limits))  # type: ignore[arg-type]
    before = client.headers["authorization"]
    client.headers.update(bearer(key))
    yield key
    client.headers["authorization"] = before


@pytest.mark.parametrize(
    ("limits", "policy"),
    [({"batch_rows": 8}, "batch-rows"), ({"batch_tokens": 50}, "batch-tokens")],
)
def test_ceilings(
    client: TestClient,
    store: JobStore,
    redis: fakeredis.FakeRedis,
    limits: dict[str, int],
    policy: str,
) -> None:
    twelve = b"a\n" * 12
    with limited(client, store, **limits):
        document = problem(send(client, twelve, "text/plain"), "exceeds_limit")
        assert document["violated-policies"] == [policy]
        assert left_in(redis) == []
        assert send(client, b"a\n" * 6, "text/plain").status_code == 202
        response = send(client, b"a\n" * 6, "text/plain")
        assert problem(response, "rate_limited")["violated-policies"] == [policy]
        assert int(response.headers["retry-after"]) > 0
        assert f'"{policy}";q=' in response.headers["ratelimit-policy"]
        assert len(claim_all(store)) == 6
        assert send(client, b"a\n" * 6, "text/plain").status_code == 202


def test_what_is_wrong_says_more_than_a_limit(client: TestClient, store: JobStore) -> None:
    with limited(client, store, batch_rows=8):
        found = problem(send(client, b"{\n" + b'"a"\n' * 600 + b"{\n"), "invalid_rows")
        assert [row["line"] for row in found["rows"]] == [1]


def test_a_skipped_row_hides_no_limit(
    client: TestClient, store: JobStore, redis: fakeredis.FakeRedis
) -> None:
    with limited(client, store, batch_rows=8):
        content = b"{\n" + b'"a"\n' * 600
        problem(send(client, content, on_invalid="skip"), "exceeds_limit")
    assert left_in(redis) == []


def as_form(content: bytes) -> tuple[bytes, str]:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    return head + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", [False, True])
def test_files_that_are_too_large(
    settings: Settings,
    store: JobStore,
    key: NewKey,
    redis: fakeredis.FakeRedis,
    packed: bool,
    form: bool,
) -> None:
    """Unpacked. What is around a file in a form counts, too."""
    most = 50_000
    around = 0 if packed or not form else len(as_form(b"")[0])
    settings = settings.model_copy(update={"max_batch_bytes": most})
    with TestClient(create_app(settings, store), headers=bearer(key)) as client:
        for size in (most - around + 1, most - around):
            content = (b"a\n" * most)[:size]
            content = gzip.compress(content) if packed else content
            body, kind = as_form(content) if form else (content, "text/plain")
            response = send(client, body, kind)
            if size > most - around:
                assert problem(response, "body_too_large")["max_bytes"] == most
                assert left_in(redis) == []
    assert response.status_code == 202, response.text


# Broken off


class Upload:
    """A call of `POST /batches` whose body comes piece by piece, as the test says."""

    def __init__(self, client: TestClient, path: str = "/batches", **headers: str) -> None:
        self.body: list[bytes] = []
        self.reads = 0
        self.sent: list[Any] = []
        self._client = client
        self._more = threading.Event()
        self._left = False
        names = {
            **dict(client.headers),
            "host": "testserver",
            "content-type": "text/plain",
            **headers,
        }
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"max_tokens=5",
            "headers": [
                (name.lower().replace("_", "-").encode(), value.encode())
                for name, value in names.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
            "state": {},
        }
        assert client.portal is not None
        self._call = client.portal.start_task_soon(
            client.app, self._scope, self._receive, self._send
        )

    def push(self, chunk: bytes) -> None:
        self.body.append(chunk)

    def leave(self) -> None:
        self._left = True

    def end(self) -> int:
        """The status of the answer; 0 if there was none."""
        self._more.set()
        self._call.result(timeout=60)
        return self.sent[0]["status"] if self.sent else 0

    def answer(self) -> Any:
        return json.loads(b"".join(message.get("body", b"") for message in self.sent))

    def cancel(self) -> None:
        self._call.cancel()

    async def _receive(self) -> Any:
        self.reads += 1
        while not self.body:
            if self._left:
                return {"type": "http.disconnect"}
            if self._more.is_set():
                return {"type": "http.request", "body": b"", "more_body": False}
            await anyio.sleep(0.002)
        return {"type": "http.request", "body": self.body.pop(0), "more_body": True}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


def until(condition: Callable[[], object]) -> None:
    """Returns when it holds."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.002)


def uploading(store: JobStore, redis: fakeredis.FakeRedis) -> bool:
    return any(name.startswith("slm:rows:") for name in redis.keys("*"))


def test_a_client_that_leaves(
    client: TestClient, store: JobStore, redis: fakeredis.FakeRedis
) -> None:
    upload = Upload(client, **{"Idempotency-Key": "k"})
    upload.push(b"a\n" * (CHUNK_ROWS + 1))
    until(lambda: uploading(store, redis))
    twin = send(client, b"a", headers={"Idempotency-Key": "k"})
    problem(twin, "idempotency_in_progress")
    assert twin.headers["retry-after"] == "5"
    [batch] = client.get("/batches").json()["data"]
    assert (batch["status"], batch["counts"]["total"]) == ("validating", CHUNK_ROWS)
    assert claim_all(store) == []
    upload.leave()
    assert upload.end() == 0
    assert left_in(redis) == []
    assert send(client, b"a", headers={"Idempotency-Key": "k"}).status_code == 422
    assert send(client, b"a", "text/plain", {"Idempotency-Key": "k"}).status_code == 202


def test_a_server_that_stops(
    settings: Settings, store: JobStore, redis: fakeredis.FakeRedis, key: NewKey
) -> None:
    """Its uploads do not hold it up, and are abandoned."""
    with TestClient(create_app(settings, store), headers=bearer(key)) as client:
        upload = Upload(client)
        upload.push(b"a\n" * (CHUNK_ROWS + 1))
        until(lambda: uploading(store, redis))
        upload.cancel()
        upload.push(b"a\n")
        until(lambda: left_in(redis) == [])


def test_a_body_that_stops(
    client: TestClient, redis: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.batches.body.CHUNK_SECONDS", 0.2)
    upload = Upload(client)
    upload.push(b"a\n" * (CHUNK_ROWS + 1))
    upload._call.result(timeout=30)
    assert upload.answer()["code"] == "body_timeout"
    assert left_in(redis) == []


def test_a_slow_body_is_not_given_up(
    client: TestClient,
    store: JobStore,
    redis: fakeredis.FakeRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even in the middle of a line: rows so far are sent, and keep the upload alive."""
    monkeypatch.setattr("api.batches.upload.UPLOAD_SECONDS", 0)
    upload = Upload(client)
    upload.push(b"a\nb")
    until(lambda: upload.reads == 2)
    store.clock_offset_ms = 50_000
    upload.push(b"c")
    until(lambda: upload.reads == 3)
    store.clock_offset_ms = 100_000
    store.sweep()
    upload.push(b"d")
    assert upload.end() == 202
    assert [work.spec.prompts for work in claim_all(store)] == [["a"], ["bcd"]]


def test_a_batch_that_is_cancelled_while_it_comes_in(
    client: TestClient, store: JobStore, redis: fakeredis.FakeRedis
) -> None:
    upload = Upload(client)
    upload.push(b"a\n" * (CHUNK_ROWS + 1))
    until(lambda: uploading(store, redis))
    [batch] = client.get("/batches").json()["data"]
    assert client.post(f"/batches/{batch['id']}/cancel").json()["status"] == "cancelled"
    upload.push(b"a\n" * CHUNK_ROWS)
    assert upload.end() == 410
    assert upload.answer()["code"] == "batch_gone"


def test_redis_goes_away(
    client: TestClient,
    store: JobStore,
    redis: fakeredis.FakeRedis,
    redis_process: fakeredis.FakeServer,
) -> None:
    upload = Upload(client)
    upload.push(b"a\n" * (CHUNK_ROWS + 1))
    until(lambda: uploading(store, redis))
    redis_process.connected = False
    upload.push(b"a\n" * CHUNK_ROWS)
    assert upload.end() == 503
    redis_process.connected = True
    store.clock_offset_ms = 61_000
    store.sweep()
    assert left_in(redis) == []


def test_a_commit_whose_answer_is_lost(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, calls = store.batches.commit, []

    def lossy(batch_id: str, digest: str) -> Any:
        calls.append(commit(batch_id, digest))
        if len(calls) == 1:
            raise StoreUnavailable
        return calls[-1]

    monkeypatch.setattr(store.batches, "commit", lossy)
    batch = take(client, "a", "b")
    assert (batch["status"], batch["counts"]["pending"], len(calls)) == ("running", 2, 2)
    assert len(claim_all(store)) == 2


# Too many


def test_only_so_many_uploads_at_once(client: TestClient, redis: fakeredis.FakeRedis) -> None:
    """More wait, unread; other requests do not."""
    running = [Upload(client) for _ in range(8)]
    until(lambda: all(upload.reads for upload in running))
    waiting = Upload(client)
    assert client.get("/batches").status_code == 200
    assert client.post("/batches", json={"rows": ["a"], "max_tokens": 5}).status_code == 202
    assert waiting.reads == 0
    for upload in (running[0], waiting):
        upload.push(b"a")
        assert upload.end() == 202
    for upload in running[1:]:
        upload.leave()
        assert upload.end() == 0


def test_an_upload_that_waits_in_vain(
    settings: Settings, store: JobStore, key: NewKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.app.Uploads", lambda: Uploads(most=1, wait_seconds=0.05))
    with TestClient(create_app(settings, store), headers=bearer(key)) as client:
        running = Upload(client)
        until(lambda: running.reads)
        response = send(client, b"a", "text/plain")
        assert problem(response, "too_many_uploads")["detail"].startswith("1 upload")
        assert int(response.headers["retry-after"]) > 1
        running.push(b"a")
        assert running.end() == 202
        assert send(client, b"a", "text/plain").status_code == 202
