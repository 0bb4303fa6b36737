"""What breaks behind the API is told to clients without detail, and to the log with all of it."""

from __future__ import annotations

import logging

import fakeredis
import pytest
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from api.app import create_app
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.test_problems import post_json, problem


@pytest.mark.parametrize("path", ["/jobs/job_1", "/models", "/readyz"])
def test_redis_down(
    client: TestClient,
    redis_process: fakeredis.FakeServer,
    caplog: pytest.LogCaptureFixture,
    path: str,
) -> None:
    redis_process.connected = False
    response = client.get(path, headers={"X-Request-Id": "seek-me"})
    problem(response, "store_unavailable")
    assert response.headers["retry-after"] == "1"
    assert "seek-me" in [vars(record).get("request_id") for record in caplog.records]
    problem(post_json(client), "store_unavailable")
    redis_process.connected = True
    assert post_json(client).status_code == 202


def test_what_routes_of_later_days_may_raise(settings: Settings, store: JobStore) -> None:
    app = create_app(settings, store)

    @app.get("/later")
    def later(after: int) -> None:
        raise HTTPException(418)

    with TestClient(app) as client:  # no key: the route asks for none
        document = problem(client.get("/later?after=x"), "invalid_request")
        assert document["detail"].startswith("query after: Input should be a valid integer")
        problem(client.get("/later?after=1"), "internal_error")


def test_an_internal_error_is_logged_and_leaks_nothing(
    client: TestClient,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(job_id: str, **_: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(store, "get", broken)
    with caplog.at_level(logging.ERROR):
        response = client.get("/jobs/job_1", headers={"X-Request-Id": "seek-me"})
    problem(response, "internal_error")
    assert "swordfish" not in response.text
    assert response.headers["x-request-id"] == "seek-me"
    assert "swordfish" in caplog.text
    assert "GET /jobs/job_1 failed" in caplog.text
