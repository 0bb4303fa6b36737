"""`/admin/dead-letters`, and the deadlines by which jobs get there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import fakeredis
import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from api.dead_letters import EXAMPLES, MOST_REDRIVEN
from slm_jobs import keys
from slm_jobs.api_keys import NewKey
from slm_jobs.schemas import JobError, JobStatus, Output
from slm_jobs.store import JobStore
from tests.api.callback_calls import CALLBACK
from tests.api.conftest import bearer
from tests.api.test_problems import problem

ERROR = JobError(code="attempts_exhausted", message="it fell silent")
PATH = "/admin/dead-letters"
NOBODY = "job_01K9ZX3V7Q4C8E2M5T6R0B1DAF"

Fail = Callable[..., str]


@pytest.fixture
def boss(client: TestClient, admin: NewKey) -> TestClient:
    """Sends an admin's key."""
    return TestClient(client.app, headers=bearer(admin))


@pytest.fixture
def fail(client: TestClient, store: JobStore) -> Fail:
    """Has a job fail, a moment after the one before; returns its id."""

    def fail(**body: object) -> str:
        job = client.post("/jobs", json={"prompt": "a", "max_tokens": 5, **body}).json()["id"]
        while (work := store.claim_next("tiny", worker="w1")[0]).id != job:
            pass  # that was redriven
        store.clock_offset_ms += 1
        outputs = [Output(index=0, text=" partial", finish_reason="cancelled")]
        assert store.fail(work, ERROR, None, outputs)
        return str(job)

    return fail


def ids(response: Response) -> list[str]:
    return [job["id"] for job in response.json()["data"]]


# Deadlines


def test_deadlines_reach_the_store(client: TestClient, store: JobStore) -> None:
    body = {"prompt": "a", "max_tokens": 5}
    client.post("/jobs", json={**body, "run_timeout": 0.5, "queue_timeout": None})
    [work] = store.claim_next("tiny", worker="w1")
    assert work.seconds_left == 0.5
    address = client.post("/jobs", json={**body, "queue_timeout": 2}).headers["location"]
    store.clock_offset_ms += 2_000
    assert store.claim_next("tiny", worker="w1") == []
    assert client.get(address).json()["status"] == "expired"


@pytest.mark.parametrize("name", ["queue_timeout", "run_timeout"])
@pytest.mark.parametrize("seconds", [0, -1, 604_801, "5", "5s", True, [5]])
def test_wrong_deadlines(client: TestClient, store: JobStore, name: str, seconds: object) -> None:
    response = client.post("/jobs", json={"prompt": "a", "max_tokens": 5, name: seconds})
    [error] = problem(response, "invalid_request")["errors"]
    assert error["pointer"] == f"/{name}"
    assert store.queue_depth("tiny") == 0


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
def test_other_routes_have_none(client: TestClient, store: JobStore, path: str) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 5, "run_timeout": 5}
    assert client.post(path, json=body).status_code in (400, 422)
    assert store.queue_depth("tiny") == 0


# Dead letters


def test_one_is_listed_and_read(
    boss: TestClient, fail: Fail, key: NewKey, dns: dict[str, list[str]]
) -> None:
    assert boss.get(PATH).json() == {"data": [], "next_cursor": None, "total": 0}
    asked = {"prompt": ["Ünce", "b"], "seed": 9, "stop": ["\n"], "metadata": {"order": "17"}}
    job = fail(**asked, **CALLBACK, queue_timeout=90, run_timeout=0.5, temperature=0)
    page = boss.get(PATH).json()
    assert (page["next_cursor"], page["total"]) == (None, 1)
    assert page["data"] == [boss.get(f"/jobs/{job}").json()]
    letter = boss.get(f"{PATH}/{job}")
    assert letter.json()["job"] == page["data"][0]
    assert letter.json()["key"] == key.id
    assert letter.json()["job"]["outputs"][0]["text"] == " partial"
    request = letter.json()["request"]
    assert request.pop("request_id")
    assert request == {
        "max_tokens": 5,
        "temperature": 0,
        "top_k": 40,
        "top_p": 1,
        "seed": 9,
        "stop": ["\n"],
        "ignore_eos": False,
        "n": 1,
        "model": "tiny",
        "prompts": ["Ünce", "b"],
        "priority": 0,
        "queue_timeout": 90,
        "run_timeout": 0.5,
        "stream": False,
        "metadata": {"order": "17"},
    }
    assert "callback" not in letter.text
    assert "whsec" not in letter.text


