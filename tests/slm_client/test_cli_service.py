"""`slm jobs`, `slm queue`, `slm keys`, `slm models list`: what a service tells, as tables."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import Result

from tests.slm_client.fake_service import KEY, FakeService
from tests.slm_client.processes import slm

pytestmark = pytest.mark.usefixtures("url")


def cells(result: Result) -> list[list[str]]:
    """A table's cells, which two spaces part; empty ones are not seen."""
    assert result.exit_code == 0, result.stderr
    return [re.split(r" {2,}", line.strip()) for line in result.stdout.splitlines()]


@pytest.fixture
def three_jobs(url: str) -> None:
    for prompt in ("Once", "FAIL", "Twice"):
        slm("generate", prompt)


@pytest.mark.usefixtures("three_jobs")
def test_jobs_list() -> None:
    header, *rows = cells(slm("jobs", "list"))
    assert header == ["id", "status", "model", "created", "tokens", "text"]
    assert [row[:3] for row in rows] == [
        ["job_3", "succeeded", "tiny"],
        ["job_2", "failed", "tiny"],
        ["job_1", "succeeded", "tiny"],
    ]
    assert rows[0][-2:] == ["4", "and so on."]
    assert len(cells(slm("jobs", "list", "--limit", "1"))) == 2
    assert [row[0] for row in cells(slm("jobs", "list", "--status", "failed"))] == ["id", "job_2"]
    assert slm("jobs", "list", "--status", "odd").exit_code == 2
    listed = json.loads(slm("jobs", "list", "--json").stdout)
    assert [job["id"] for job in listed] == ["job_3", "job_2", "job_1"]


@pytest.mark.usefixtures("three_jobs")
def test_jobs_show(service: FakeService) -> None:
    result = slm("jobs", "show", "job_1")
    assert result.stdout == " and so on.\n"
    assert "status     succeeded\n" in result.stderr
    assert "tokens     3 of the prompt, 4 generated\n" in result.stderr
    assert "Output 0 (stop):" in result.stderr
    assert "error      engine_error: the engine broke\n" in slm("jobs", "show", "job_2").stderr
    assert json.loads(slm("jobs", "show", "job_3", "--json").stdout)["id"] == "job_3"
    assert "retry of" not in slm("jobs", "show", "job_2").stderr
    service.jobs["job_3"].update(start=1e12, end=1e12)
    assert "queue      3 ahead, starts in about 2 s\n" in slm("jobs", "show", "job_3").stderr
    result = slm("jobs", "show", "job_9")
    assert (result.exit_code, result.stderr) == (1, "404 not_found: there is no such job\n")


@pytest.mark.usefixtures("three_jobs")
def test_jobs_cancel_and_delete(service: FakeService) -> None:
    service.jobs["job_3"].update(end=1e12)
    result = slm("jobs", "delete", "job_1", "job_3")
    assert result.exit_code == 1
    assert result.stderr == "job_1: deleted\n409 job_not_ended: cancel it first\n"
    result = slm("jobs", "cancel", "job_3", "job_2")
    assert (result.exit_code, result.stderr) == (0, "job_3: cancelled\njob_2: failed\n")
    assert slm("jobs", "delete", "job_3").exit_code == 0
    assert list(service.jobs) == ["job_2"]


def test_queue() -> None:
    header, row = cells(slm("queue"))
    assert header == ["model", "waiting", "running", "workers", "slots", "tokens/s", "wait"]
    assert row == ["tiny", "1,200", "8", "1", "8", "2,000", "34.5 s"]
    assert json.loads(slm("queue", "--json").stdout)[0]["estimated_wait_seconds"] == 34.5


def test_models_list() -> None:
    assert cells(slm("models", "list")) == [
        ["model", "context", "workers", "templates"],
        ["tiny (default)", "512", "1", "animal(animal)"],
    ]
    assert json.loads(slm("models", "list", "--json").stdout)[0]["name"] == "tiny"


def test_keys_create(service: FakeService) -> None:
    result = slm("keys", "create", "mine")
    assert re.fullmatch(r"slm_0000000000_n{43}\n", result.stdout)
    assert "This is the key of 'mine', shown only now." in result.stderr
    assert service.seen[-1].body == {
        "name": "mine",
        "admin": False,
        "max_priority": 0,
        "callback_hosts": [],
    }
    made = json.loads(slm("keys", "create", "ops", "--admin", "--json").stdout)
    assert (made["admin"], made["token"][:15]) == (True, "slm_0000000001_")


def test_what_a_key_may_do_is_sent(service: FakeService) -> None:
    limits = ["--requests-per-minute", "5", "--queued-tokens", "7", "--max-priority", "9"]
    limits += ["--batch-rows", "11", "--batch-tokens", "13"]
    hosts = ["--callback-host", "a.example", "--callback-host", "b.example"]
    assert slm("keys", "create", "x", *limits, *hosts, "--unlimited").exit_code == 0
    assert service.seen[-1].body == {
        "name": "x",
        "admin": False,
        "max_priority": 9,
        "callback_hosts": ["a.example", "b.example"],
        "requests_per_minute": 5,
        "tokens_per_minute": None,
        "jobs_in_flight": None,
        "queued_tokens": 7,
        "batch_rows": 11,
        "batch_tokens": 13,
    }


def test_keys_list_rotate_revoke(service: FakeService) -> None:
    slm("keys", "create", "mine", "--callback-host", "a.example")
    slm("keys", "create", "free", "--unlimited", "--admin")
    first, second = list(service.keys)
    rotated = slm("keys", "rotate", first)
    assert re.fullmatch(rf"slm_{first}_r{{43}}\n", rotated.stdout)
    assert slm("keys", "revoke", second).stderr == f"{second} is revoked.\n"
    header, mine, free = cells(slm("keys", "list"))
    assert header[:4] == ["id", "name", "kind", "created"]
    assert mine == [
        *(first, "mine", "user", "2026-11-21"),
        *("600", "1,000,000", "1,000", "5,000,000", "1,000,000", "1,000,000,000"),
        *("0", "a.example"),
    ]
    assert free == [second, "free", "revoked", "2026-11-21", *["none"] * 6, "0"]
    listed = json.loads(slm("keys", "list", "--json").stdout)
    assert [key["id"] for key in listed] == [first, second]
    assert slm("keys", "revoke", "nobody").exit_code == 1


def test_keys_are_for_admins(service: FakeService) -> None:
    service.tokens = {KEY: "user"}
    result = slm("keys", "list")
    assert result.exit_code == 1
    assert result.stderr.startswith("403 forbidden: this key is no admin's. Another API key may;")
