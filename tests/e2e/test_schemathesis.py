"""Does the service do what its OpenAPI document says, and would a generated client work?

For a longer search than CI's:
  SLM_SCHEMATHESIS_EXAMPLES=2000 SLM_SCHEMATHESIS_SEED=7 \\
    .venv/bin/pytest --timeout 0 tests/e2e/test_schemathesis.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openapi_spec_validator
import pytest

from slm_core import GPTConfig, save_checkpoint
from tests.e2e.service import Service
from tests.slm_core.conftest import random_model

pytestmark = pytest.mark.timeout(600)

CONFIG = Path(__file__).with_name("schemathesis.toml")
ROOT = Path(__file__).parents[2]
EXAMPLES = os.environ.get("SLM_SCHEMATHESIS_EXAMPLES", "50")
SEED = os.environ.get("SLM_SCHEMATHESIS_SEED", "1")
TEMPLATE = """
[tiny.templates.animal]
text = "A {animal} named {name}"
variables = { animal = "what it is about", name = "how it is called" }
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With a model that is done at once: this is about requests, not about texts."""
    folder = tmp_path_factory.mktemp("schemathesis")
    config = GPTConfig(n_layer=1, n_head=2, n_embd=64, context_length=256)
    checkpoint = save_checkpoint(random_model(config), folder / "tiny")
    manifest = folder / "models.toml"
    manifest.write_text(f'[tiny]\ncheckpoint = "{checkpoint}"\n{TEMPLATE}')
    with Service(folder, manifest) as service:
        service.start(workers=1)
        yield service


@pytest.fixture(scope="module")
def document(stack: Service) -> Any:
    return httpx.get(f"{stack.url}/openapi.json", trust_env=False).raise_for_status().json()


def operations(document: Any) -> dict[str, tuple[str, str]]:
    return {
        operation["operationId"]: (method, path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_answer_is_as_documented(stack: Service, document: Any, tmp_path: Path) -> None:
    key = stack.api_key.split("_")[1]
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"]
    command += [f"{stack.url}/openapi.json", "--header", f"Authorization: Bearer {stack.api_key}"]
    command += ["--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"]
    command += ["--max-examples", EXAMPLES, "--seed", SEED, "--no-color"]
    run = subprocess.run(
        command,
        env={**os.environ, "SLM_TEST_KEY_ID": key, "PYTHONPATH": str(ROOT), "NO_PROXY": "*"},
        cwd=tmp_path,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    report = "\n".join(line[:1000] for line in run.stdout.splitlines())
    assert run.returncode == 0, report
    assert re.search(rf"Tested: {len(operations(document))}$", report, re.MULTILINE), report
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f"✅ {phase}" in report, report
    # Its key has lived to the end, and nothing broke behind an answer that looked right.
    assert stack.client.models()
    assert " ERROR " not in (stack.folder / "api.log").read_text(errors="replace")


def test_the_document_is_valid(document: Any) -> None:
    openapi_spec_validator.validate(document)


def test_operations_have_names_that_clients_can_keep(document: Any) -> None:
    assert operations(document) == {
        "create_job": ("post", "/jobs"),
        "list_jobs": ("get", "/jobs"),
        "get_job": ("get", "/jobs/{id}"),
        "cancel_job": ("post", "/jobs/{id}/cancel"),
        "delete_job": ("delete", "/jobs/{id}"),
        "stream_job": ("get", "/jobs/{id}/stream"),
        "create_batch": ("post", "/batches"),
        "list_batches": ("get", "/batches"),
        "get_batch": ("get", "/batches/{id}"),
        "cancel_batch": ("post", "/batches/{id}/cancel"),
        "retry_batch": ("post", "/batches/{id}/retry"),
        "delete_batch": ("delete", "/batches/{id}"),
        "read_results": ("get", "/batches/{id}/results"),
        "read_errors": ("get", "/batches/{id}/errors"),
        "list_job_callbacks": ("get", "/jobs/{id}/callbacks"),
        "replay_job_callbacks": ("post", "/jobs/{id}/callbacks/replay"),
        "list_batch_callbacks": ("get", "/batches/{id}/callbacks"),
        "replay_batch_callbacks": ("post", "/batches/{id}/callbacks/replay"),
        "list_failed_callbacks": ("get", "/callbacks"),
        "read_callback_secrets": ("get", "/callbacks/secret"),
        "rotate_callback_secret": ("post", "/callbacks/secret/rotate"),
        "generate": ("post", "/generate"),
        "generate_with": ("post", "/generate/{model}"),
        "list_models": ("get", "/models"),
        "read_queue": ("get", "/queue"),
        "healthz": ("get", "/healthz"),
        "readyz": ("get", "/readyz"),
        "read_metrics": ("get", "/metrics"),
        "create_key": ("post", "/admin/keys"),
        "list_keys": ("get", "/admin/keys"),
        "rotate_key": ("post", "/admin/keys/{id}/rotate"),
        "revoke_key": ("delete", "/admin/keys/{id}"),
        "list_dead_letters": ("get", "/admin/dead-letters"),
        "read_dead_letter": ("get", "/admin/dead-letters/{id}"),
        "redrive_dead_letter": ("post", "/admin/dead-letters/{id}/redrive"),
        "redrive_dead_letters": ("post", "/admin/dead-letters/redrive"),
        "drop_dead_letter": ("delete", "/admin/dead-letters/{id}"),
        "openai_create_completion": ("post", "/v1/completions"),
        "openai_list_models": ("get", "/v1/models"),
        "openai_get_model": ("get", "/v1/models/{id}"),
        "openai_create_file": ("post", "/v1/files"),
        "openai_list_files": ("get", "/v1/files"),
        "openai_get_file": ("get", "/v1/files/{id}"),
        "openai_get_file_content": ("get", "/v1/files/{id}/content"),
        "openai_delete_file": ("delete", "/v1/files/{id}"),
        "openai_create_batch": ("post", "/v1/batches"),
        "openai_list_batches": ("get", "/v1/batches"),
        "openai_get_batch": ("get", "/v1/batches/{id}"),
        "openai_cancel_batch": ("post", "/v1/batches/{id}/cancel"),
    }


def test_links_lead_to_operations(document: Any) -> None:
    named = operations(document)
    found = [
        link
        for methods in document["paths"].values()
        for operation in methods.values()
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert len(found) == 38
    for link in found:
        _, path = named[link["operationId"]]
        assert set(re.findall(r"{(\w+)}", path)) == set(link["parameters"])