def test_pages(boss: TestClient, fail: Fail) -> None:
    made = [fail() for _ in range(5)]
    first = boss.get(f"{PATH}?limit=3")
    second = boss.get(f"{PATH}?limit=3&cursor={first.json()['next_cursor']}")
    assert ids(first) + ids(second) == made[::-1]
    assert (first.json()["total"], second.json()["next_cursor"]) == (5, None)
    for query in ("limit=0", "limit=101", "cursor=x", "cursor=-1"):
        problem(boss.get(f"{PATH}?{query}"), "invalid_request")


def test_one_is_redriven(client: TestClient, boss: TestClient, store: JobStore, fail: Fail) -> None:
    job = fail(**CALLBACK, prompt="Once", seed=7, run_timeout=5)
    response = boss.post(f"{PATH}/{job}/redrive")
    again = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/jobs/{again['id']}"
    assert (again["status"], again["seed"], again["retry_of"]) == ("queued", 7, job)
    assert client.get(f"/jobs/{again['id']}").json()["retry_of"] == job  # its owner's
    repeated = boss.post(f"{PATH}/{job}/redrive")  # as if the answer had been lost
    assert (repeated.status_code, repeated.json()["id"]) == (202, again["id"])
    [work] = store.claim_next("tiny", worker="w1")
    assert (work.spec.prompts, work.seconds_left) == (["Once"], 5)
    assert store.queue_depth("tiny") == 0
    assert boss.get(PATH).json()["total"] == 0
    problem(boss.get(f"{PATH}/{job}"), "dead_letter_not_found")
    problem(boss.delete(f"{PATH}/{job}"), "dead_letter_not_found")
    assert client.get(f"/jobs/{job}").json()["status"] == "failed"


def test_behind_a_proxy_the_address_has_its_prefix(boss: TestClient, fail: Fail) -> None:
    behind = TestClient(boss.app, root_path="/slm", headers=dict(boss.headers))
    again = behind.post(f"/slm{PATH}/{fail()}/redrive")
    assert again.headers["location"] == f"/slm/jobs/{again.json()['id']}"


def test_some_are_redriven(boss: TestClient, store: JobStore, fail: Fail) -> None:
    first, second, third = fail(), fail(), fail()
    given = [second, "nonsense", first, second, NOBODY, "job_1:2"]
    response = boss.post(f"{PATH}/redrive", json={"ids": given})
    assert response.status_code == 202
    redriven = response.json()
    assert [job["retry_of"] for job in redriven["data"]] == [second, first]
    assert redriven["not_found"] == ["nonsense", NOBODY, "job_1:2"]
    assert redriven["left"] == 1
    assert ids(boss.get(PATH)) == [third]
    assert ids(boss.post(f"{PATH}/redrive", json={"ids": given})) == ids(response)
    assert store.queue_depth("tiny") == 2


def test_all_are_redriven_the_oldest_first(boss: TestClient, store: JobStore, fail: Fail) -> None:
    made = [fail() for _ in range(3)]
    response = boss.post(f"{PATH}/redrive", json={"all": True, "limit": 2}).json()
    assert [job["retry_of"] for job in response["data"]] == made[:2]
    assert (response["left"], response["not_found"]) == (1, [])
    for work in (store.claim_next("tiny", worker="w1")[0] for _ in range(2)):
        store.clock_offset_ms += 1
        store.fail(work, ERROR)  # again
    response = boss.post(f"{PATH}/redrive", json={"all": True, "limit": 1}).json()
    assert response["data"][0]["retry_of"] == made[2]
    assert response["left"] == 2
    response = boss.post(f"{PATH}/redrive", json={"all": True}).json()
    assert (len(response["data"]), response["left"]) == (2, 0)


