"""Who may come in, what a key may do, and what browsers are kept from."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.addresses import route_path
from api.app import create_app
from slm_jobs.api_keys import KeySettings, NewKey
from slm_jobs.events import JobEvents
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.conftest import bearer
from tests.api.test_problems import problem

BODY = {"prompt": "a", "max_tokens": 5}
SECRET_ROUTES = [
    ("POST", "/jobs"),
    ("GET", "/jobs"),
    ("GET", "/jobs/job_1"),
    ("DELETE", "/jobs/job_1"),
    ("POST", "/jobs/job_1/cancel"),
    ("GET", "/jobs/job_1/stream"),
    ("GET", "/jobs/job_1/callbacks"),
    ("POST", "/jobs/job_1/callbacks/replay"),
    ("GET", "/batches/batch_1/callbacks"),
    ("POST", "/batches/batch_1/callbacks/replay"),
    ("GET", "/callbacks"),
    ("GET", "/callbacks/secret"),
    ("POST", "/callbacks/secret/rotate"),
    ("POST", "/generate"),
    ("GET", "/models"),
    ("GET", "/queue"),
    ("GET", "/admin/keys"),
    ("POST", "/admin/keys"),
    ("DELETE", "/admin/keys/abcdefghij"),
    ("GET", "/admin/dead-letters"),
    ("POST", "/admin/dead-letters/redrive"),
    ("GET", "/admin/dead-letters/job_1"),
    ("DELETE", "/admin/dead-letters/job_1"),
    ("POST", "/admin/dead-letters/job_1/redrive"),
]


@pytest.fixture
def stranger(client: TestClient) -> TestClient:
    return TestClient(client.app)


@pytest.mark.parametrize(("method", "path"), SECRET_ROUTES)
@pytest.mark.parametrize(
    "authorization", [None, "Bearer nonsense", "Basic dTpw", f"Bearer slm_{'a' * 10}_{'b' * 43}"]
)
def test_a_key_is_needed(
    stranger: TestClient, method: str, path: str, authorization: str | None
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    response = stranger.request(method, path, content=b"not even JSON", headers=headers)
    problem(response, "unauthorised")
    assert response.headers["www-authenticate"].startswith("Bearer")


def test_every_documented_route_needs_a_key(stranger: TestClient) -> None:
    """Also one that nobody has listed above."""
    document: Any = stranger.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method in operations.keys() - {"parameters"}:
            if path not in ("/healthz", "/readyz", "/metrics"):
                answer = stranger.request(method, path.replace("{id}", "x"))
                assert answer.status_code == 401, f"{method} {path}"


@pytest.mark.parametrize("path", ["/healthz", "/openapi.json", "/docs"])
def test_what_everybody_may_read(stranger: TestClient, path: str) -> None:
    assert stranger.get(path).status_code == 200


def test_a_revoked_key_is_refused_at_once(client: TestClient, store: JobStore, key: NewKey) -> None:
    assert client.post("/jobs", json=BODY).status_code == 202
    store.keys.revoke(key.id)
    problem(client.post("/jobs", json=BODY), "unauthorised")
    problem(client.get("/models"), "unauthorised")
    assert store.queue_depth("tiny") == 1


def test_jobs_of_others_are_not_there(
    client: TestClient, stranger: TestClient, store: JobStore, admin: NewKey
) -> None:
    job = client.post("/jobs", json=BODY).json()["id"]
    other = bearer(store.keys.create(KeySettings(name="other")))
    for method, path in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/stream"),
    ]:
        response = stranger.request(method, f"/jobs/{job}{path}", headers=other)
        problem(response, "job_not_found")
    assert stranger.get("/jobs", headers=other).json() == {"data": [], "next_cursor": None}
    assert stranger.get(f"/jobs/{job}", headers=bearer(admin)).json()["id"] == job


def test_an_admin_sees_the_jobs_of_a_key(
    client: TestClient, stranger: TestClient, key: NewKey, admin: NewKey
) -> None:
    job = client.post("/jobs", json=BODY).json()["id"]
    page = stranger.get(f"/jobs?key={key.id}", headers=bearer(admin)).json()
    assert [one["id"] for one in page["data"]] == [job]
    problem(client.get(f"/jobs?key={admin.id}"), "forbidden")


# Keys over HTTP


def test_the_life_of_a_key(client: TestClient, admin: NewKey) -> None:
    boss = bearer(admin)
    made: dict[str, Any] = client.post("/admin/keys", json={"name": "new"}, headers=boss).json()
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert made["token"].startswith(made["prefix"])
    assert (made["requests_per_minute"], made["admin"]) == (600, False)
    assert client.get("/models", headers=headers).status_code == 200

    listed = client.get("/admin/keys", headers=boss)
    assert made["token"] not in listed.text
    assert made["id"] in [key["id"] for key in listed.json()["data"]]

    rotated = client.post(f"/admin/keys/{made['id']}/rotate", headers=boss).json()
    assert rotated["id"] == made["id"]
    problem(client.get("/models", headers=headers), "unauthorised")
    headers = {"Authorization": f"Bearer {rotated['token']}"}
    assert client.get("/models", headers=headers).status_code == 200

    for _ in range(2):
        assert client.delete(f"/admin/keys/{made['id']}", headers=boss).status_code == 204
    problem(client.get("/models", headers=headers), "unauthorised")
    problem(client.post(f"/admin/keys/{made['id']}/rotate", headers=boss), "key_not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", ""), ("DELETE", "/abcdefghij"), ("POST", "/abcdefghij/rotate")],
)
def test_keys_are_for_admins(client: TestClient, method: str, path: str) -> None:
    problem(client.request(method, f"/admin/keys{path}", json={"name": "x"}), "forbidden")


def test_wrong_settings_of_a_key(client: TestClient, admin: NewKey, store: JobStore) -> None:
    before = store.keys.list()
    for body in ({}, {"name": ""}, {"name": "x", "requests_per_minute": 0}, {"name": "x", "a": 1}):
        response = client.post("/admin/keys", json=body, headers=bearer(admin))
        problem(response, "invalid_request")
    assert store.keys.list() == before


# Limits


def limited(client: TestClient, store: JobStore, **limits: object) -> dict[str, str]:
    return bearer(store.keys.create(KeySettings.model_validate({"name": "small", **limits})))


def test_limits_are_told(client: TestClient, store: JobStore) -> None:
    headers = limited(client, store, requests_per_minute=2, tokens_per_minute=600)
    response = client.post("/jobs", json=BODY, headers=headers)
    assert response.headers["ratelimit-policy"] == (
        '"requests";q=2;w=60;qu="requests", "tokens";q=600;w=60, '
        '"jobs-in-flight";q=1000;qu="concurrent-requests", "queued-tokens";q=5000000'
    )
    assert response.headers["ratelimit"] == (
        '"requests";r=1;t=30, "tokens";r=594;t=1, "jobs-in-flight";r=999;t=0, '
        '"queued-tokens";r=4999994;t=0'
    )
    assert response.headers["x-ratelimit-limit-requests"] == "2"
    assert response.headers["x-ratelimit-remaining-tokens"] == "594"
    assert response.headers["x-ratelimit-reset-requests"] == "30s"

    client.post("/jobs", json=BODY, headers=headers)
    response = client.post("/jobs", json=BODY, headers=headers)
    document = problem(response, "rate_limited")
    assert document["violated-policies"] == ["requests"]
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert '"requests";r=0' in response.headers["ratelimit"]
    assert store.queue_depth("tiny") == 2


def test_what_no_patience_helps(client: TestClient, store: JobStore) -> None:
    headers = limited(client, store, tokens_per_minute=5)
    response = client.post("/jobs", json=BODY, headers=headers)
    document = problem(response, "exceeds_limit")
    assert document["violated-policies"] == ["tokens"]
    assert "5 tokens" in document["detail"]
    assert "retry-after" not in response.headers


def test_an_unlimited_key_has_no_limits_to_tell(client: TestClient, store: JobStore) -> None:
    names = ("requests_per_minute", "tokens_per_minute", "jobs_in_flight", "queued_tokens")
    headers = limited(client, store, **dict.fromkeys(names))
    response = client.post("/jobs", json=BODY, headers=headers)
    assert not [name for name in response.headers if "ratelimit" in name]


# Browsers


def test_a_name_that_is_not_ours(client: TestClient) -> None:
    for host in ("evil.example", "testserver.evil.example", ""):
        problem(client.get("/docs", headers={"Host": host}), "unknown_host")
    assert client.get("/docs", headers={"Host": "TestServer:8000"}).status_code == 200
    assert client.get("/healthz", headers={"Host": "10.0.0.7"}).status_code == 200


def test_probes_ask_by_address_behind_a_prefix_too(
    settings: Settings, store: JobStore, events: JobEvents
) -> None:
    by_address = {"Host": "10.0.0.7"}
    for prefix in ("/slm", "/v1"):
        with TestClient(create_app(settings, store, events), root_path=prefix) as client:
            assert client.get(f"{prefix}/healthz", headers=by_address).status_code == 200
            problem(client.get(f"{prefix}/docs", headers=by_address), "unknown_host")


@pytest.mark.parametrize(
    ("path", "prefix", "routed"),
    [
        ("/v1/models", "", "/v1/models"),
        ("/slm/v1/models", "/slm", "/v1/models"),
        ("/slm/v1/models", "/slm/", "/v1/models"),
        ("/v1/models", "/v", "/v1/models"),  # a name that only begins alike
        ("/v1/models", "/slm", "/v1/models"),
    ],
)
def test_the_path_of_a_route(path: str, prefix: str, routed: str) -> None:
    assert route_path({"path": path, "root_path": prefix}) == routed


def test_any_name(settings: Settings, store: JobStore, events: JobEvents) -> None:
    anywhere = settings.model_copy(update={"allowed_hosts": "*"})
    with TestClient(create_app(anywhere, store, events)) as client:
        assert client.get("/docs", headers={"Host": "any.example"}).status_code == 200


def test_browsers_get_nothing_to_play_with(client: TestClient) -> None:
    for response in (client.get("/models"), client.get("/nowhere")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
    preflight = client.options(
        "/jobs", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_no_secret_reaches_the_log(
    client: TestClient, key: NewKey, admin: NewKey, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        client.post("/jobs", json={"prompt": "my secret diary", "max_tokens": 5})
        client.post("/jobs", json={"prompt": "my secret diary", "max_tokens": 500})
        made = client.post("/admin/keys", json={"name": "x"}, headers=bearer(admin)).json()
        client.get("/jobs", headers={"Authorization": "Bearer my-password"})
    for secret in (key.token, admin.token, made["token"], "diary", "my-password"):
        assert secret not in caplog.text
