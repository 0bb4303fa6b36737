"""Jobs that are too late, or kill their worker, through real processes; and running them again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from slm_client.cli import app
from slm_client.job import Job
from slm_core import Engine, SamplingParams
from tests.e2e.service import SLOTS, Service, until

pytestmark = pytest.mark.timeout(240)

PROMPT = "Once upon a time"
# Four times as many outputs as slots: it still runs when a test looks again.
LONG: dict[str, Any] = {"max_tokens": 450, "n": 64, "ignore_eos": True, "seed": 7}


@pytest.fixture(scope="module")
def running(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("dead-letters")
    manifest = folder / "models.toml"
    manifest.write_text(f'[tiny]\ncheckpoint = "{checkpoint}"\nprecision = "fp32"\n')
    with Service(folder, manifest) as service:
        service.start(workers=1)
        yield service


@pytest.fixture
def service(running: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """With one worker, and commands that find it; at the end nothing runs in it."""
    monkeypatch.setenv("SLM_URL", running.url)
    monkeypatch.setenv("SLM_API_KEY", running.api_key)
    yield running
    for job in running.client.jobs():
        running.client.cancel(job.id)


def slm(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    return result


def runs(service: Service, job: Job, attempt: int = 1) -> bool:
    found = service.client.get(job.id)
    return (found.status, found.attempt) == ("running", attempt)


def first_text(engine: Engine) -> str:
    """Of LONG, at its end."""
    params = SamplingParams(max_tokens=450, ignore_eos=True, seed=7)
    return engine.generate([PROMPT], params)[0].text


def test_a_run_deadline_keeps_the_text(service: Service, reference: Engine) -> None:
    job = service.client.submit(PROMPT, **LONG, run_timeout=2)
    failed = service.client.wait(job.id, timeout=60)
    assert (failed.status, failed.failure.code) == ("failed", "deadline_exceeded")
    assert failed.text
    assert first_text(reference).startswith(failed.text.removesuffix("\ufffd"))
    assert len(failed.outputs) == 64
    assert "cancelled" in {output.finish_reason for output in failed.outputs}
    assert failed.id in slm("dlq", "list").stdout
    service.client.dead_letters.drop(failed.id)


def test_a_job_that_no_worker_begins_expires(service: Service) -> None:
    busy = [service.client.submit(PROMPT, **LONG) for _ in range(SLOTS)]
    until(lambda: all(runs(service, job) for job in busy), "every thread of the worker is busy")
    late = service.client.submit(PROMPT, max_tokens=5, queue_timeout=0.2)
    expired = service.client.wait(late.id, timeout=60)
    assert (expired.status, expired.started_at, expired.attempt) == ("expired", None, 0)
    assert service.client.dead_letters.count() == 0


def test_a_job_that_kills_its_workers_is_redriven(service: Service, reference: Engine) -> None:
    job = service.client.submit(PROMPT, **{**LONG, "n": SLOTS})
    for attempt in (1, 2, 3):
        until(partial(runs, service, job, attempt), f"attempt {attempt} runs")
        service.kill_worker(service.workers[0])
        service.start_worker()
    failed = service.client.wait(job.id, timeout=60)
    assert (failed.status, failed.failure.code) == ("failed", "attempts_exhausted")
    assert failed.attempt == 3
    listed = slm("dlq", "list").stdout
    assert job.id in listed
    assert "attempts_exhausted" in listed
    assert slm("dlq", "show", job.id).stdout.startswith(PROMPT)

    slm("dlq", "redrive", job.id)
    [again] = [one for one in service.client.jobs() if one.retry_of == job.id]
    succeeded = service.client.wait(again.id, timeout=120)
    assert succeeded.status == "succeeded"
    assert succeeded.text == first_text(reference)
    assert slm("dlq", "list").stdout == ""
    assert service.client.get(job.id).status == "failed"  # it never changes
