"""`/generate` and `/generate/{model}`: the prompt and its continuation, whatever the length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from slm_core.tokenizer import Tokenizer
from slm_jobs.api_keys import NewKey
from slm_jobs.events import JobEvents
from slm_jobs.schemas import JobError, Work
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.conftest import bearer
from tests.api.fake_worker import FakeWorker
from tests.api.test_problems import problem

CONTEXT = 128  # of `tiny`


@pytest.fixture
def worker(store: JobStore) -> Iterator[FakeWorker]:
    with FakeWorker(store) as worker:
        yield worker


def hold(store: JobStore, work: Work) -> None:
    """Leaves the job running."""


def test_the_prompt_and_its_continuation(client: TestClient, worker: FakeWorker) -> None:
    response = client.post("/generate", json={"prompt": "Once upon", "max_tokens": 5})
    assert response.json() == {"output": "Once upon <0> ☃"}
    assert response.headers["ratelimit"]
    [work] = worker.seen
    assert (work.model, work.spec.prompts, work.spec.max_tokens) == ("tiny", ["Once upon"], 5)


@pytest.mark.parametrize("name", ["tiny", "custom"])
def test_with_a_model(client: TestClient, worker: FakeWorker, name: str) -> None:
    response = client.post(f"/generate/{name}", json={"prompt": "Once upon"})
    assert response.json() == {"generated_text": "Once upon <0> ☃"}
    assert (worker.seen[0].model, worker.seen[0].spec.max_tokens) == ("tiny", 100)


def test_with_another_model_than_the_default(client: TestClient, store: JobStore) -> None:
    with FakeWorker(store, model="small") as worker:
        assert client.post("/generate/small", json={"prompt": "a"}).status_code == 200
    assert worker.seen[0].model == "small"


def test_sampling(client: TestClient, worker: FakeWorker) -> None:
    fields = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "seed": 9, "stop": ["\n"]}
    fields["ignore_eos"] = True
    assert client.post("/generate", json={"prompt": "a", **fields}).status_code == 200
    spec = worker.seen[0].spec.model_dump()
    assert {name: spec[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "kept", "cut"),
    [
        (28, 100, 28, 100),  # fits exactly
        (29, 100, 29, 99),  # max_tokens is cut to the room left
        (127, 100, 127, 1),
        (128, 100, 28, 100),  # no room left: the prompt keeps its end
        (1000, 100, 28, 100),
        (1000, 300, 1, 127),  # max_tokens alone is more than the context
        (1, 300, 1, 127),
    ],
)
def test_a_request_is_made_to_fit(
    client: TestClient, worker: FakeWorker, tokens: int, max_tokens: int, kept: int, cut: int
) -> None:
    prompt = "".join(f" {'ab'[i % 2]}" for i in range(tokens))
    body = {"prompt": prompt, "max_tokens": max_tokens}
    assert client.post("/generate", json=body).json() == {"output": f"{prompt} <0> ☃"}
    spec = worker.seen[0].spec
    [asked] = spec.prompts
    ids = Tokenizer().encode(prompt)
    assert len(ids) == tokens
    assert (Tokenizer().encode(asked) if isinstance(asked, str) else asked) == ids[-kept:]
    assert (isinstance(asked, str), spec.max_tokens) == (kept == tokens, cut)
    assert kept + cut <= CONTEXT


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "distilgpt2"])
def test_a_model_that_is_not_installed(client: TestClient, store: JobStore, name: str) -> None:
    response = client.post(f"/generate/{name}", json={"prompt": "a"})
    document = problem(response, "model_not_installed")
    assert f"`slm models add {name} --from " in document["detail"]
    assert document["models"] == ["tiny", "small"]


@pytest.mark.parametrize("name", ["GPT 2; rm -rf", "%60x%60", "x" * 1000])
def test_what_can_be_no_model(client: TestClient, name: str) -> None:
    detail = problem(client.post(f"/generate/{name}", json={"prompt": "a"}), "model_not_installed")[
        "detail"
    ]
    assert "slm models add" not in detail
    assert len(detail) < 150


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/prompt"),
        ({"prompt": ""}, "/prompt"),
        ({"prompt": ["a"]}, "/prompt"),
        ({"prompt": "a", "max_tokens": 301}, "/max_tokens"),
        ({"prompt": "a", "max_tokens": 0}, "/max_tokens"),
        ({"prompt": "a", "n": 2}, "/n"),
        ({"prompt": "a", "model": "tiny"}, "/model"),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate/tiny"])
def test_bad_fields(
    client: TestClient, store: JobStore, path: str, body: Any, pointer: str
) -> None:
    document = problem(client.post(path, json=body), "invalid_request")
    assert [error["pointer"] for error in document["errors"]] == [pointer]
    assert store.queue_depth("tiny") == 0


def test_without_a_key(client: TestClient) -> None:
    wrong = {"Authorization": "Bearer slm_wrong"}
    assert client.post("/generate", json={"prompt": "a"}, headers=wrong).status_code == 401


def test_a_failed_job(client: TestClient, store: JobStore) -> None:
    def fail(store: JobStore, work: Work) -> None:
        store.fail(work, JobError(code="out_of_memory", message="no room"))

    with FakeWorker(store, fail) as worker:
        response = client.post("/generate", json={"prompt": "a"})
    document = problem(response, "generation_failed")
    assert document["error"] == {"code": "out_of_memory", "message": "no room"}
    assert document["job_id"] == worker.seen[0].id


def test_a_job_that_takes_too_long(
    settings: Settings, store: JobStore, events: JobEvents, key: NewKey
) -> None:
    hasty = create_app(settings.model_copy(update={"sync_timeout_seconds": 0.2}), store, events)
    with TestClient(hasty, headers=bearer(key)) as client, FakeWorker(store, hold) as worker:
        problem(client.post("/generate", json={"prompt": "a"}), "timeout")
    assert store.get(worker.seen[0].id).cancel_requested


def test_a_repeated_call_is_the_same_job(client: TestClient, worker: FakeWorker) -> None:
    key = {"Idempotency-Key": "k1"}
    first = client.post("/generate", json={"prompt": "a"}, headers=key)
    assert first.json() == client.post("/generate", json={"prompt": "a"}, headers=key).json()
    assert len(worker.seen) == 1


@pytest.mark.parametrize("path", ["/generate", "/generate/{model}"])
def test_examples_are_taken(client: TestClient, worker: FakeWorker, path: str) -> None:
    operation = client.get("/openapi.json").json()["paths"][path]["post"]
    assert operation["tags"] == ["simple"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) > 1
    for example in examples.values():
        response = client.post(path.format(model="custom"), json=example["value"])
        assert response.status_code == 200
