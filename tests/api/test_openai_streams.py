"""`/v1/completions` as a stream, and calls that end before their job."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from api.app import create_app
from api.openai import streaming
from api.openai.errors import OpenAIError
from slm_jobs.api_keys import NewKey
from slm_jobs.events import JobEvents
from slm_jobs.schemas import JobError, JobStatus, Work
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.conftest import bearer
from tests.api.fake_worker import FINGERPRINT, FakeWorker, answer, outputs, stream, usage
from tests.api.openai_calls import BODY, asgi_call, complete, error


@pytest.fixture
def worker(store: JobStore) -> Iterator[FakeWorker]:
    with FakeWorker(store) as worker:
        yield worker


def chunks_of(response: Response) -> list[Any]:
    """What the stream said; the last line as it is."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, end = response.text.split("\n\n")
    assert end == ""
    assert all(line.startswith("data: ") for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [line if line == "[DONE]" else json.loads(line) for line in data]


def joined(chunks: list[Any], count: int) -> list[str]:
    texts = [""] * count
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts


def test_a_stream(client: TestClient, worker: FakeWorker) -> None:
    response = complete(client, stream=True, n=2)
    assert response.headers["x-ratelimit-limit-requests"]
    assert response.headers["x-accel-buffering"] == "no"
    *chunks, done = chunks_of(response)
    assert done == "[DONE]"
    assert joined(chunks, 2) == [" <0> ☃", " <1> ☃"]
    reasons = [(c["choices"][0]["index"], c["choices"][0]["finish_reason"]) for c in chunks]
    assert reasons[-2:] == [(0, "stop"), (1, "stop")]
    assert {reason for _, reason in reasons[:-2]} == {None}
    assert {chunk["id"] for chunk in chunks} == {f"cmpl-{worker.seen[0].id}"}
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["system_fingerprint"] == FINGERPRINT


def test_text_is_sent_while_the_job_runs(client: TestClient, store: JobStore) -> None:
    """The job waits for its own first chunk to be sent."""
    sent = threading.Event()

    def patient(store: JobStore, work: Work) -> None:
        stream(store, work, FINGERPRINT)
        assert sent.wait(10), "nothing was sent before the end"
        assert store.complete(work, outputs(work), usage(work), fingerprint=FINGERPRINT)

    def on_send(body: bytes) -> None:
        if b"0>" in body:  # of the last piece
            sent.set()

    with FakeWorker(store, patient):
        status, body = asgi_call(client, {**BODY, "stream": True}, on_send=on_send)
    assert status == 200
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_stream_with_usage_and_echo(client: TestClient, worker: FakeWorker) -> None:
    options = {"include_usage": True}
    *chunks, last, done = chunks_of(
        complete(client, stream=True, echo=True, stream_options=options)
    )
    assert done == "[DONE]"
    assert joined(chunks, 1) == ["Once upon <0> ☃"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}


def test_a_silent_stream_stays_open(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SILENCE", 0.01)
    heard = threading.Event()

    def quiet(store: JobStore, work: Work) -> None:
        assert heard.wait(10)
        answer(store, work)

    def on_send(body: bytes) -> None:
        if body.startswith(b": "):
            heard.set()

    with FakeWorker(store, quiet):
        _, body = asgi_call(client, {**BODY, "stream": True}, on_send=on_send)
    lines = [line for line in body.decode().split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert joined([json.loads(line[6:]) for line in lines[:-1]], 1) == [" <0> ☃"]


@pytest.mark.parametrize("stopped_in_a_line", [False, True])
def test_a_stream_that_is_stopped_closes_what_it_reads(stopped_in_a_line: bool) -> None:
    async def stop() -> None:
        closed = False

        async def lines() -> AsyncGenerator[bytes, None]:
            nonlocal closed
            try:
                yield b"1"
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                closed = True

        source = lines()  # held here: only its user closes it
        kept = streaming._kept_alive(source)
        assert await anext(kept) == b"1"
        if stopped_in_a_line:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(kept), 0.02)
        await kept.aclose()
        assert closed
        assert await anext(source, None) is None

    asyncio.run(stop())


def test_a_job_that_is_deleted_in_its_stream(client: TestClient, store: JobStore) -> None:
    def vanish(store: JobStore, work: Work) -> None:
        store.fail(work, JobError(code="gone", message="gone"))
        store.delete(work.id)

    with FakeWorker(store, vanish):
        *_, last = chunks_of(complete(client, stream=True))
    assert last["error"]["code"] == "generation_failed"


def test_a_restart_that_nobody_saw_is_none(client: TestClient, store: JobStore) -> None:
    def restarted(store: JobStore, work: Work) -> None:
        assert store.append(work, "other/1", []) == {}
        answer(store, work)

    with FakeWorker(store, restarted):
        *chunks, done = chunks_of(complete(client, stream=True))
    assert done == "[DONE]"
    assert joined(chunks, 1) == [" <0> ☃"]


def test_a_restart_after_text_ends_the_stream(client: TestClient, store: JobStore) -> None:
    sent = threading.Event()

    def restarted(store: JobStore, work: Work) -> None:
        stream(store, work, "other/1")
        assert sent.wait(10)
        stream(store, work, FINGERPRINT)

    def on_send(body: bytes) -> None:
        if b"0>" in body:  # of the last piece
            sent.set()

    with FakeWorker(store, restarted) as worker:
        status, body = asgi_call(client, {**BODY, "stream": True}, on_send=on_send)
    *_, last, end = body.decode().split("\n\n")
    assert (status, end) == (200, "")
    failure = json.loads(last.removeprefix("data: "))
    OpenAIError.model_validate(failure, strict=True)
    assert "started anew" in failure["error"]["message"]
    assert store.get(worker.seen[0].id).cancel_requested


def test_a_job_that_fails_in_its_stream(client: TestClient, store: JobStore) -> None:
    def fail(store: JobStore, work: Work) -> None:
        stream(store, work, FINGERPRINT)
        store.fail(work, JobError(code="out_of_memory", message="no room"))

    with FakeWorker(store, fail):
        *_, last = chunks_of(complete(client, stream=True))
    OpenAIError.model_validate(last, strict=True)
    assert last["error"]["code"] == "generation_failed"
    assert "out_of_memory" in last["error"]["message"]


def hold(store: JobStore, work: Work) -> None:
    """Leaves the job running."""


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_goes_away_cancels_its_job(
    client: TestClient, store: JobStore, streamed: bool
) -> None:
    with FakeWorker(store, hold) as worker:
        asgi_call(client, {**BODY, "stream": streamed}, leave=worker.claimed)
    assert store.get(worker.seen[0].id).cancel_requested


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_that_may_be_repeated_leaves_its_job(
    client: TestClient, store: JobStore, streamed: bool
) -> None:
    body = {**BODY, "stream": streamed}
    with FakeWorker(store, hold) as worker:
        asgi_call(client, body, leave=worker.claimed, idempotency_key="k1")
    [work] = worker.seen
    assert not store.get(work.id).cancel_requested
    answer(store, work)
    again = client.post("/v1/completions", json=body, headers={"Idempotency-Key": "k1"})
    assert f"cmpl-{work.id}" in again.text
    assert "<0>" in again.text


def test_a_repeated_call_is_the_same_job(client: TestClient, worker: FakeWorker) -> None:
    key = {"Idempotency-Key": "k1"}
    first = complete(client, key).json()
    assert complete(client, key).json() == first
    assert len(worker.seen) == 1
    error(complete(client, key, seed=1), 422, "idempotency_conflict")


def test_a_call_that_takes_too_long(
    settings: Settings, store: JobStore, events: JobEvents, key: NewKey
) -> None:
    hasty = create_app(settings.model_copy(update={"sync_timeout_seconds": 0.2}), store, events)
    with TestClient(hasty, headers=bearer(key)) as client, FakeWorker(store, hold) as worker:
        response = complete(client)
    assert "0.2 s" in error(response, 504, "timeout")
    assert response.headers["x-should-retry"] == "false"
    assert store.get(worker.seen[0].id).cancel_requested


def test_a_failed_job(client: TestClient, store: JobStore) -> None:
    def fail(store: JobStore, work: Work) -> None:
        store.fail(work, JobError(code="out_of_memory", message="no room"))

    with FakeWorker(store, fail):
        response = complete(client)
    message = error(response, 500, "generation_failed")
    assert "out_of_memory: no room" in message
    assert response.headers["x-should-retry"] == "false"


def test_a_job_that_somebody_cancelled(client: TestClient, store: JobStore) -> None:
    def cancel(store: JobStore, work: Work) -> None:
        store.cancel(work.id)
        store.cancelled(work, outputs(work), usage(work), fingerprint=FINGERPRINT)

    with FakeWorker(store, cancel) as worker:
        assert "cancelled" in error(complete(client), 500, "generation_failed")
    assert store.get(worker.seen[0].id).status is JobStatus.CANCELLED
