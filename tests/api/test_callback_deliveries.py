"""Looking after callbacks: seeing and replaying them, and what they are signed with."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import fakeredis
import pytest
from starlette.testclient import TestClient

from api.callbacks import EXAMPLES
from slm_jobs.api_keys import KeySettings, NewKey
from slm_jobs.store import JobStore
from tests.api.callback_calls import CALLBACK, Take, due, run, settle, take_job, take_json, told
from tests.api.conftest import bearer
from tests.api.fake_worker import FakeWorker, answer
from tests.api.test_problems import problem

# Looking after them


@pytest.mark.parametrize(("take", "kind"), [(take_job, "jobs"), (take_json, "batches")])
def test_seeing_and_replaying(client: TestClient, store: JobStore, take: Take, kind: str) -> None:
    work = take(client, **CALLBACK).json()["id"]
    path = f"/{kind}/{work}/callbacks"
    assert client.get(path).json() == {"data": []}
    assert (
        "has no callbacks yet"
        in problem(client.post(f"{path}/replay"), "nothing_to_replay")["detail"]
    )
    run(store)
    [delivery] = client.get(path).json()["data"]
    assert list(delivery) == list(EXAMPLES["callbacks"][1]["data"][0])
    assert (delivery["of"], delivery["status"], delivery["attempts"]) == (work, "pending", [])
    assert delivery["next_attempt_at"] == delivery["created_at"]
    document = problem(client.post(f"{path}/replay"), "nothing_to_replay")
    assert "pending" in document["detail"]

    settle(store)
    [delivery] = client.get(path).json()["data"]
    assert (delivery["status"], delivery["next_attempt_at"]) == ("delivered", None)
    assert delivery["attempts"][0].items() >= {"duration_ms": 7, "status": 204}.items()

    response = client.post(f"{path}/replay")
    assert (response.status_code, response.json()["replayed"]) == (202, 1)
    [again] = response.json()["data"]
    assert (again["id"], again["status"]) == (delivery["id"], "pending")
    assert [one.id for one in due(store)] == [delivery["id"]]


@pytest.mark.parametrize(("take", "kind"), [(take_job, "jobs"), (take_json, "batches")])
def test_they_outlive_what_they_tell_of(
    client: TestClient,
    store: JobStore,
    redis: fakeredis.FakeRedis,
    admin: NewKey,
    take: Take,
    kind: str,
) -> None:
    """Who was away for days finds a callback that was given up, and has it sent again."""
    work = take(client, **CALLBACK).json()["id"]
    run(store)
    settle(store, delivered=False)
    redis.delete(f"slm:job:{work}", f"slm:batch:{work}")
    assert client.get(f"/{kind}/{work}").status_code == 404
    path = f"/{kind}/{work}/callbacks"
    for headers in ({}, bearer(admin)):
        assert [one["status"] for one in client.get(path, headers=headers).json()["data"]] == [
            "failed"
        ]
    other = bearer(store.keys.create(KeySettings(name="other")))
    assert client.post(f"{path}/replay", headers=other).status_code == 404
    assert client.post(f"{path}/replay").status_code == 202
    assert [event["data"]["id"] for event in told(store)] == [work]


def test_they_are_deleted_with_it(client: TestClient, store: JobStore) -> None:
    job = take_job(client, **CALLBACK).json()["id"]
    run(store)
    settle(store, delivered=False)
    assert client.delete(f"/jobs/{job}").status_code == 204
    problem(client.get(f"/jobs/{job}/callbacks"), "job_not_found")
    assert client.get("/callbacks").json()["data"] == []


@pytest.mark.parametrize(("take", "kind"), [(take_job, "jobs"), (take_json, "batches")])
def test_they_are_stopped_when_they_have_outlived_it(
    client: TestClient, store: JobStore, redis: fakeredis.FakeRedis, take: Take, kind: str
) -> None:
    work = take(client, **CALLBACK).json()["id"]
    run(store)
    redis.delete(f"slm:job:{work}", f"slm:batch:{work}")
    other = bearer(store.keys.create(KeySettings(name="other")))
    missing = "job_not_found" if kind == "jobs" else "batch_not_found"
    problem(client.delete(f"/{kind}/{work}", headers=other), missing)
    assert client.delete(f"/{kind}/{work}").status_code == 204
    assert due(store) == []
    problem(client.delete(f"/{kind}/{work}"), missing)
    problem(client.delete(f"/{kind}/x:y"), missing)


def test_those_of_what_runs_are_not_stopped_by_deleting_it(
    client: TestClient, store: JobStore
) -> None:
    job = take_job(client, **CALLBACK, callback_events=["running"]).json()["id"]
    store.claim_next("tiny", worker="w1")
    problem(client.delete(f"/jobs/{job}"), "job_not_ended")
    assert len(due(store)) == 1


def test_only_what_has_ended_is_replayed(client: TestClient, store: JobStore) -> None:
    job = take_job(client, **CALLBACK, callback_events=["running", "succeeded"]).json()["id"]
    [work] = store.claim_next("tiny", worker="w1")
    settle(store)
    answer(store, work)
    answered = client.post(f"/jobs/{job}/callbacks/replay").json()
    assert answered["replayed"] == 1
    assert [one["type"] for one in answered["data"]] == ["job.running", "job.succeeded"]


def test_the_dead_letters(client: TestClient, store: JobStore, admin: NewKey, key: NewKey) -> None:
    made = [take_job(client, **CALLBACK).json()["id"] for _ in range(5)]
    for _ in made:
        with FakeWorker(store) as worker:
            worker.claimed.wait(10)
        settle(store, delivered=False)
        store.clock_offset_ms += 1000
    first = client.get("/callbacks?limit=3").json()
    second = client.get(f"/callbacks?limit=3&cursor={first['next_cursor']}").json()
    found = first["data"] + second["data"]
    assert sorted(one["of"] for one in found) == sorted(made)
    assert {one["status"] for one in found} == {"failed"}
    assert second["next_cursor"] is None

    client.post(f"/jobs/{made[2]}/callbacks/replay")
    left = client.get("/callbacks").json()["data"]
    assert sorted(one["of"] for one in left) == sorted(set(made) - {made[2]})

    boss = bearer(admin)
    assert client.get("/callbacks", headers=boss).json() == {"data": [], "next_cursor": None}
    assert len(client.get(f"/callbacks?key={key.id}", headers=boss).json()["data"]) == 4
    problem(client.get(f"/callbacks?key={admin.id}"), "forbidden")
    for query in ("limit=0", "limit=101", "cursor=x", "key=x"):
        problem(client.get(f"/callbacks?{query}"), "invalid_request")


@pytest.mark.parametrize(("take", "kind"), [(take_job, "jobs"), (take_json, "batches")])
@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("POST", "/replay")])
def test_callbacks_of_others(
    client: TestClient,
    store: JobStore,
    admin: NewKey,
    take: Take,
    kind: str,
    method: str,
    rest: str,
) -> None:
    work = take(client, **CALLBACK).json()["id"]
    run(store)
    settle(store, delivered=False)
    path = f"/{kind}/{work}/callbacks{rest}"
    other = bearer(store.keys.create(KeySettings(name="other")))
    missing = "job_not_found" if kind == "jobs" else "batch_not_found"
    problem(client.request(method, path, headers=other), missing)
    problem(client.request(method, f"/{kind}/x:y/callbacks{rest}"), missing)
    assert client.get("/callbacks", headers=other).json()["data"] == []
    assert client.request(method, path, headers=bearer(admin)).is_success


# Secrets


def test_secrets(client: TestClient, store: JobStore, admin: NewKey) -> None:
    [first] = client.get("/callbacks/secret").json()["secrets"]
    assert first["secret"].startswith("whsec_")
    assert first["expires_at"] is None
    assert client.get("/callbacks/secret").json()["secrets"] == [first]
    [other] = client.get("/callbacks/secret", headers=bearer(admin)).json()["secrets"]
    assert other["secret"] != first["secret"]

    rotated = client.post("/callbacks/secret/rotate", json={}).json()["secrets"]
    assert client.get("/callbacks/secret").json()["secrets"] == rotated
    [new, old] = rotated
    assert (old["secret"], new["expires_at"]) == (first["secret"], None)
    left = datetime.fromisoformat(old["expires_at"]) - datetime.now(UTC)
    assert 86_000 < left.total_seconds() <= 86_400
    take_job(client, **CALLBACK)
    run(store)
    [one] = due(store)
    assert one.secrets == (new["secret"], old["secret"])

    rotated = client.post("/callbacks/secret/rotate", json={"overlap_seconds": 0}).json()["secrets"]
    assert len(rotated) == 1  # none of the older ones signs any more
    assert rotated[0]["secret"] not in (new["secret"], old["secret"])


@pytest.mark.parametrize(
    "body", [{"overlap_seconds": -1}, {"overlap_seconds": 604_801}, {"overlap": 1}, []]
)
def test_wrong_rotations(client: TestClient, body: Any) -> None:
    before = client.get("/callbacks/secret").json()
    problem(client.post("/callbacks/secret/rotate", json=body), "invalid_request")
    problem(client.post("/callbacks/secret/rotate"), "unsupported_media_type")
    assert client.get("/callbacks/secret").json() == before


@pytest.mark.parametrize("name", EXAMPLES)
def test_they_read_as_their_examples(client: TestClient, name: str) -> None:
    model, example = EXAMPLES[name]
    text = model.model_validate_json(json.dumps(example)).model_dump_json()
    assert json.loads(text) == example
    document = client.get("/openapi.json").json()
    assert document["components"]["examples"][name]["value"] == example
