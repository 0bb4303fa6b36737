"""Uploads that are too many, of all keys or of one, and whose turn it is."""

from __future__ import annotations

import threading

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from api.app import create_app
from api.batches.uploads import Turn, Uploads
from api.problems import Problem
from slm_jobs.api_keys import KeySettings, NewKey
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.batch_calls import Upload, jsonl, send, until
from tests.api.conftest import bearer


def test_only_so_many_uploads_at_once(
    settings: Settings, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More wait, unread; other requests do not, nor batches that are JSON."""
    monkeypatch.setattr("api.app.Uploads", lambda: Uploads(most=4))
    made = [store.keys.create(KeySettings(name=str(i))) for i in range(3)]
    with TestClient(create_app(settings, store), headers=bearer(made[2])) as client:
        running = [Upload(client, **bearer(key)) for key in made[:2] for _ in range(2)]
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


def test_uploads_of_a_key_that_wait_take_no_place(
    settings: Settings, store: JobStore, key: NewKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.app.Uploads", lambda: Uploads(most=3, wait_seconds=0.5))
    other = bearer(store.keys.create(KeySettings(name="other")))
    with TestClient(create_app(settings, store), headers=bearer(key)) as client:
        form = {"content-type": "multipart/form-data; boundary=x"}
        running = [Upload(client, path, **form) for path in ("/batches", "/v1/files")]
        until(lambda: all(upload.reads for upload in running))
        waiting = [Upload(client) for _ in range(3)]
        assert send(client, b"a", "text/plain", other).status_code == 202
        for upload in waiting:
            assert upload.end() == 503
            assert upload.answer()["detail"].startswith("Of this key 2 uploads are coming in")
            assert upload.reads == 0
        for upload in running:
            upload.leave()
            upload.end()
        assert send(client, b"a", "text/plain").status_code == 202


@pytest.mark.parametrize("way", ["file", "json", "retry", "openai"])
def test_what_is_refused_says_when_to_come_again(
    settings: Settings, store: JobStore, key: NewKey, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Every way to a batch has its turn, and gives it back."""
    made: list[Uploads] = []

    def uploads() -> Uploads:
        made.append(Uploads(most=1, wait_seconds=0.05))
        return made[0]

    monkeypatch.setattr("api.app.Uploads", uploads)
    with TestClient(create_app(settings, store), headers=bearer(key)) as client:
        batch = client.post("/batches", json={"rows": ["a"], "max_tokens": 5}).json()["id"]
        client.post(f"/batches/{batch}/cancel")
        line = {"custom_id": "a", "url": "/v1/completions", "body": {"model": "tiny"}}
        form = {"purpose": (None, "batch"), "file": ("a.jsonl", jsonl(line))}
        file = client.post("/v1/files", files=form).json()["id"]
        asked = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}

        def ask() -> Response:
            match way:
                case "file":
                    return send(client, b"a", "text/plain")
                case "json":
                    return client.post("/batches", json={"rows": ["a"], "max_tokens": 5})
                case "retry":
                    return client.post(f"/batches/{batch}/retry")
                case _:
                    return client.post("/v1/batches", json=asked)

        release = threading.Event()

        def hold(turn: Turn) -> None:
            with turn.paused():
                release.wait()

        assert client.portal is not None
        if way == "file":
            running = Upload(client)
            until(lambda: running.reads)
        else:
            holder = client.portal.start_task_soon(made[0].run, key.id, hold)
            until(lambda: made[0]._here._room.locked())
        response = ask()
        assert response.status_code == 503
        assert "1 uploads are coming in already" in response.text
        assert int(response.headers["retry-after"]) > 1
        if way == "file":
            running.push(b"a")
            assert running.end() == 202
        else:
            release.set()
            holder.result(timeout=30)
        assert ask().is_success


def test_only_some_work_at_a_time(client: TestClient) -> None:
    """Who waits for its body lets others work; who works is waited for, but not for ever."""
    uploads = Uploads(working=1, wait_seconds=0.1)
    inside, release = threading.Event(), threading.Event()

    def work(turn: Turn) -> None:
        inside.set()
        release.wait()

    def wait(turn: Turn) -> None:
        with turn.paused():
            work(turn)

    assert client.portal is not None
    for hold, is_refused in ((work, True), (wait, False)):
        inside.clear()
        release.clear()
        holder = client.portal.start_task_soon(uploads.run, "a", hold)
        inside.wait()
        other = client.portal.start_task_soon(uploads.run, "b", lambda _: "done")
        if is_refused:
            with pytest.raises(Problem, match="had no turn"):
                other.result(timeout=30)
        else:
            assert other.result(timeout=30) == "done"
        release.set()
        holder.result(timeout=30)
    assert client.portal.call(uploads.run, "b", lambda _: "done") == "done"


def test_a_turn_ends_with_who_wanted_it(client: TestClient) -> None:
    uploads = Uploads(working=1)
    inside, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work(turn: Turn) -> None:
        try:
            with turn.paused():
                inside.set()
                release.wait()
        finally:
            ended.set()

    assert client.portal is not None
    call = client.portal.start_task_soon(uploads.run, "a", work)
    inside.wait()
    call.cancel()
    until(call.done)
    release.set()
    ended.wait()
    assert client.portal.call(uploads.run, "a", lambda _: "done") == "done"
