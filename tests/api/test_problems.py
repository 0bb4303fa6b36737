"""What is refused, and how. Nothing that is refused reaches the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import fakeredis
import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from api.body import MAX_BODY_BYTES
from api.problems import PROBLEMS
from slm_jobs.api_keys import KeySettings
from slm_jobs.callbacks import MOST_PENDING
from slm_jobs.keys import PENDING_CALLBACKS
from slm_jobs.schemas import JobError
from slm_jobs.store import JobStore
from tests.api.conftest import bearer

JSON = {"Content-Type": "application/json"}
SURROGATE = b"\\ud800"


def problem(response: Response, code: str) -> dict[str, Any]:
    """The problem document, after what holds for all of them."""
    document: dict[str, Any] = response.json()
    assert document["code"] == code, document
    assert response.status_code == document["status"] == PROBLEMS[code].status
    assert response.headers["content-type"] == "application/problem+json"
    assert document["type"] == f"urn:slm:problem:{code}"
    assert document["title"] == PROBLEMS[code].title
    assert document["detail"]
    assert document["instance"] == f"urn:slm:request:{response.headers['x-request-id']}"
    return document


def post(client: TestClient, content: bytes, **headers: str) -> Response:
    return client.post("/jobs", content=content, headers={**JSON, **headers})


def post_json(client: TestClient, **body: object) -> Response:
    return client.post("/jobs", json={"prompt": "a", "max_tokens": 5, **body})


def pointers(document: dict[str, Any]) -> list[str]:
    return [error["pointer"] for error in document["errors"]]


Produce = Callable[[TestClient, JobStore, fakeredis.FakeServer], Response]


def _broken(client: TestClient, store: JobStore, _: fakeredis.FakeServer) -> Response:
    store.get = None  # type: ignore[assignment,method-assign]
    return client.get("/jobs/job_1")


def _redis_down(client: TestClient, _: JobStore, server: fakeredis.FakeServer) -> Response:
    server.connected = False
    return client.get("/jobs/job_1")


def _limited(settings: dict[str, object]) -> Produce:
    def produce(client: TestClient, store: JobStore, _: fakeredis.FakeServer) -> Response:
        headers = bearer(store.keys.create(KeySettings.model_validate({"name": "x", **settings})))
        for _ in range(2):
            response = client.post("/jobs", json={"prompt": "a", "max_tokens": 5}, headers=headers)
        delete_waiting(store)
        return response

    return produce


def _twice(second: dict[str, object], *, deleted: bool = False) -> Produce:
    def produce(client: TestClient, store: JobStore, _: fakeredis.FakeServer) -> Response:
        headers = {"Idempotency-Key": "k"}
        body = {"prompt": "a", "max_tokens": 5}
        job = client.post("/jobs", json=body, headers=headers).json()["id"]
        store.cancel(job)
        if deleted:
            store.delete(job)
        return client.post("/jobs", json={**body, **second}, headers=headers)

    return produce


def _full(client: TestClient, store: JobStore, _: fakeredis.FakeServer) -> Response:
    store._max_waiting = 0
    return post_json(client)


def _not_ended(client: TestClient, store: JobStore, _: fakeredis.FakeServer) -> Response:
    response = client.delete(f"/jobs/{post_json(client).json()['id']}")
    delete_waiting(store)
    return response


def delete_waiting(store: JobStore) -> None:
    while works := store.claim_next("tiny", worker="w1"):
        store.fail(works[0], JobError(code="x", message="x"))


def _callbacks_pending(client: TestClient, store: JobStore, _: fakeredis.FakeServer) -> Response:
    [key] = store.keys.list()
    store.callbacks._redis.hset(PENDING_CALLBACKS, key.id, MOST_PENDING)
    return post_json(client, callback_url="https://example.com/")


PRODUCED_BY: dict[str, Produce] = {
    "malformed_json": lambda client, *_: post(client, b"{"),
    "unauthorised": lambda client, *_: client.get("/jobs", headers={"Authorization": "Bearer x"}),
    "forbidden": lambda client, *_: post_json(client, priority=1),
    "not_found": lambda client, *_: client.get("/job"),
    "job_not_found": lambda client, *_: client.get("/jobs/job_1"),
    "key_not_found": lambda client, store, _: client.delete(
        "/admin/keys/abcdefghij",
        headers=bearer(store.keys.create(KeySettings(name="boss", admin=True))),
    ),
    "method_not_allowed": lambda client, *_: client.delete("/jobs"),
    "job_not_ended": _not_ended,
    "job_gone": _twice({}, deleted=True),
    "body_too_large": lambda client, *_: post(client, b" " * (MAX_BODY_BYTES + 1)),
    "unsupported_media_type": lambda client, *_: client.post("/jobs", data={"prompt": "a"}),
    "unknown_host": lambda client, *_: client.get("/jobs", headers={"Host": "evil.example"}),
    "invalid_request": lambda client, *_: post_json(client, temperature=9),
    "unknown_model": lambda client, *_: post_json(client, model="gpt-5"),
    "unknown_template": lambda client, *_: client.post("/jobs", json={"template": "poem"}),
    "prompt_too_long": lambda client, *_: post_json(client, max_tokens=200),
    "callback_url_refused": lambda client, *_: post_json(client, callback_url="http://a.example"),
    "exceeds_limit": _limited({"tokens_per_minute": 5}),
    "idempotency_conflict": _twice({"n": 2}),
    "rate_limited": _limited({"requests_per_minute": 1}),
    "too_many_callbacks": _callbacks_pending,
    "internal_error": _broken,
    "not_ready": lambda client, *_: client.get("/readyz"),
    "queue_full": _full,
    "store_unavailable": _redis_down,
}
# By routes, or with patience, that other tests have.
ELSEWHERE = {
    "batch_gone",
    "batch_not_ended",
    "batch_not_found",
    "dead_letter_not_found",
    "empty_batch",
    "file_not_found",
    "idempotency_in_progress",
    "invalid_rows",
    "malformed_gzip",
    "malformed_multipart",
    "nothing_to_replay",
    "nothing_to_retry",
    "too_many_files",
    "too_many_uploads",
    "body_timeout",
    "unsupported_parameter",
    "model_not_installed",
    "generation_failed",
    "timeout",
}


def test_every_code_is_covered() -> None:
    assert set(PRODUCED_BY) == PROBLEMS.keys() - ELSEWHERE


@pytest.mark.parametrize("code", PRODUCED_BY)
def test_code(
    code: str, client: TestClient, store: JobStore, redis_process: fakeredis.FakeServer
) -> None:
    problem(PRODUCED_BY[code](client, store, redis_process), code)
    redis_process.connected = True
    assert store.queue_depth("tiny") == 0


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "The body is empty."),
        (b" \n", "The body is empty."),
        (b'{\n "prompt": }', "Expecting value at line 2, column 12."),
        (b'{"prompt": "a"} x', "Extra data at line 1, column 17."),
        (b'{"prompt": "\xff"}', "Byte 12 is not UTF-8."),
        (b'{"prompt": "a", "temperature": NaN}', "NaN is not JSON."),
        (b'{"prompt": "a", "temperature": -Infinity}', "-Infinity is not JSON."),
        (b'{"seed": ' + b"1" * 5000 + b"}", "A number has too many digits."),
        (b"[" * 200_000, "The body is nested too deeply."),
        ('{"prompt": "a"}'.encode("utf-16"), "Byte 0 is not UTF-8."),
    ],
)
def test_malformed_json(client: TestClient, content: bytes, detail: str) -> None:
    document = problem(post(client, content), "malformed_json")
    assert document["detail"] == detail
    if "line" in document:
        assert detail.endswith(f"at line {document['line']}, column {document['column']}.")
    else:
        assert "line" not in detail


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"": "Send either a prompt or a template"}),
        ({"prompt": "a", "template": "b"}, {"": "Send either a prompt or a template"}),
        ({"prompt": "a", "variables": {"b": "c"}}, {"": "variables need a template"}),
        ({"template": "a", "variables": {"b": 1}}, {"/variables/b": "Input should be a valid str"}),
        ({"prompt": "a", "priority": 10}, {"/priority": "Input should be less than or equal to 9"}),
        ({"prompt": ""}, {"/prompt": "String should have at least 1 character"}),
        ({"prompt": 5}, {"/prompt": "Input should be a valid string or a valid list"}),
        ({"prompt": []}, {"/prompt": "List should have at least 1 item"}),
        ({"prompt": ["a"] * 17}, {"/prompt": "List should have at most 16 items"}),
        (
            {"prompt": ["a", "", 5]},
            {
                "/prompt/1": "String should have at least 1 character",
                "/prompt/2": "Input should be a valid string",
            },
        ),
        ({"prompt": "a" * 100_001}, {"/prompt": "String should have at most 100000 characters"}),
        ({"prompt": "a", "a/b~c": 1}, {"/a~1b~0c": "Unknown field"}),
        ({"prompt": "a", "x" * 100: 1}, {"/" + "x" * 64 + "…": "Unknown field"}),
        ({"prompt": "a", "max_tokens": "5"}, {"/max_tokens": "Input should be a valid integer"}),
        ({"prompt": "a", "max_tokens": True}, {"/max_tokens": "Input should be a valid integer"}),
        ({"prompt": "a", "max_tokens": 0}, {"/max_tokens": "Input should be greater than or"}),
        ({"prompt": "a", "seed": 2**63}, {"/seed": "Input should be less than"}),
        ({"prompt": "a", "top_p": 0}, {"/top_p": "Input should be greater than 0"}),
        ({"prompt": "a", "model": 1}, {"/model": "Input should be a valid string"}),
        ({"prompt": "a", "metadata": {"k": 1}}, {"/metadata/k": "Input should be a valid string"}),
        (
            {"prompt": "a", "metadata": {"": "v"}},
            {"/metadata/": "String should have at least 1 character"},
        ),
        ({"prompt": ["a"] * 16, "n": 5}, {"": "16 prompts x n 5 is more than 64 outputs"}),
        ([], {"": "Input should be a JSON object"}),
        (None, {"": "Input should be a JSON object"}),
    ],
)
def test_invalid_request(client: TestClient, body: object, expected: dict[str, str]) -> None:
    document = problem(post(client, json.dumps(body).encode()), "invalid_request")
    assert pointers(document) == list(expected)
    for error in document["errors"]:
        assert error["detail"].startswith(expected[error["pointer"]])
        assert (error["pointer"] or "the body") in document["detail"]


@pytest.mark.parametrize(
    ("content", "pointer"),
    [
        (b'{"prompt": "%s"}', "/prompt"),
        (b'{"prompt": ["a", "%s"]}', "/prompt/1"),
        (b'{"prompt": "a", "stop": ["%s"]}', "/stop/0"),
        (b'{"prompt": "a", "metadata": {"k": "%s"}}', "/metadata/k"),
        (b'{"prompt": "a", "metadata": {"%s": "v"}}', "/metadata"),
        (b'{"prompt": "a", "%s": 1}', ""),
    ],
)
def test_unpaired_surrogates(client: TestClient, content: bytes, pointer: str) -> None:
    document = problem(post(client, content % SURROGATE), "invalid_request")
    assert pointers(document) == [pointer]
    assert "unpaired surrogate" in document["errors"][0]["detail"]


def test_an_unpaired_surrogate_as_a_model(client: TestClient) -> None:
    response = post(client, b'{"prompt": "a", "model": "%s"}' % SURROGATE)
    problem(response, "unknown_model")
    response.content.decode("utf-8")


def test_endless_errors_are_cut(client: TestClient) -> None:
    document = problem(post_json(client, **{f"x{i}": 1 for i in range(500)}), "invalid_request")
    assert len(document["errors"]) == 20
    assert document["detail"].endswith("and 497 more")


def test_unknown_model(client: TestClient) -> None:
    document = problem(post_json(client, model="x" * 100), "unknown_model")
    assert document["detail"] == f"No model '{'x' * 64}'; there are: tiny, small."
    assert document["models"] == ["tiny", "small"]
    assert pointers(document) == ["/model"]


def test_prompt_too_long(client: TestClient) -> None:
    response = client.post("/jobs", json={"prompt": " a" * 100, "max_tokens": 29})
    document = problem(response, "prompt_too_long")
    assert document["detail"] == (
        "100 prompt tokens + 29 max_tokens = 129, more than the context of 128. "
        "Shorten the prompt, or set max_tokens to 28 or less."
    )
    numbers = {name: document[name] for name in ("prompt_tokens", "max_tokens", "context_length")}
    assert numbers == {"prompt_tokens": 100, "max_tokens": 29, "context_length": 128}
    assert pointers(document) == ["/prompt"]


def test_which_of_several_prompts_are_too_long(client: TestClient) -> None:
    document = problem(post_json(client, prompt=["a", " b" * 125, " c" * 200]), "prompt_too_long")
    assert pointers(document) == ["/prompt/1", "/prompt/2"]
    assert document["prompt_tokens"] == 125
    assert document["errors"][1]["detail"].endswith("the context of 128. Shorten the prompt.")


def test_the_default_of_max_tokens_is_named(client: TestClient) -> None:
    document = problem(client.post("/jobs", json={"prompt": "a"}), "prompt_too_long")
    assert "200 max_tokens (the default)" in document["detail"]


def test_a_body_without_content_type(client: TestClient) -> None:
    response = client.post("/jobs", content=b'{"prompt": "a"}')
    assert problem(response, "unsupported_media_type")["detail"].startswith("Send application/json")
    assert response.headers["accept"] == "application/json"


def test_a_compressed_body(client: TestClient) -> None:
    problem(post(client, b"{}", **{"Content-Encoding": "gzip"}), "unsupported_media_type")


def test_a_body_of_exactly_the_largest_size(client: TestClient) -> None:
    body = b'{"prompt": "a", "max_tokens": 5}'
    assert post(client, body.ljust(MAX_BODY_BYTES)).status_code == 202


def test_other_methods(client: TestClient) -> None:
    response = client.delete("/jobs")
    assert problem(response, "method_not_allowed")["detail"] == (
        "/jobs takes GET, POST, not DELETE."
    )
    assert response.headers["allow"] == "GET, POST"
    assert client.post("/jobs/job_1").headers["allow"] == "DELETE, GET"
    assert client.put("/admin/dead-letters/redrive").headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/jobs/", "/nowhere", "/docs/assets/none.js", "/%0a%ff", "/v1"])
def test_not_found(client: TestClient, path: str) -> None:
    problem(client.get(path), "not_found")


@pytest.mark.parametrize(
    "id", ["x", "job_", "job_" + "1" * 200, "job_01K9ZX3V7Q4C8E2M5T6R0B1DAF", "job_%00", "job_ä"]
)
def test_job_not_found(client: TestClient, id: str) -> None:  # noqa: A002
    detail = problem(client.get(f"/jobs/{id}"), "job_not_found")["detail"]
    assert len(detail) < 140


def test_no_id_leads_to_another_key(client: TestClient, redis: fakeredis.FakeRedis) -> None:
    redis.set("slm:job:job_1:2", "of another type")
    problem(client.get("/jobs/job_1:2"), "job_not_found")
