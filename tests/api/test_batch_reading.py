"""Batches while they run and after: their state, results and errors; cancelling and retrying."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import fakeredis
import httpx
import pytest
from starlette.testclient import TestClient

from slm_client import Client
from slm_jobs.api_keys import KeyProof, KeySettings, NewKey
from slm_jobs.batch_schemas import BatchDraft, BatchRow, RowEnd, RowProblem
from slm_jobs.events import LOOK_AGAIN
from slm_jobs.schemas import GenerationParams, JobError, Output, Usage, Work
from slm_jobs.store import JobStore
from tests.api.batch_calls import JSONL, claim_all, jsonl, left_in, lines, send, take
from tests.api.conftest import bearer
from tests.api.fake_worker import FINGERPRINT, FakeWorker, outputs, usage
from tests.api.test_problems import problem

PARTIAL = [Output(index=0, text=" half", finish_reason="cancelled")]


def succeed(store: JobStore, *works: Work) -> None:
    ends = [RowEnd(work, "succeeded", outputs(work), usage(work), FINGERPRINT) for work in works]
    assert all(store.batches.finish(ends))


def fail(store: JobStore, work: Work, *, partial: bool = False) -> None:
    error = JobError(code="job_timeout", message="too slow")
    made = PARTIAL if partial else []
    used = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2) if partial else None
    assert store.batches.finish([RowEnd(work, "failed", made, used, None, error)]) == [True]


# Results and errors


def test_results(client: TestClient, store: JobStore) -> None:
    batch = take(client, {"prompt": "a", "custom_id": "é"}, {"prompt": "b", "n": 2}, "c")["id"]
    first, second, third = claim_all(store)
    succeed(store, third)
    succeed(store, second, first)
    found = lines(client.get(f"/batches/{batch}/results"))
    assert [(line["seq"], line["custom_id"], line["prompt"]) for line in found] == [
        (1, "3", "c"),
        (2, "2", "b"),
        (3, "é", "a"),
    ]
    assert found[0] == {
        "seq": 1,
        "custom_id": "3",
        "prompt": "c",
        "text": " <0> ☃",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7},
        "finished_at": found[0]["finished_at"],
    }
    assert found[0]["finished_at"].endswith("Z")
    assert "text" not in found[1]
    assert [output["index"] for output in found[1]["outputs"]] == [0, 1]
    assert lines(client.get(f"/batches/{batch}/errors")) == []


def test_several_prompts_of_an_openai_line(client: TestClient, store: JobStore) -> None:
    body = {"model": "tiny", "prompt": ["a", "b"]}
    batch = take(client, {"url": "/v1/completions", "body": body})["id"]
    succeed(store, *claim_all(store))
    [line] = lines(client.get(f"/batches/{batch}/results"))
    assert (line["prompt"], len(line["outputs"])) == (["a", "b"], 2)


def test_errors(client: TestClient, store: JobStore) -> None:
    content = jsonl("a", "b", "c") + b"{\n"
    batch = send(client, content, on_invalid="skip").json()["id"]
    first, second, _ = claim_all(store)
    fail(store, first)
    fail(store, second, partial=True)
    one, two, three = lines(client.get(f"/batches/{batch}/errors"))
    assert one["error"]["code"] == "malformed_json"
    assert (one["line"], one["custom_id"], one["seq"]) == (4, None, 1)
    assert two == {
        "seq": 2,
        "custom_id": "1",
        "prompt": "a",
        "error": {"code": "job_timeout", "message": "too slow"},
        "finished_at": two["finished_at"],
    }
    assert (three["text"], three["finish_reason"], three["usage"]["total_tokens"]) == (
        " half",
        "cancelled",
        2,
    )


def test_pages(client: TestClient, store: JobStore) -> None:
    """Also more of them than the service reads at once."""
    batch = take(client, *("a" for _ in range(450)))["id"]
    succeed(store, *claim_all(store))

    def seqs(query: str) -> list[int]:
        found = lines(client.get(f"/batches/{batch}/results?{query}"))
        return [line["seq"] for line in found]

    assert seqs("") == list(range(1, 451))
    assert seqs("follow=true") == list(range(1, 451))
    assert seqs("after=440&limit=5") == [441, 442, 443, 444, 445]
    assert seqs("limit=201") == list(range(1, 202))
    assert seqs("limit=200&follow=true") == list(range(1, 201))
    assert seqs("after=450") == seqs("after=1000000") == []


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("way", ["results", "errors", "openai", "retry"])
def test_rows_of_many_outputs_are_read_a_few_at_a_time(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch, way: str, own: bool
) -> None:
    """Whether the batch says so, or its rows."""
    said = {"n": 40}
    rows = ({"prompt": "a", **(said if own else {})} for _ in range(30))
    batch = take(client, *rows, **({} if own else said))["id"]
    works = claim_all(store)
    assert len(works) == 30
    if way in ("results", "openai"):
        succeed(store, *works)
    else:
        for work in works:
            error = JobError(code="job_timeout", message="too slow")
            store.batches.finish([RowEnd(work, "failed", outputs(work), usage(work), None, error)])
    name = {"errors": "failures", "retry": "unsuccessful"}.get(way, "results")
    read, seen = getattr(store.batches, name), list[int]()

    def watched(batch_id: str, after: int, limit: int) -> Any:
        found = read(batch_id, after, limit)
        seen.append(len(found))
        return found

    monkeypatch.setattr(store.batches, name, watched)
    if way == "retry":
        assert client.post(f"/batches/{batch}/retry").json()["counts"]["total"] == 30
    elif way == "openai":
        response = client.get(f"/v1/files/file-out_{batch.removeprefix('batch_')}/content")
        assert len(response.text.splitlines()) == 30
    else:
        assert len(lines(client.get(f"/batches/{batch}/{way}"))) == 30
    assert sum(seen) == 30
    assert seen[0] <= (20 if own else 1)
    assert max(seen[1:]) == 5


@pytest.mark.parametrize("of", ["results", "errors"])
@pytest.mark.parametrize(
    "query", ["after=-1", "limit=0", "after=x", "limit=1.5", "follow=1", "follow=yes"]
)
def test_wrong_pages(client: TestClient, of: str, query: str) -> None:
    batch = take(client, "a")["id"]
    problem(client.get(f"/batches/{batch}/{of}?{query}"), "invalid_request")


def test_following_to_the_end(client: TestClient, store: JobStore) -> None:
    batch = take(client, *("a" for _ in range(30)))["id"]
    with FakeWorker(store) as worker:
        found = lines(client.get(f"/batches/{batch}/results?follow=true"))
    assert [line["seq"] for line in found] == list(range(1, 31))
    assert len(worker.seen) == 30
    assert client.get(f"/batches/{batch}").json()["status"] == "completed"


def test_following_goes_on_as_rows_end(client: TestClient, store: JobStore) -> None:
    batch = take(client, "a", "b")["id"]
    first, second = claim_all(store)
    succeed(store, first)

    def end() -> None:
        fail(store, second)

    ender = threading.Timer(0.3, end)
    ender.start()
    started = time.monotonic()
    assert len(lines(client.get(f"/batches/{batch}/results?follow=true"))) == 1
    assert 0.3 <= time.monotonic() - started < LOOK_AGAIN
    ender.join()
    assert len(lines(client.get(f"/batches/{batch}/errors?follow=true"))) == 1


def test_following_keeps_the_connection_alive(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.batches.lines._BLANK_SECONDS", 0.0)
    batch = take(client, "a", "b")["id"]
    first, second = claim_all(store)
    ender = threading.Timer(0.2, lambda: (succeed(store, first), succeed(store, second)))
    ender.start()
    response = client.get(f"/batches/{batch}/results?follow=true")
    ender.join()
    assert "" in response.text.splitlines()
    assert len(lines(response)) == 2


def test_following_ends_with_its_key(
    client: TestClient, store: JobStore, key: NewKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.batches.lines._KEY_SECONDS", 0.0)
    batch = take(client, *("a" for _ in range(3)))["id"]
    first, *_ = claim_all(store)
    succeed(store, first)

    def end() -> None:
        store.keys.revoke(key.id)
        store.batches.cancel(batch)  # only something to be woken by

    ender = threading.Timer(0.2, end)
    ender.start()
    assert len(lines(client.get(f"/batches/{batch}/results?follow=true"))) == 1
    ender.join()
    assert not store.batches.get(batch).status.is_terminal


def test_following_what_is_deleted(client: TestClient, store: JobStore) -> None:
    batch = take(client, "a")["id"]
    claim_all(store)
    store.batches.get = _until_deleted(store)  # type: ignore[method-assign]
    assert lines(client.get(f"/batches/{batch}/results?follow=true")) == []


def _until_deleted(store: JobStore) -> Any:
    get, calls = store.batches.get, []

    def deleted(batch_id: str, **viewer: Any) -> Any:
        calls.append(batch_id)
        return get(batch_id, **viewer) if len(calls) < 2 else get("batch_1")

    return deleted


def test_following_rides_out_a_redis_that_is_away(
    client: TestClient, store: JobStore, redis_process: fakeredis.FakeServer
) -> None:
    batch = take(client, "a")["id"]
    works = claim_all(store)

    def come_back() -> None:
        redis_process.connected = True
        succeed(store, *works)

    enders = [
        threading.Timer(0.2, lambda: setattr(redis_process, "connected", False)),
        threading.Timer(0.6, come_back),
    ]
    for ender in enders:
        ender.start()
    assert len(lines(client.get(f"/batches/{batch}/results?follow=true"))) == 1
    for ender in enders:
        ender.join()


# State


def test_a_batch_through_its_life(client: TestClient, store: JobStore) -> None:
    batch = take(client, "a", "b", "c")
    address = f"/batches/{batch['id']}"
    first, second, third = claim_all(store)
    succeed(store, first)
    fail(store, second)
    counts = client.get(address).json()["counts"]
    assert (counts["running"], counts["succeeded"], counts["failed"]) == (1, 1, 1)
    problem(client.delete(address), "batch_not_ended")
    problem(client.post(f"{address}/retry"), "batch_not_ended")
    succeed(store, third)
    ended = client.get(address).json()
    assert (ended["status"], ended["counts"]["succeeded"]) == ("completed", 2)
    assert ended["usage"]["total_tokens"] == 14
    assert client.delete(address).status_code == 204
    problem(client.get(address), "batch_not_found")
    problem(client.delete(address), "batch_not_found")


@pytest.mark.parametrize("way", ["query", "header"])
def test_a_read_that_waits(client: TestClient, store: JobStore, way: str) -> None:
    batch = take(client, "a")["id"]
    [work] = claim_all(store)
    ender = threading.Timer(0.2, lambda: succeed(store, work))
    ender.start()
    started = time.monotonic()
    headers = {"Prefer": "wait=30"} if way == "header" else {}
    query = "?wait=30" if way == "query" else ""
    response = client.get(f"/batches/{batch}{query}", headers=headers)
    assert response.json()["status"] == "completed"
    assert 0.2 <= time.monotonic() - started < LOOK_AGAIN
    assert response.headers.get("preference-applied") == ("wait=30" if way == "header" else None)
    ender.join()


def test_a_read_that_waits_in_vain(client: TestClient) -> None:
    batch = take(client, "a")["id"]
    assert client.get(f"/batches/{batch}?wait=1").json()["status"] == "running"
    problem(client.get(f"/batches/{batch}?wait=61"), "invalid_request")


def test_cancelling(client: TestClient, store: JobStore) -> None:
    batch = take(client, "a", "b", "c")["id"]
    [work] = store.claim_next("tiny", worker="w1", rows=1)
    assert client.get(f"/batches/{batch}").json()["cancel_requested_at"] is None
    asked_at = set()
    for _ in range(2):
        asked = client.post(f"/batches/{batch}/cancel")
        assert asked.status_code == 200
        assert asked.json()["cancel_requested"] is True
        assert asked.json()["counts"]["cancelled"] == 2
        store.clock_offset_ms += 5_000  # it is told when it was asked for first
        asked_at.add(asked.json()["cancel_requested_at"])
    partial = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
    store.batches.finish([RowEnd(work, "cancelled", PARTIAL, partial, None)])
    ended = client.post(f"/batches/{batch}/cancel").json()
    assert (ended["status"], ended["counts"]["cancelled"]) == ("cancelled", 3)
    assert asked_at == {ended["cancel_requested_at"]}
    assert ended["created_at"] <= ended["cancel_requested_at"] < ended["finished_at"]
    found = lines(client.get(f"/batches/{batch}/errors?follow=true"))
    assert [line["error"]["code"] for line in found] == ["cancelled"] * 3
    assert sorted(line["prompt"] for line in found) == ["a", "b", "c"]
    assert [line.get("text") for line in found].count(" half") == 1


def test_lists(client: TestClient, store: JobStore, admin: NewKey) -> None:
    made = [take(client, "a")["id"] for _ in range(5)]
    first = client.get("/batches?limit=3").json()
    second = client.get(f"/batches?limit=3&cursor={first['next_cursor']}").json()
    assert [batch["id"] for batch in first["data"] + second["data"]] == made[::-1]
    assert second["next_cursor"] is None
    assert client.get("/batches", headers=bearer(admin)).json()["data"] == []
    for query in ("limit=0", "limit=101", "cursor=x"):
        problem(client.get(f"/batches?{query}"), "invalid_request")


CALLS = [
    ("GET", ""),
    ("DELETE", ""),
    ("POST", "/cancel"),
    ("POST", "/retry"),
    ("GET", "/callbacks"),
    ("GET", "/results"),
    ("GET", "/errors?follow=true"),
]


@pytest.mark.parametrize(("method", "rest"), CALLS)
def test_batches_of_others(
    client: TestClient, store: JobStore, admin: NewKey, method: str, rest: str
) -> None:
    batch = take(client, "a")["id"]
    [work] = claim_all(store)
    fail(store, work)
    other = bearer(store.keys.create(KeySettings(name="other")))
    problem(client.request(method, f"/batches/{batch}{rest}", headers=other), "batch_not_found")
    assert client.request(method, f"/batches/{batch}{rest}", headers=bearer(admin)).is_success


@pytest.mark.parametrize(("method", "rest"), CALLS)
@pytest.mark.parametrize(
    "id", ["x", "batch_", "job_01K9ZX3V7Q4C8E2M5T6R0B1DAF", "batch_" + "1" * 200, "batch_1:0"]
)
def test_no_such_batch(
    client: TestClient,
    redis: fakeredis.FakeRedis,
    method: str,
    rest: str,
    id: str,  # noqa: A002
) -> None:
    redis.set("slm:batch:batch_1:0", "of another type")
    document = problem(client.request(method, f"/batches/{id}{rest}"), "batch_not_found")
    assert len(document["detail"]) < 140


# Retrying


def test_a_retry(client: TestClient, store: JobStore) -> None:
    rows = [
        {"prompt": "a", "custom_id": "x", "temperature": 0.1},
        {"prompt": "b"},
        {"prompt": "c", "n": 2, "seed": 5},
        {"prompt": "d"},
    ]
    options = {"name": "n", "metadata": '{"k": "v"}', "completion_window": "2h", "seed": "100"}
    content = jsonl(*rows) + b"{\n"
    batch = send(client, content, on_invalid="skip", **options).json()
    works = claim_all(store)
    fail(store, works[0], partial=True)
    succeed(store, works[1])
    fail(store, works[2])
    fail(store, works[3])
    headers = {"Idempotency-Key": "again"}
    response = client.post(f"/batches/{batch['id']}/retry", headers=headers)
    assert response.status_code == 202
    made = response.json()
    assert response.headers["location"] == f"/batches/{made['id']}"
    assert (made["retry_of"], made["status"], made["name"]) == (batch["id"], "running", "n")
    assert (made["metadata"], made["params"]) == ({"k": "v"}, batch["params"])
    assert (made["counts"]["total"], made["counts"]["pending"]) == (3, 3)
    again = client.post(f"/batches/{batch['id']}/retry", headers=headers)
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (made["id"], "true")
    retried = claim_all(store)
    assert [work.row for work in retried] == [work.row for work in works if work is not works[1]]
    own = {"request_id": retried[0].spec.request_id}  # that of the retry
    specs = [work.spec.model_copy(update=own) for work in works if work is not works[1]]
    assert [work.spec for work in retried] == specs
    problem(client.post(f"/batches/{made['id']}/retry", headers=headers), "batch_not_ended")
    succeed(store, *retried)
    response = client.post(f"/batches/{made['id']}/retry", headers=headers)
    problem(response, "idempotency_conflict")
    problem(client.post(f"/batches/{made['id']}/retry"), "nothing_to_retry")


def test_rows_that_never_started_are_retried(client: TestClient, store: JobStore) -> None:
    batch = take(client, *({"prompt": "a", "custom_id": f"r{i}"} for i in range(1200)))["id"]
    [work] = store.claim_next("tiny", worker="w1", rows=1)
    client.post(f"/batches/{batch}/cancel")
    succeed(store, work)
    made = client.post(f"/batches/{batch}/retry").json()
    assert made["counts"]["pending"] == 1199
    names = {work.row.custom_id for work in claim_all(store) if work.row}
    assert names == {f"r{i}" for i in range(1, 1200)}


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"{\n{\n", "All 2 rows that failed are invalid"),
        (b'"a"\n{\n', "The row that failed is invalid, and cannot run again as the file has it"),
        (b'"a"\n', "Every row of batch"),
    ],
)
def test_nothing_to_retry(
    client: TestClient, store: JobStore, redis: fakeredis.FakeRedis, content: bytes, advice: str
) -> None:
    batch = send(client, content, on_invalid="skip").json()["id"]
    succeed(store, *claim_all(store))
    before = left_in(redis)
    document = problem(client.post(f"/batches/{batch}/retry"), "nothing_to_retry")
    assert document["detail"].startswith(advice)
    assert left_in(redis) == before


@pytest.mark.parametrize("end", ["cancelled", "refused"])
def test_nothing_to_retry_of_what_never_ran(
    client: TestClient, store: JobStore, key: NewKey, end: str
) -> None:
    owner = KeyProof.of(key.token)
    batch = store.batches.begin(BatchDraft("tiny", GenerationParams()), owner=owner).batch_id
    store.batches.add_rows(batch, [BatchRow("a", 1, ["a"], {}, 2, 1)])
    if end == "cancelled":
        client.post(f"/batches/{batch}/cancel")
    else:
        wrong = RowProblem(line=2, code="invalid_row", message="x")
        store.batches.reject(batch, [wrong], "digest")
    document = problem(client.post(f"/batches/{batch}/retry"), "nothing_to_retry")
    assert end in document["detail"]


def test_a_retry_of_rows_that_are_mostly_invalid(client: TestClient, store: JobStore) -> None:
    """Those that can run are found behind pages of others."""
    content = b"{\n" * 600 + b'"a"\n' + b"{\n" * 600
    batch = send(client, content, on_invalid="skip").json()["id"]
    [work] = claim_all(store)
    fail(store, work)
    made = client.post(f"/batches/{batch}/retry").json()
    assert (made["counts"]["total"], made["retry_of"]) == (1, batch)


def test_a_retry_has_as_long_as_its_batch_had(client: TestClient, store: JobStore) -> None:
    batch = take(client, "a", completion_window="90s")["id"]
    client.post(f"/batches/{batch}/cancel")
    made = store.batches.get(client.post(f"/batches/{batch}/retry").json()["id"])
    assert made.expires_at is not None
    assert round((made.expires_at - made.created_at).total_seconds()) == 90


def test_json_lines_are_what_they_say(client: TestClient, store: JobStore, key: NewKey) -> None:
    """However they are split: some readers take more than \\n for the end of a line."""
    ends = "".join(end for end in map(chr, range(0x3000)) if len(f"a{end}b".splitlines()) > 1)
    asked = f"é ☃{ends}\n\x00"
    batch = take(client, asked, asked)["id"]
    one, two = claim_all(store)
    succeed(store, one)
    fail(store, two)

    def answer(request: httpx.Request) -> httpx.Response:
        got = client.get(str(request.url))
        return httpx.Response(got.status_code, headers=got.headers, content=got.content)

    with Client("http://testserver", key.token, transport=httpx.MockTransport(answer)) as ours:
        for name, read in (("results", ours.batches.results), ("errors", ours.batches.errors)):
            response = client.get(f"/batches/{batch}/{name}")
            assert response.headers["content-type"] == JSONL
            assert response.content.endswith(b"\n")
            assert "é ☃" in response.text
            for split in (response.text.splitlines(), response.content.splitlines()):
                assert [json.loads(line)["prompt"] for line in split] == [asked]
            assert [result.prompt for result in read(batch)] == [asked]