def test_all_of_none(boss: TestClient) -> None:
    response = boss.post(f"{PATH}/redrive", json={"all": True})
    assert response.status_code == 202
    assert response.json() == {"data": [], "not_found": [], "left": 0}


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, {"/ids", "/all"}),
        ({"ids": []}, {"/ids"}),
        ({"ids": [5]}, {"/ids/0"}),
        ({"ids": ["x" * 65]}, {"/ids/0"}),
        ({"ids": ["job_1"] * (MOST_REDRIVEN + 1)}, {"/ids"}),
        ({"ids": ["job_1"], "all": True}, {"/ids", "/all"}),
        ({"all": False}, {"/all"}),
        ({"all": 1}, {"/all"}),
        ({"all": True, "limit": 0}, {"/limit"}),
        ({"all": True, "limit": MOST_REDRIVEN + 1}, {"/limit"}),
        ([], {""}),
    ],
)
def test_wrong_redrives(boss: TestClient, body: object, pointers: set[str], fail: Fail) -> None:
    fail()
    errors = problem(boss.post(f"{PATH}/redrive", json=body), "invalid_request")["errors"]
    assert pointers <= {error["pointer"] for error in errors}
    problem(boss.post(f"{PATH}/redrive", content=b""), "unsupported_media_type")
    assert boss.get(PATH).json()["total"] == 1


def test_one_is_dropped(
    client: TestClient, boss: TestClient, store: JobStore, redis: fakeredis.FakeRedis, fail: Fail
) -> None:
    job, kept = fail(**CALLBACK, stream=True), fail()
    assert store.callbacks.of(job)
    assert boss.delete(f"{PATH}/{job}").status_code == 204
    assert ids(boss.get(PATH)) == [kept]
    problem(client.get(f"/jobs/{job}"), "job_not_found")
    assert not [name for name in redis.keys("*") if job in name]
    problem(boss.delete(f"{PATH}/{job}"), "dead_letter_not_found")
    problem(boss.post(f"{PATH}/{job}/redrive"), "dead_letter_not_found")


@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("DELETE", ""), ("POST", "/redrive")])
def test_other_jobs_are_none(
    client: TestClient, boss: TestClient, store: JobStore, method: str, rest: str
) -> None:
    waiting = client.post("/jobs", json={"prompt": "a", "max_tokens": 5}).json()["id"]
    cancelled = client.post("/jobs", json={"prompt": "a", "max_tokens": 5}).json()["id"]
    store.cancel(cancelled)
    for job in (waiting, cancelled, NOBODY, "job_1:2", "x" * 100, "%00"):
        document = problem(boss.request(method, f"{PATH}/{job}{rest}"), "dead_letter_not_found")
        assert len(document["detail"]) < 160
    assert store.get(waiting).status is JobStatus.QUEUED
    assert store.get(cancelled).status is JobStatus.CANCELLED


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("POST", "/redrive"),
        ("GET", "/{job}"),
        ("DELETE", "/{job}"),
        ("POST", "/{job}/redrive"),
    ],
)
def test_they_are_for_admins(
    client: TestClient, store: JobStore, fail: Fail, method: str, path: str
) -> None:
    job = fail()
    response = client.request(method, PATH + path.format(job=job), json={"all": True})
    problem(response, "forbidden")
    assert store.dead_letters.count() == 1
    assert store.get(job)


def test_without_redis(boss: TestClient, fail: Fail, redis_process: fakeredis.FakeServer) -> None:
    job = fail()
    redis_process.connected = False
    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/redrive")):
        problem(boss.request(method, f"{PATH}/{job}{rest}"), "store_unavailable")


def test_what_expired_unswept_holds_nothing_up(
    boss: TestClient, redis: fakeredis.FakeRedis, fail: Fail
) -> None:
    """Without a worker nobody sweeps, while records expire by themselves."""
    gone, left = fail(), fail()
    redis.delete(keys.job(gone))
    problem(boss.get(f"{PATH}/{gone}"), "dead_letter_not_found")
    assert ids(boss.get(PATH)) == [left]
    redriven = boss.post(f"{PATH}/redrive", json={"all": True}).json()
    assert [job["retry_of"] for job in redriven["data"]] == [left]
    assert redriven["left"] == 0


# The document


@pytest.mark.parametrize("name", EXAMPLES)
def test_they_read_as_their_examples(client: TestClient, name: str) -> None:
    model, example = EXAMPLES[name]
    text = model.model_validate_json(json.dumps(example)).model_dump_json()
    assert json.loads(text) == example
    document: Any = client.get("/openapi.json").json()
    assert document["components"]["examples"][name]["value"] == example


def test_a_dead_letter_reads_as_its_example(boss: TestClient, fail: Fail) -> None:
    letter = boss.get(f"{PATH}/{fail()}").json()
    example = EXAMPLES["dead_letter"][1]
    assert list(letter) == list(example)
    assert list(letter["request"]) == list(example["request"])
