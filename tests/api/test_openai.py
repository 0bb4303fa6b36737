"""`/v1`: what OpenAI's clients send and read, and what they get where something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
from starlette.testclient import TestClient

from api.body import MAX_BODY_BYTES
from api.openai.errors import OpenAIError
from api.openai.schemas import END_OF_TEXT, VOCABULARY, Completion, CompletionRequest
from slm_core.tokenizer import Tokenizer
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.fake_worker import FINGERPRINT, FakeWorker
from tests.api.openai_calls import complete, error

ROUTES = [("/v1/completions", "post"), ("/v1/models", "get"), ("/v1/models/{id}", "get")]


@pytest.fixture
def worker(store: JobStore) -> Iterator[FakeWorker]:
    with FakeWorker(store) as worker:
        yield worker


# Answers


def test_a_completion(client: TestClient, worker: FakeWorker) -> None:
    response = complete(client)
    document = response.json()
    assert response.status_code == 200
    [work] = worker.seen
    created = document.pop("created")
    assert document == {
        "id": f"cmpl-{work.id}",
        "object": "text_completion",
        "model": "tiny",
        "choices": [{"index": 0, "text": " <0> ☃", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7},
        "system_fingerprint": FINGERPRINT,
    }
    job = client.get(f"/jobs/{work.id}").json()
    assert job["created_at"].startswith("20")
    assert isinstance(created, int)
    assert response.headers["x-ratelimit-limit-requests"]
    assert response.headers["ratelimit"]


def test_openais_defaults(client: TestClient, worker: FakeWorker) -> None:
    assert complete(client).status_code == 200
    spec = worker.seen[0].spec
    assert (spec.max_tokens, spec.temperature, spec.top_k, spec.top_p) == (16, 1.0, None, 1.0)
    assert (spec.stop, spec.n, spec.stream, spec.ignore_eos) == ([], 1, False, False)
    assert (spec.priority, spec.metadata) == (0, {})


def test_what_was_asked_reaches_the_worker(client: TestClient, worker: FakeWorker) -> None:
    body = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "n": 2,
        "stop": "\n",
        "seed": 9,
        "ignore_eos": True,
        "user": "ann",
    }
    response = complete(client, {"X-Request-Id": "mine"}, **body)
    assert [c["index"] for c in response.json()["choices"]] == [0, 1]
    spec = worker.seen[0].spec
    assert (spec.max_tokens, spec.temperature, spec.top_p, spec.top_k) == (5, 0.5, 0.9, 7)
    assert (spec.n, spec.stop, spec.seed, spec.ignore_eos) == (2, ["\n"], 9, True)
    assert (spec.metadata, spec.request_id) == ({"user": "ann"}, "mine")


@pytest.mark.parametrize(
    ("prompt", "prompts", "echoed"),
    [
        ("A cat", ["A cat"], ["A cat"]),
        (["A cat", "A dog"], ["A cat", "A dog"], ["A cat", "A dog"]),
        ([32, 3797], [[32, 3797]], ["A cat"]),
        ([[32, 3797], [32]], [[32, 3797], [32]], ["A cat", "A"]),
        ("", [[END_OF_TEXT]], [""]),
        (None, [[END_OF_TEXT]], [""]),
        (["A", ""], ["A", [END_OF_TEXT]], ["A", ""]),
        (["a"] * 64, ["a"] * 64, ["a"] * 64),
    ],
)
def test_every_form_of_prompt(
    client: TestClient, worker: FakeWorker, prompt: Any, prompts: Any, echoed: list[str]
) -> None:
    choices = complete(client, prompt=prompt, echo=True).json()["choices"]
    assert worker.seen[0].spec.prompts == prompts
    assert [c["text"] for c in choices] == [f"{text} <{i}> ☃" for i, text in enumerate(echoed)]


def test_each_continuation_of_each_prompt_is_a_choice(
    client: TestClient, worker: FakeWorker
) -> None:
    choices = complete(client, prompt=["a", "b"], n=2, echo=True).json()["choices"]
    texts = ["a <0> ☃", "a <1> ☃", "b <2> ☃", "b <3> ☃"]
    assert [(c["index"], c["text"]) for c in choices] == list(enumerate(texts))


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63 - 1])
def test_every_seed_that_openai_takes(client: TestClient, worker: FakeWorker, seed: int) -> None:
    assert complete(client, seed=seed).status_code == 200
    assert complete(client, seed=seed).status_code == 200
    first, second = worker.seen
    assert first.spec.seed == second.spec.seed


def test_a_top_p_of_0_takes_the_likeliest(client: TestClient, worker: FakeWorker) -> None:
    assert complete(client, top_p=0).status_code == 200
    assert worker.seen[0].spec.temperature == 0


def test_neutral_values_and_nulls_ask_for_nothing(client: TestClient, worker: FakeWorker) -> None:
    neutral = {
        "best_of": 2,
        "logit_bias": {},
        "suffix": "",
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logprobs": None,
    }
    assert complete(client, n=2, **neutral).status_code == 200
    nulls = dict.fromkeys(CompletionRequest.model_fields.keys() - {"model", "prompt"})
    assert complete(client, **nulls).status_code == 200


def test_vocabulary_is_the_tokenizers() -> None:
    tokenizer = Tokenizer()
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (VOCABULARY, END_OF_TEXT)


# What is refused


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": None}, "model"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [VOCABULARY]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"] * 33, "n": 2}, None),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 65}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"user": "u" * 513}, "user"),
        ({"top_k": 0}, "top_k"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
    ],
)
def test_bad_fields(client: TestClient, store: JobStore, body: Any, param: str | None) -> None:
    error(complete(client, **body), 400, "invalid_request", param)
    assert store.queue_depth("tiny") == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 3),
        ("logprobs", 0),
        ("logprobs", 5),
        ("suffix", "The end"),
        ("logit_bias", {"50256": -100}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("stream_options", {"include_obfuscation": True}),
    ],
)
def test_what_is_not_supported_is_said(
    client: TestClient, store: JobStore, name: str, value: Any
) -> None:
    response = complete(client, stream=True, **{name: value})
    assert name in error(response, 400, "unsupported_parameter", name)
    assert store.queue_depth("tiny") == 0


@pytest.mark.parametrize(
    "prompt", [["a", *[5] * 60_000], [5, *["a"] * 60_000], [[5], *["a"] * 60_000], [["a"] * 60_000]]
)
def test_a_long_list_of_mistakes_is_one_mistake(client: TestClient, prompt: Any) -> None:
    message = error(complete(client, prompt=prompt), 400, "invalid_request", "prompt")
    assert len(message) < 500


def test_other_refusals(
    client: TestClient, store: JobStore, redis_process: fakeredis.FakeServer
) -> None:
    json_type = {"Content-Type": "application/json"}
    post = client.post
    message = error(complete(client, model="gpt-5"), 404, "model_not_found", "model")
    assert "tiny" in message
    error(complete(client, prompt=" a" * 120), 400, "context_length_exceeded", "prompt")
    error(complete(client, prompt=[5] * 120), 400, "context_length_exceeded", "prompt")
    error(post("/v1/completions", content=b"{", headers=json_type), 400, "malformed_json")
    error(post("/v1/completions", data={"prompt": "a"}), 415, "unsupported_media_type")
    large = b" " * (MAX_BODY_BYTES + 1)
    error(post("/v1/completions", content=large, headers=json_type), 413, "body_too_large")
    error(client.get("/v1/nothing"), 404, "not_found")
    error(client.get("/v1/completions"), 405, "method_not_allowed")
    wrong = {"Authorization": "Bearer slm_wrong"}
    error(complete(client, wrong), 401, "invalid_api_key")
    error(client.get("/v1/models", headers=wrong), 401, "invalid_api_key")
    redis_process.connected = False
    down = complete(client)
    error(down, 503, "store_unavailable")
    assert down.headers["retry-after"] == "1"
    redis_process.connected = True
    assert store.queue_depth("tiny") == 0


def test_a_fault_of_ours(client: TestClient, store: JobStore) -> None:
    store.create = None  # type: ignore[assignment,method-assign]
    error(complete(client), 500, "internal_error")


def test_elsewhere_errors_are_problem_documents(client: TestClient) -> None:
    for path in ("/v1", "/v12/completions", "/nowhere/v1/models"):
        assert client.get(path).headers["content-type"] == "application/problem+json"


def test_behind_a_proxy(client: TestClient) -> None:
    behind = TestClient(client.app, root_path="/slm", headers=client.headers)
    error(behind.get("/v1/nothing"), 404, "not_found")
    error(behind.get("/slm/v1/nothing"), 404, "not_found")


# Models


def test_models(client: TestClient, settings: Settings) -> None:
    document = client.get("/v1/models").json()
    assert document["object"] == "list"
    assert [model["id"] for model in document["data"]] == ["tiny", "small"]
    first = document["data"][0]
    assert list(first) == ["id", "object", "created", "owned_by"]
    assert (first["object"], first["owned_by"]) == ("model", "slm")
    written = (settings.models_file.parent / "tiny" / "config.json").stat().st_mtime
    assert first["created"] == int(written)
    assert client.get("/v1/models/tiny").json() == first
    error(client.get("/v1/models/gpt-5"), 404, "model_not_found", "model")


# The document


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_errors_are_documented(client: TestClient, path: str, method: str) -> None:
    operation = client.get("/openapi.json").json()["paths"][path][method]
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"] == ["openai"]
    assert {"200", "401", "default"} <= operation["responses"].keys()
    for status, response in operation["responses"].items():
        if status == "200":
            continue
        [(kind, content)] = response["content"].items()
        assert (kind, content["schema"]["$ref"].rpartition("/")[2]) == (
            "application/json",
            "OpenAIError",
        )
        for code, example in content["examples"].items():
            assert OpenAIError.model_validate(example["value"]).error.code == code


def test_request_examples_are_taken(client: TestClient, worker: FakeWorker) -> None:
    document = client.get("/openapi.json").json()
    content = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]
    examples = content["application/json"]["examples"]
    assert len(examples) > 2
    for example in examples.values():
        assert complete(client, **{**example["value"], "model": "tiny"}).status_code == 200


def test_the_schema_says_what_is_taken(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()["components"]["schemas"]["CompletionRequest"]
    fields = schema["properties"]
    assert schema["required"] == ["model"]
    assert {"type": "null"} in fields["max_tokens"]["anyOf"]
    assert fields["max_tokens"]["default"] == 16
    assert fields["logprobs"]["anyOf"] == [{"type": "null"}]
    penalty = fields["presence_penalty"]["anyOf"][0]
    assert (penalty["minimum"], penalty["maximum"]) == (0, 0)


def test_an_answer_is_as_documented(client: TestClient, worker: FakeWorker) -> None:
    document = complete(client).json()
    assert Completion.model_validate(document).model_dump() == document
