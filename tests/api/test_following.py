"""Waiting for a job, following, cancelling, listing and deleting it, and asking again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from slm_jobs.api_keys import NewKey
from slm_jobs.schemas import Output, Piece, Usage, Work
from slm_jobs.store import JobStore
from tests.api.fake_worker import FINGERPRINT, FakeWorker, outputs, usage
from tests.api.test_problems import problem

BODY = {"prompt": "a", "max_tokens": 5}


@pytest.fixture
def worker(store: JobStore) -> Iterator[FakeWorker]:
    with FakeWorker(store) as worker:
        yield worker


def take(client: TestClient, **fields: object) -> str:
    job_id: str = client.post("/jobs", json={**BODY, **fields}).json()["id"]
    return job_id


def claim(store: JobStore) -> Work:
    [work] = store.claim_next("tiny", worker="w1")
    return work


# Waiting


def test_a_submit_that_waits(client: TestClient, worker: FakeWorker) -> None:
    response = client.post("/jobs", json=BODY, headers={"Prefer": "respond-async, wait=10"})
    assert (response.status_code, response.json()["status"]) == (200, "succeeded")
    assert response.headers["preference-applied"] == "wait=10"
    assert response.headers["location"].startswith("/jobs/job_")


@pytest.mark.parametrize(
    ("prefer", "applied"), [("wait=1", "wait=1"), ("wait=0", None), ("wait=x, foo", None)]
)
def test_a_submit_that_waits_in_vain(client: TestClient, prefer: str, applied: str | None) -> None:
    response = client.post("/jobs", json=BODY, headers={"Prefer": prefer})
    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert response.headers.get("preference-applied") == applied


def test_a_read_that_waits_ends_with_the_job(client: TestClient, store: JobStore) -> None:
    job = take(client)
    ender = threading.Timer(0.2, lambda: store.cancel(job))
    started = time.monotonic()
    ender.start()
    assert client.get(f"/jobs/{job}?wait=30").json()["status"] == "cancelled"
    assert 0.2 <= time.monotonic() - started < 3
    ender.join()
    assert client.get(f"/jobs/{job}?wait=30").json()["status"] == "cancelled"


@pytest.mark.parametrize("wait", ["61", "-1", "x"])
def test_how_long_one_may_wait(client: TestClient, wait: str) -> None:
    problem(client.get(f"/jobs/{take(client)}?wait={wait}"), "invalid_request")


# Following


def events(client: TestClient, job: str, after: str | None = None) -> list[tuple[str, Any, Any]]:
    """Name, data and id of every event until the end."""
    headers = {"Last-Event-ID": after} if after else {}
    response = client.get(f"/jobs/{job}/stream", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if fields:
            found.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
    return found


def text_of(found: list[tuple[str, Any, Any]]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for name, data, _ in found:
        if name == "restart":
            texts.clear()
        if name == "token":
            texts[data["index"]] = texts.get(data["index"], "") + data["text"]
    return texts


def test_a_job_as_it_runs(client: TestClient, store: JobStore) -> None:
    job = take(client, stream=True)

    def run() -> None:
        time.sleep(0.1)
        work = claim(store)
        for token, text in enumerate((" one", " two", " three")):
            store.append(work, "f", [Piece(0, token, token + 1, text)])
            time.sleep(0.12)
        ended = [Output(index=0, text=" one two three", finish_reason="stop")]
        store.complete(work, ended, usage(work), fingerprint="f")

    thread = threading.Thread(target=run)
    thread.start()
    found = events(client, job)
    thread.join()
    assert [name for name, _, _ in found] == ["status", "status", "token", "token", "token", "done"]
    assert [data["status"] for name, data, _ in found if name == "status"] == ["queued", "running"]
    assert [event_id for name, _, event_id in found if name == "token"] == ["0:1", "0:2", "0:3"]
    assert found[-1][1]["outputs"][0]["text"] == " one two three"


def test_an_ended_job_is_told_from_any_place(client: TestClient, worker: FakeWorker) -> None:
    job = take(client, stream=True, n=2)
    done = client.get(f"/jobs/{job}?wait=10").json()
    found = events(client, job)
    texts = {output["index"]: output["text"] for output in done["outputs"]}
    assert text_of(found) == texts
    assert found[-1] == ("done", done, None)
    tokens = [event for event in found if event[0] == "token"]
    for place, (_, _, event_id) in enumerate(tokens):
        rest = [event for event in events(client, job, event_id) if event[0] == "token"]
        assert text_of([*tokens[: place + 1], *rest]) == texts


def test_a_job_that_does_not_stream(client: TestClient, worker: FakeWorker) -> None:
    job = take(client, n=2)
    client.get(f"/jobs/{job}?wait=10")
    found = events(client, job)
    assert text_of(found) == {0: " <0> ☃", 1: " <1> ☃"}
    assert [event_id for name, _, event_id in found if name == "token"] == ["0:end", "1:end"]
    assert text_of(events(client, job, "0:end")) == {1: " <1> ☃"}


def test_another_fingerprint_begins_anew(client: TestClient, store: JobStore) -> None:
    job = take(client, stream=True)
    work = claim(store)
    store.append(work, "f", [Piece(0, 0, 2, "old text")])
    store.hand_back([work])
    work = claim(store)
    store.append(work, "g", [])
    store.append(work, "g", [Piece(0, 0, 1, "new")])
    ended = [Output(index=0, text="new", finish_reason="stop")]
    store.complete(work, ended, usage(work), fingerprint="g")
    found = events(client, job)
    assert [name for name, _, _ in found] == ["token", "restart", "token", "done"]
    assert text_of(found) == {0: "new"}
    assert [name for name, _, _ in events(client, job, "0:2")] == ["restart", "token", "done"]


def test_an_unknown_place_begins_anew(client: TestClient, worker: FakeWorker) -> None:
    job = take(client, stream=True)
    client.get(f"/jobs/{job}?wait=10")
    found = events(client, job, "0:77")
    assert found[0][0] == "restart"
    assert text_of(found) == {0: " <0> ☃"}


@pytest.mark.parametrize("place", ["x", "0", "0:", "-1:2", "0:1:2", "9" * 20])
def test_a_place_that_is_none(client: TestClient, place: str) -> None:
    job = take(client)
    response = client.get(f"/jobs/{job}/stream", headers={"Last-Event-ID": place})
    problem(response, "invalid_request")


def test_a_stream_ends_with_its_key(client: TestClient, store: JobStore, key: NewKey) -> None:
    job = take(client, stream=True)
    work = claim(store)
    stop = threading.Event()

    def write() -> None:
        token = 0
        while not stop.wait(0.1):
            store.append(work, "f", [Piece(0, token, token + 1, " x")])
            token += 1

    writer, ender = (
        threading.Thread(target=write),
        threading.Timer(0.5, store.keys.revoke, [key.id]),
    )
    writer.start()
    ender.start()
    started = time.monotonic()
    found = events(client, job)
    stop.set()
    writer.join()
    ender.join()
    assert "done" not in [name for name, _, _ in found]
    assert len(found) > 3
    assert time.monotonic() - started < 5


def test_no_job_to_follow(client: TestClient) -> None:
    problem(client.get("/jobs/job_1/stream"), "job_not_found")


# Cancelling and deleting


def test_a_job_is_cancelled(client: TestClient, store: JobStore) -> None:
    queued, running = take(client), take(client)
    assert client.post(f"/jobs/{queued}/cancel").json()["status"] == "cancelled"
    work = claim(store)
    for _ in range(2):
        asked = client.post(f"/jobs/{running}/cancel")
        assert asked.status_code == 200
        assert (asked.json()["status"], asked.json()["cancel_requested"]) == ("running", True)
    partial = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
    store.cancelled(work, outputs(work), partial, fingerprint=FINGERPRINT)
    assert client.post(f"/jobs/{running}/cancel").json()["outputs"]


def test_a_job_is_deleted(client: TestClient, store: JobStore) -> None:
    job = take(client)
    problem(client.delete(f"/jobs/{job}"), "job_not_ended")
    client.post(f"/jobs/{job}/cancel")
    response = client.delete(f"/jobs/{job}")
    assert (response.status_code, response.content) == (204, b"")
    problem(client.get(f"/jobs/{job}"), "job_not_found")
    problem(client.delete(f"/jobs/{job}"), "job_not_found")


# Lists


def test_pages(client: TestClient) -> None:
    made = [take(client) for _ in range(5)]
    client.post(f"/jobs/{made[1]}/cancel")
    first = client.get("/jobs?limit=3").json()
    second = client.get(f"/jobs?limit=3&cursor={first['next_cursor']}").json()
    assert [job["id"] for job in first["data"] + second["data"]] == made[::-1]
    assert second["next_cursor"] is None
    some = client.get("/jobs?status=cancelled&status=failed").json()
    assert [job["id"] for job in some["data"]] == [made[1]]
    none = client.get("/jobs?created_before=2020-01-01T00:00:00Z").json()
    assert none == {"data": [], "next_cursor": None}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "cursor=x", "status=lost", "created_after=today", "key=*"]
)
def test_wrong_filters(client: TestClient, query: str) -> None:
    problem(client.get(f"/jobs?{query}"), "invalid_request")


def test_the_queue(client: TestClient, store: JobStore) -> None:
    take(client)
    claim(store)
    take(client)
    tiny, small = client.get("/queue").json()["data"]
    assert (tiny["model"], tiny["waiting"], tiny["running"]) == ("tiny", 1, 1)
    assert (small["model"], small["waiting"], small["estimated_wait_seconds"]) == ("small", 0, None)


# Asking again


def test_the_same_key_is_the_same_job(client: TestClient, worker: FakeWorker) -> None:
    headers = {"Idempotency-Key": "order-7"}
    first = client.post("/jobs", json={"prompt": "a", "max_tokens": 5}, headers=headers)
    again = client.post(
        "/jobs",
        content=b'{"max_tokens":5,  "prompt":"\\u0061"}',
        headers={
            "Idempotency-Key": '"order-7"',
            "Content-Type": "application/json",
            "Prefer": "wait=10",
        },
    )
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["status"] == "succeeded"
    assert len(worker.seen) == 1


def test_the_same_key_with_another_body(client: TestClient, store: JobStore) -> None:
    headers = {"Idempotency-Key": "order-7"}
    job = client.post("/jobs", json=BODY, headers=headers).json()["id"]
    problem(client.post("/jobs", json={**BODY, "n": 2}, headers=headers), "idempotency_conflict")
    assert store.queue_depth("tiny") == 1
    client.post(f"/jobs/{job}/cancel")
    client.delete(f"/jobs/{job}")
    document = problem(client.post("/jobs", json=BODY, headers=headers), "job_gone")
    assert job in document["detail"]


@pytest.mark.parametrize("given", ["", " ", '""', "x" * 256, "ä"])
def test_keys_that_are_none(client: TestClient, store: JobStore, given: str) -> None:
    headers = [(b"Idempotency-Key", given.encode()), (b"Content-Type", b"application/json")]
    response = client.post("/jobs", content=json.dumps(BODY).encode(), headers=headers)
    problem(response, "invalid_request")
    assert store.queue_depth("tiny") == 0


# Templates


def test_a_template(client: TestClient, store: JobStore) -> None:
    body = {"model": "small", "template": "animal", "variables": {"animal": "fox", "name": "Bo"}}
    assert client.post("/jobs", json=body).status_code == 202
    [work] = store.claim_next("small", worker="w1")
    assert work.spec.prompts == ["A fox named Bo"]


def test_wrong_templates(client: TestClient, store: JobStore) -> None:
    document = problem(client.post("/jobs", json={"template": "animal"}), "unknown_template")
    assert "it has none" in document["detail"]
    body = {"model": "small", "template": "poem"}
    assert "animal" in problem(client.post("/jobs", json=body), "unknown_template")["detail"]
    body = {"model": "small", "template": "animal", "variables": {"animal": "fox", "nam": "Bo"}}
    document = problem(client.post("/jobs", json=body), "invalid_request")
    assert "nam" in document["detail"]
    assert "name" in document["detail"]
    assert document["errors"][0]["pointer"] == "/variables"
