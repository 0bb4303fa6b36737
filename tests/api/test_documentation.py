"""The OpenAPI document is valid, and its examples are what the service takes and gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI
from starlette.testclient import TestClient

from api.batches import documentation as batches
from api.batches.options import BatchOptions
from api.documentation import JOB_EXAMPLES, REQUEST_EXAMPLES
from api.problems import MEDIA_TYPE, PROBLEMS, ProblemDocument
from slm_jobs.batch_schemas import Batch
from slm_jobs.schemas import Job, JobRequest

ROUTES = [
    ("/jobs", "post"),
    ("/jobs", "get"),
    ("/jobs/{id}", "get"),
    ("/jobs/{id}", "delete"),
    ("/jobs/{id}/cancel", "post"),
    ("/jobs/{id}/stream", "get"),
    ("/batches", "post"),
    ("/batches", "get"),
    ("/batches/{id}", "get"),
    ("/batches/{id}", "delete"),
    ("/batches/{id}/cancel", "post"),
    ("/batches/{id}/retry", "post"),
    ("/batches/{id}/results", "get"),
    ("/batches/{id}/errors", "get"),
    ("/jobs/{id}/callbacks", "get"),
    ("/jobs/{id}/callbacks/replay", "post"),
    ("/batches/{id}/callbacks", "get"),
    ("/batches/{id}/callbacks/replay", "post"),
    ("/callbacks", "get"),
    ("/callbacks/secret", "get"),
    ("/callbacks/secret/rotate", "post"),
    ("/generate", "post"),
    ("/generate/{model}", "post"),
    ("/models", "get"),
    ("/queue", "get"),
    ("/healthz", "get"),
    ("/readyz", "get"),
    ("/metrics", "get"),
    ("/admin/keys", "post"),
    ("/admin/keys", "get"),
    ("/admin/keys/{id}/rotate", "post"),
    ("/admin/keys/{id}", "delete"),
    ("/admin/dead-letters", "get"),
    ("/admin/dead-letters/redrive", "post"),
    ("/admin/dead-letters/{id}", "get"),
    ("/admin/dead-letters/{id}", "delete"),
    ("/admin/dead-letters/{id}/redrive", "post"),
]
OPENAI = [
    ("/v1/completions", "post"),
    ("/v1/models", "get"),
    ("/v1/models/{id}", "get"),
    ("/v1/files", "post"),
    ("/v1/files", "get"),
    ("/v1/files/{id}", "get"),
    ("/v1/files/{id}", "delete"),
    ("/v1/files/{id}/content", "get"),
    ("/v1/batches", "post"),
    ("/v1/batches", "get"),
    ("/v1/batches/{id}", "get"),
    ("/v1/batches/{id}/cancel", "post"),
]


@pytest.fixture
def document(client: TestClient) -> Any:
    client.get("/openapi.json")  # a second reading must not differ
    return client.get("/openapi.json").json()


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from references(child)


def test_it_is_openapi(document: Any) -> None:
    OpenAPI.model_validate(document)
    assert document["info"]["version"] == version("slm-jobs")
    found = [(path, method) for path, item in document["paths"].items() for method in item]
    assert sorted(found) == sorted(ROUTES + OPENAI)


def test_every_reference_leads_somewhere(document: Any) -> None:
    found = set(references(document))
    assert {"#/components/schemas/JobRequest", "#/components/schemas/Problem"} <= found
    for reference in found:
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_every_route_documents_its_problems(document: Any, path: str, method: str) -> None:
    operation = document["paths"][path][method]
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    assert "default" in operation["responses"]
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            continue
        assert list(response["content"]) == [MEDIA_TYPE]
        examples = response["content"][MEDIA_TYPE]["examples"]
        for code, example in examples.items():
            ProblemDocument.model_validate(example["value"], strict=True)
            assert PROBLEMS[code].status == example["value"]["status"]
            assert status in (str(PROBLEMS[code].status), "default")


def test_the_frameworks_own_errors_are_not_there(document: Any) -> None:
    assert "ValidationError" not in json.dumps(document)


@pytest.mark.parametrize("name", REQUEST_EXAMPLES)
def test_examples_are_taken(client: TestClient, document: Any, name: str) -> None:
    body = document["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]
    example = body["examples"][name]["value"]
    JobRequest.model_validate(example, strict=True)
    response = client.post("/jobs", json={**example, "model": "small"})
    assert response.status_code == 202, response.text


@pytest.mark.parametrize("name", batches.REQUEST_EXAMPLES)
def test_batch_examples_are_taken(client: TestClient, document: Any, name: str) -> None:
    content = document["paths"]["/batches"]["post"]["requestBody"]["content"]
    example = content["application/json"]["examples"][name]["value"]
    batches.BatchRequest.model_validate(example, strict=True)
    response = client.post("/batches", json={**example, "model": "small"})
    assert response.status_code == 202, response.text


@pytest.mark.parametrize("kind", batches.MEDIA_TYPES)
def test_example_files_are_taken(client: TestClient, document: Any, kind: str) -> None:
    content = document["paths"]["/batches"]["post"]["requestBody"]["content"]
    sent = content[kind]["example"].encode()
    response = client.post("/batches?max_tokens=9", content=sent, headers={"Content-Type": kind})
    assert response.status_code == 202, response.text


def test_options_are_documented_alike(document: Any) -> None:
    operation = document["paths"]["/batches"]["post"]
    query = [entry["name"] for entry in operation["parameters"] if entry["in"] == "query"]
    fields = operation["requestBody"]["content"][batches.MULTIPART]["schema"]["properties"]
    assert query == list(BatchOptions.model_fields)
    assert set(fields) == {*query, "file"}


@pytest.mark.parametrize("name", batches.BATCH_EXAMPLES)
def test_a_batch_reads_as_its_example(document: Any, name: str) -> None:
    response = document["paths"]["/batches/{id}"]["get"]["responses"]["200"]
    assert name in response["content"]["application/json"]["examples"]
    example = document["components"]["examples"][name]["value"]
    text = Batch.model_validate_json(json.dumps(example)).model_dump_json()
    assert json.loads(text) == example
    assert list(json.loads(text)) == list(example)


@pytest.mark.parametrize("name", JOB_EXAMPLES)
def test_a_job_reads_as_its_example(document: Any, name: str) -> None:
    response = document["paths"]["/jobs/{id}"]["get"]["responses"]["200"]
    reference = response["content"]["application/json"]["examples"][name]["$ref"]
    assert reference == f"#/components/examples/{name}"
    example = document["components"]["examples"][name]["value"]
    text = Job.model_validate_json(json.dumps(example)).model_dump_json()
    assert json.loads(text) == example
    assert list(json.loads(text)) == list(example)
