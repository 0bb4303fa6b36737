"""Asking for callbacks, and where they may go."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import fakeredis
import httpx
import pytest
from starlette.testclient import TestClient

from api import callback_targets
from api.app import create_app
from slm_jobs.api_keys import KeySettings, NewKey
from slm_jobs.callback_schemas import BATCH_ENDS, JOB_ENDS
from slm_jobs.callback_urls import check_reachable
from slm_jobs.events import JobEvents
from slm_jobs.lookups import Resolve
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.batch_calls import left_in
from tests.api.callback_calls import (
    BATCHES,
    BODY,
    CALLBACK,
    EVERYWHERE,
    HOOK,
    Take,
    due,
    run,
    take_file,
    take_form,
    take_job,
    take_json,
    told,
)
from tests.api.conftest import bearer
from tests.api.test_problems import problem

# Asking


def test_a_job_tells(client: TestClient, store: JobStore, key: NewKey) -> None:
    job = take_job(client, **CALLBACK, metadata={"a": "b"}).json()["id"]
    run(store)
    [one] = due(store)
    assert (one.id, one.url) == (f"{job}-succeeded", HOOK)
    assert one.lane == f"{key.id} example.com:443"
    event = json.loads(one.payload)
    assert (event["type"], event["data"]["id"]) == ("job.succeeded", job)
    assert event["data"]["url"] == f"http://testserver/jobs/{job}"
    assert "outputs" not in event["data"]
    assert client.get(event["data"]["url"]).json()["id"] == job


@BATCHES
def test_a_batch_tells(client: TestClient, store: JobStore, take: Take) -> None:
    response = take(client, **CALLBACK)
    assert response.status_code == 202, response.text
    batch = response.json()["id"]
    run(store)
    [event] = told(store)
    assert (event["type"], event["data"]["id"]) == ("batch.completed", batch)
    assert event["data"]["url"] == f"http://testserver/batches/{batch}"


def test_the_address_is_that_under_which_the_caller_came(
    settings: Settings, store: JobStore, events: JobEvents, resolve: Resolve, key: NewKey
) -> None:
    app = create_app(settings, store, events, resolve)
    with TestClient(
        app, "https://testserver:8443", root_path="/slm", headers=bearer(key)
    ) as client:
        job = client.post("/slm/jobs", json={**BODY, **CALLBACK}).json()["id"]
        files = {"file": ("a.txt", b"a\n")}
        options = {**CALLBACK, "max_tokens": "5"}
        batch = client.post("/slm/batches", data=options, files=files).json()["id"]
        run(store)
    assert {event["data"]["url"] for event in told(store)} == {
        f"https://testserver:8443/slm/jobs/{job}",
        f"https://testserver:8443/slm/batches/{batch}",
    }


def test_a_job_tells_what_it_was_asked_to(client: TestClient, store: JobStore) -> None:
    asked = {"callback_events": ["running", "succeeded", "running"], "callback_outputs": True}
    take_job(client, **CALLBACK, **asked)
    take_job(client, **CALLBACK, callback_events=["failed", "cancelled"])
    run(store)
    running, succeeded = told(store)
    assert (running["type"], succeeded["type"]) == ("job.running", "job.succeeded")
    assert succeeded["data"]["outputs"][0]["text"] == " <0> ☃"


@BATCHES
def test_a_batch_tells_what_it_was_asked_to(
    client: TestClient, store: JobStore, take: Take
) -> None:
    assert take(client, **CALLBACK, callback_events=["running", "completed"]).is_success
    assert take(client, **CALLBACK, callback_events=["cancelled"]).is_success
    run(store)
    assert [event["type"] for event in told(store)] == ["batch.running", "batch.completed"]


@BATCHES
def test_progress_may_be_asked_for_as_it_is_told(
    client: TestClient, store: JobStore, redis: fakeredis.FakeRedis, take: Take
) -> None:
    events = ["batch.progress", "progress", "running"]
    batch = take(client, **CALLBACK, callback_events=events).json()["id"]
    assert redis.hget(f"slm:batch:{batch}", "callback_events") == "progress running"
    problem(take_job(client, **CALLBACK, callback_events=["batch.progress"]), "invalid_request")
    problem(take(client, **CALLBACK, callback_events=["batch.ended"]), "invalid_request")


def test_a_key_with_too_many_pending_ones_waits(
    client: TestClient, store: JobStore, redis: fakeredis.FakeRedis, key: NewKey
) -> None:
    redis.hset("slm:pending_callbacks", key.id, 100_000)
    for take in (take_job, take_json, take_file, take_form):
        response = take(client, **CALLBACK)
        problem(response, "too_many_callbacks")
        assert int(response.headers["retry-after"]) > 0
        assert take(client).status_code == 202
    other = bearer(store.keys.create(KeySettings(name="other")))
    assert client.post("/jobs", json={**BODY, **CALLBACK}, headers=other).status_code == 202


def test_every_end_is_told_by_default(client: TestClient, redis: fakeredis.FakeRedis) -> None:
    for take, work, ends in ((take_job, "job", JOB_ENDS), (take_json, "batch", BATCH_ENDS)):
        taken = take(client, **CALLBACK, callback_events=None).json()["id"]
        assert redis.hget(f"slm:{work}:{taken}", "callback_events") == " ".join(ends)


@EVERYWHERE
@pytest.mark.parametrize(
    "asked",
    [
        {"callback_events": ["failed"]},
        {**CALLBACK, "callback_events": ["ended"]},
        {**CALLBACK, "callback_events": ["failed"] * 9},
        {"callback_url": ""},
        {"callback_url": "https://example.com/" + "a" * 2030},
    ],
)
def test_wrong_fields(
    client: TestClient, redis: fakeredis.FakeRedis, take: Take, asked: dict[str, Any]
) -> None:
    problem(take(client, **asked), "invalid_request")
    assert left_in(redis) == []


def test_fields_of_jobs_alone(client: TestClient) -> None:
    problem(take_job(client, callback_outputs=True), "invalid_request")
    problem(take_job(client, **CALLBACK, callback_events=["progress"]), "invalid_request")
    problem(take_json(client, **CALLBACK, callback_outputs=True), "invalid_request")
    assert take_job(client, callback_url=None, callback_events=None).status_code == 202


def test_what_the_body_says_goes_before(client: TestClient, store: JobStore) -> None:
    body = {"rows": ["a"], "max_tokens": 5, "callback_url": "https://example.com/b"}
    client.post("/batches", params={"callback_url": "http://10.0.0.1/"}, json=body)
    run(store)
    [one] = due(store)
    assert one.url == "https://example.com/b"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "a"}),
        ("/v1/completions", {"model": "tiny", "prompt": "a"}),
        (
            "/v1/batches",
            {"input_file_id": "file-1", "endpoint": "/v1/completions", "completion_window": "24h"},
        ),
    ],
)
def test_other_routes_take_no_callbacks(client: TestClient, path: str, body: Any) -> None:
    answer = client.post(path, json={**body, **CALLBACK})
    assert answer.status_code in (400, 422)
    assert "callback_url: Unknown field" in answer.text
    row = {"prompt": "a", **CALLBACK}
    problem(client.post("/batches", json={"rows": [row]}), "invalid_rows")


@EVERYWHERE
def test_sent_again(
    client: TestClient, store: JobStore, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.headers["Idempotency-Key"] = "k"
    first, again = (take(client, **CALLBACK) for _ in range(2))
    assert again.headers["idempotent-replayed"] == "true"
    assert first.json()["id"] == again.json()["id"]
    problem(take(client, callback_url=HOOK + "2"), "idempotency_conflict")
    run(store)
    assert len(told(store)) == 1


# Where they may go


@EVERYWHERE
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("hook", "invalid_url"),
        ("http://example.com/", "https_required"),
        ("https://u:p@example.com/", "user_info"),
        ("https://127.0.0.1/", "address_not_allowed"),
        ("https://0x7f.1/", "address_not_allowed"),
        ("https://nowhere.example.com/", "address_not_allowed"),
        ("https://inside.example.com/", "address_not_allowed"),
    ],
)
def test_urls_that_are_refused(
    client: TestClient,
    redis: fakeredis.FakeRedis,
    dns: dict[str, list[str]],
    take: Take,
    url: str,
    reason: str,
) -> None:
    dns["inside.example.com"] = ["93.184.215.14", "10.0.0.7"]
    document = problem(take(client, callback_url=url), "callback_url_refused")
    assert document["reason"] == reason
    assert document["errors"] == [{"pointer": "/callback_url", "detail": document["detail"]}]
    assert "10.0.0.7" not in document["detail"]
    assert left_in(redis) == []


@pytest.mark.parametrize("form", [False, True])
def test_no_row_is_read_before(client: TestClient, form: bool) -> None:
    """Else this file would be refused for its row."""
    options = {"callback_url": "https://10.0.0.1/"}
    if form:
        response = client.post("/batches", data=options, files={"file": ("a.jsonl", b"{\n")})
    else:
        kind = {"Content-Type": "application/jsonl"}
        response = client.post("/batches", params=options, content=b"{\n", headers=kind)
    problem(response, "callback_url_refused")


@EVERYWHERE
def test_a_key_may_have_hosts_of_its_own(
    client: TestClient, store: JobStore, dns: dict[str, list[str]], take: Take
) -> None:
    hosts = ["receiver:8080", "*.internal", "10.0.0.0/8"]
    client.headers.update(bearer(store.keys.create(KeySettings(name="x", callback_hosts=hosts))))
    dns |= {"receiver": ["10.0.0.7"], "a.internal": ["fd00::1"], "far.example.com": ["10.0.0.8"]}
    for url in (
        "http://receiver:8080/hook",
        "http://a.internal:99/",
        "http://10.1.2.3:9000/",
        "https://far.example.com/",
    ):
        assert take(client, callback_url=url).status_code == 202, url
    for url in ("http://receiver:8081/hook", "http://192.168.0.1/", "http://far.example.com/"):
        problem(take(client, callback_url=url), "callback_url_refused")


@EVERYWHERE
def test_a_resolver_that_is_away_refuses_nothing(
    settings: Settings, store: JobStore, events: JobEvents, key: NewKey, take: Take
) -> None:
    async def away(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with TestClient(create_app(settings, store, events, away), headers=bearer(key)) as client:
        assert take(client, **CALLBACK).status_code == 202
        problem(take(client, callback_url="https://10.0.0.1/"), "callback_url_refused")


def test_names_are_remembered(
    settings: Settings,
    store: JobStore,
    events: JobEvents,
    resolve: Resolve,
    key: NewKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    async def counted(host: str, port: int) -> list[str]:
        asked.append(host)
        return await resolve(host, port)

    now = 1000.0
    monkeypatch.setattr("api.callback_targets.time.monotonic", lambda: now)
    monkeypatch.setattr(callback_targets, "_REMEMBERED", 2)
    app = create_app(settings, store, events, counted)
    with TestClient(app, headers=bearer(key)) as client:
        for _ in range(3):
            assert take_job(client, **CALLBACK).status_code == 202
            problem(take_job(client, callback_url="https://a.example.com"), "callback_url_refused")
        assert asked == ["example.com", *["a.example.com"] * 3]  # what is not there may come
        now += 60
        assert take_job(client, **CALLBACK).status_code == 202
        assert asked[4:] == ["example.com"]


def call_at_once(
    app: Any, key: NewKey, work: Callable[[httpx.AsyncClient], Awaitable[None]]
) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://testserver", headers=bearer(key)
        ) as client:
            await work(client)

    asyncio.run(main())


@pytest.mark.parametrize(("path", "at_once"), [("/jobs", 60), ("/batches", 2)])
def test_slow_names_hold_up_nobody_else(
    settings: Settings,
    store: JobStore,
    events: JobEvents,
    key: NewKey,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    at_once: int,
) -> None:
    """More of them than the service has threads. Of batches a key makes few at once."""
    patient = partial(check_reachable, timeout=60)
    monkeypatch.setattr(callback_targets, "check_reachable", patient)
    asked = 0
    content = {"prompt": "a"} if path == "/jobs" else {"rows": ["a"]}

    async def work(client: httpx.AsyncClient) -> None:
        answered, all_asked = asyncio.Event(), asyncio.Event()

        async def slow(host: str, port: int) -> list[str]:
            nonlocal asked
            asked += 1
            if asked == at_once:
                all_asked.set()
            await answered.wait()
            return ["93.184.215.14"]

        app.state.desk.targets._resolver = lambda _key: slow
        calls = [
            asyncio.create_task(
                client.post(
                    path,
                    json={**content, "max_tokens": 5, "callback_url": f"https://a{i}.example.com"},
                )
            )
            for i in range(60)
        ]
        await all_asked.wait()
        assert (await client.get("/models")).status_code == 200
        assert not any(call.done() for call in calls)
        answered.set()
        assert {call.status_code for call in await asyncio.gather(*calls)} == {202}

    app = create_app(settings, store, events)
    call_at_once(app, key, work)


def test_only_so_many_names_are_looked_up_at_once(
    settings: Settings,
    store: JobStore,
    events: JobEvents,
    key: NewKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(callback_targets, "check_reachable", partial(check_reachable, timeout=60))
    together, most, enough, lock = 0, 0, threading.Event(), threading.Lock()

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
            if together == 16:
                enough.set()
        assert enough.wait(60)
        with lock:
            together -= 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def work(client: httpx.AsyncClient) -> None:
        urls = [f"https://a{i}.example.com" for i in range(50)]
        calls = [client.post("/jobs", json={**BODY, "callback_url": url}) for url in urls]
        assert {call.status_code for call in await asyncio.gather(*calls)} == {202}

    call_at_once(create_app(settings, store, events), key, work)
    assert most == 16


@pytest.mark.parametrize(
    ("entry", "kept"),
    [
        ("Receiver", "receiver"),
        ("hooks.Example.com:8080", "hooks.example.com:8080"),
        ("*.example.com", "*.example.com"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("[FD00::1]:8080", "[fd00::1]:8080"),
        ("fd00::/8", "fd00::/8"),
        *[
            (wrong, None)
            for wrong in (
                *("*", "*.", "a.*", "http://a.example", "a.example/hook", "a b", "u@a.example"),
                *("a.example:0", "a.example:70000", "a..b", "a.b.", "127.1", "0x7f.1", "10"),
                *("10.0.0.0/33", "10.0.0.0/8:80", "*.10.0.0.1", "fe80::1%eth0", "a" * 64),
            )
        ],
    ],
)
def test_hosts_of_a_key(client: TestClient, admin: NewKey, entry: str, kept: str | None) -> None:
    body = {"name": "x", "callback_hosts": ["a.example", entry]}
    response = client.post("/admin/keys", json=body, headers=bearer(admin))
    if kept is None:
        document = problem(response, "invalid_request")
        [error] = document["errors"]
        assert error["pointer"] == "/callback_hosts/1"
        assert "*.domain" in error["detail"]
        return
    made = response.json()
    assert made["callback_hosts"] == ["a.example", kept]
    again = client.post(
        "/admin/keys", json={"name": "x", "callback_hosts": [kept]}, headers=bearer(admin)
    )
    assert again.json()["callback_hosts"] == [kept]


def test_a_key_with_an_odd_host_still_opens(
    client: TestClient, store: JobStore, redis: fakeredis.FakeRedis, key: NewKey
) -> None:
    redis.hset(f"slm:key:{key.id}", "callback_hosts", json.dumps(["http://a.example/"]))
    assert client.get("/models").status_code == 200
    assert take_job(client, **CALLBACK).status_code == 202
