"""Uploads that are sent again, cost too much, come slowly, are broken off, or are mostly wrong."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.batches.upload import CHUNK_ROWS
from slm_jobs.api_keys import KeySettings, NewKey
from slm_jobs.batches import BatchStore
from slm_jobs.errors import StoreUnavailable
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.batch_calls import JSONL, Upload, claim_all, jsonl, left_in, send, take, until
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
    monkeypatch.setattr("api.batches.body.SLACK_SECONDS", 0.2)
    upload = Upload(client)
    upload.push(b"a\n" * (CHUNK_ROWS + 1))
    upload._call.result(timeout=30)
    assert upload.answer()["code"] == "body_timeout"
    assert left_in(redis) == []


@pytest.mark.parametrize("path", ["/batches", "/v1/files"])
def test_a_body_that_trickles(
    client: TestClient, redis: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A byte now and then is too little, whatever came at once before."""
    monkeypatch.setattr("api.batches.body.SLACK_SECONDS", 0.5)
    body, kind = as_form(b"\n" * (1 << 18))
    upload = Upload(client, path, **{"content-type": kind})
    upload.push(body[:-99])
    for byte in body[-99:]:
        until(lambda: upload.sent or not upload.body)
        if upload.sent:
            break
        threading.Event().wait(0.02)
        upload.push(bytes([byte]))
    assert upload.end() == 408
    answer = upload.answer()
    assert "slowly: it is 0.5 s behind 16 KiB a second" in answer.get("error", answer).get(
        "message", answer.get("detail")
    )
    assert left_in(redis) == []


def test_a_body_that_is_slow_but_not_too_slow(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer than what it may fall behind."""
    monkeypatch.setattr("api.batches.body.SLACK_SECONDS", 0.5)
    monkeypatch.setattr("api.batches.body.LEAST_RATE", 1)
    upload = Upload(client)
    for _ in range(4):
        upload.push(b"a\n")
        until(lambda: not upload.body)
        threading.Event().wait(0.2)
    assert upload.end() == 202


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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.batches.upload.AWAY_SECONDS", 0.2)
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


def test_redis_is_away_for_a_while(
    client: TestClient,
    store: JobStore,
    redis: fakeredis.FakeRedis,
    redis_process: fakeredis.FakeServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Longer than one call waits; the upload goes on."""
    asked = 0

    def sleep(_: float) -> None:
        nonlocal asked
        asked += 1
        redis_process.connected = asked >= 3

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
    monkeypatch.setattr("api.batches.upload.time", clock)
    upload = Upload(client)
    upload.push(b"a\n" * (CHUNK_ROWS + 1))
    until(lambda: uploading(store, redis))
    redis_process.connected = False
    upload.push(b"a\n" * CHUNK_ROWS)
    assert upload.end() == 202
    assert (asked, len(claim_all(store))) == (3, 2 * CHUNK_ROWS + 1)


def lossy(monkeypatch: pytest.MonkeyPatch, batches: BatchStore, name: str) -> list[Any]:
    """What was done at each of its calls. Of every other the reply is lost."""
    call, done = getattr(batches, name), list[Any]()

    def lose(*args: Any, **kwargs: Any) -> Any:
        done.append(call(*args, **kwargs))
        if len(done) % 2:
            raise StoreUnavailable
        return done[-1]

    monkeypatch.setattr(batches, name, lose)
    return done


def test_a_commit_whose_answer_is_lost(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = lossy(monkeypatch, store.batches, "commit")
    batch = take(client, "a", "b")
    assert (batch["status"], batch["counts"]["pending"], len(calls)) == ("running", 2, 2)
    assert len(claim_all(store)) == 2


def test_rows_whose_answer_is_lost(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither they nor their duplicates count twice."""
    monkeypatch.setattr("api.batches.upload.CHUNK_ROWS", 3)
    monkeypatch.setattr("api.batches.upload._FIRST_PAUSE", 0.0)
    calls = [lossy(monkeypatch, store.batches, name) for name in ("add_rows", "add_invalid")]
    rows = [{"prompt": "a", "custom_id": str(i // 2)} for i in range(20)]
    counts = take(client, *rows, {"colour": "red"}, on_invalid="skip")["counts"]
    assert (counts["total"], counts["pending"], counts["failed"]) == (21, 10, 11)
    assert all(len(made) >= 8 for made in calls)


def test_a_commit_of_which_nothing_is_known(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was done, but nobody knows; the same request finds its batch."""
    commit = store.batches.commit
    monkeypatch.setattr("api.batches.upload.AWAY_SECONDS", 0.0)
    lossy(monkeypatch, store.batches, "commit")
    problem(send(client, FIVE_ROWS, headers=KEY), "store_unavailable")
    monkeypatch.setattr(store.batches, "commit", commit)
    again = send(client, FIVE_ROWS, headers=KEY)
    assert again.headers["idempotent-replayed"] == "true"
    assert len(client.get("/batches").json()["data"]) == 1


# Too many


@pytest.mark.parametrize(
    "content", [b"{\n" * 60, jsonl(*({"prompt": "a", "custom_id": "x"} for _ in range(61)))]
)
@pytest.mark.parametrize(("most", "status"), [(60, 202), (59, 422)])
def test_only_so_many_are_skipped(
    client: TestClient,
    redis: fakeredis.FakeRedis,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    most: int,
    status: int,
) -> None:
    """Be they invalid, or there twice."""
    monkeypatch.setattr("api.batches.upload.CHUNK_ROWS", 7)
    monkeypatch.setattr("api.batches.upload.MOST_SKIPPED", most)
    response = send(client, content, on_invalid="skip")
    assert response.status_code == status, response.text
    if status == 422:
        assert "60 rows are invalid. Too many to skip." in response.json()["detail"]
        assert left_in(redis) == []
    else:
        assert response.json()["counts"]["failed"] == 60


def test_duplicates_are_not_gathered_without_end(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.batches.upload.MOST_INVALID", 10)
    calls = lossy(monkeypatch, store.batches, "add_rows")
    rows = ({"prompt": "a", "custom_id": "x"} for _ in range(20 * CHUNK_ROWS))
    document = problem(send(client, jsonl(*rows)), "invalid_rows")
    assert document["detail"].startswith(f"At least {CHUNK_ROWS - 1} rows")
    assert len(calls) <= 4


def test_only_so_many_rows_as_json(client: TestClient, redis: fakeredis.FakeRedis) -> None:
    body = {"max_tokens": 5, "rows": ["a"] * 10_001}
    document = problem(client.post("/batches", json=body), "invalid_request")
    assert document["detail"] == "/rows: Send at most 10000 rows as JSON; upload more as a file"
    assert left_in(redis) == []
    body["rows"] = ["a"] * 10_000
    assert client.post("/batches", json=body).json()["counts"]["total"] == 10_000
