"""`slm callbacks`, `slm keys secret`, and asking for callbacks on the command line."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from tests.slm_client.fake_service import FakeService, problem
from tests.slm_client.processes import slm
from tests.slm_client.test_cli_service import cells

pytestmark = pytest.mark.usefixtures("url")

HOOK = "https://example.org/hook"


def local(moment: str) -> datetime:
    return datetime.fromisoformat(moment).astimezone()


def shown(moment: str) -> str:
    return local(moment).strftime("%Y-%m-%d %H:%M:%S")


@pytest.fixture
def failures(service: FakeService) -> FakeService:
    """A job told in vain twice, and once more to come; a batch given up; another one delivered."""
    refused = {"status": 500, "error": "http_500", "response": "<b>no</b>\n way [red]"}
    service.callbacks.put("job_1", "running", "delivered", {"status": 204})
    service.callbacks.put("job_1", "succeeded", "pending", {"error": "timeout"}, refused)
    gone = {"status": 410, "error": "http_410"}
    service.callbacks.put("batch_1", "completed", "failed", {"error": "timeout"}, gone)
    service.callbacks.put("job_2", "expired", "failed")
    return service


@pytest.mark.usefixtures("failures")
def test_list_those_given_up() -> None:
    header, job, batch = cells(slm("callbacks", "list"))
    assert header == ["id", "created", "attempts", "last answer", "url"]
    created = shown("2026-11-21T12:00:00Z")
    assert batch == ["batch_1-completed", created, "2", "http_410", HOOK]
    assert job == ["job_2-expired", created, "0", HOOK]
    assert len(cells(slm("callbacks", "list", "--limit", "1"))) == 2
    assert len(cells(slm("callbacks", "list", "--limit", "1", "--all"))) == 3
    listed = json.loads(slm("callbacks", "list", "--json").stdout)
    assert [delivery["of"] for delivery in listed] == ["job_2", "batch_1"]


@pytest.mark.usefixtures("failures")
def test_list_those_of_a_job() -> None:
    header, *rows = cells(slm("callbacks", "list", "job_1"))
    assert header == ["id", "status", "attempt", "took", "answer", "said"]
    first, second = (shown(f"2026-11-21T12:00:0{second}Z") for second in (1, 2))
    pending = f"pending, next {shown('2026-11-21T12:05:00Z')}"
    assert rows == [
        ["job_1-running", "delivered", first, "1,200 ms", "204"],
        ["job_1-succeeded", pending, first, "1,200 ms", "timeout"],
        [second, "1,200 ms", "http_500", "<b>no</b> way [red]"],
    ]
    assert cells(slm("callbacks", "list", "job_2"))[1:] == [["job_2-expired", "failed"]]
    assert json.loads(slm("callbacks", "list", "batch_1", "--json").stdout)[0]["of"] == "batch_1"


def test_nothing_to_list() -> None:
    result = slm("callbacks", "list")
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        "",
        "No callback was given up.\n",
    )
    result = slm("callbacks", "list", "job_7")
    assert (result.exit_code, result.stderr) == (0, "No callback is known of job_7.\n")
    assert slm("callbacks", "list", "--json").stdout == "[]\n"
    result = slm("callbacks", "list", "nobody")
    assert (result.exit_code, result.stderr) == (1, "404 job_not_found: there is no such job\n")


def test_replay(failures: FakeService) -> None:
    result = slm("callbacks", "replay", "job_1", "batch_1")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == (
        "job_1: 1 callback is sent again; slm callbacks list job_1 tells how it goes\n"
        "batch_1: 1 callback is sent again; slm callbacks list batch_1 tells how it goes\n"
    )
    result = slm("callbacks", "replay", "job_1")
    assert result.exit_code == 1
    assert result.stderr == "job_1: 409 nothing_to_replay: it has no callback to send again\n"


def test_replay_goes_on(failures: FakeService) -> None:
    result = slm("callbacks", "replay", "job_7", "batch_1", "nobody", "job_2")
    assert result.exit_code == 1
    assert result.stderr == (
        "batch_1: 1 callback is sent again; slm callbacks list batch_1 tells how it goes\n"
        "job_2: 1 callback is sent again; slm callbacks list job_2 tells how it goes\n"
        "job_7: 409 nothing_to_replay: it has no callback to send again\n"
        "nobody: 404 job_not_found: there is no such job\n"
    )
    failures.next_answers.append(problem(403, "forbidden", "no"))
    result = slm("callbacks", "replay", "job_1", "job_2")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)


def test_what_a_receiver_said_does_not_steer_the_terminal(service: FakeService) -> None:
    said = "\x1b]0;title\x07\x1b[2J\x9b31m\u202eevil ü 🦊"
    service.callbacks.put("job_1", "failed", "failed", {"status": 500, "response": said})
    _, [*_, shown] = cells(slm("callbacks", "list", "job_1"))
    assert shown == "\ufffd]0;title\ufffd\ufffd[2J\ufffd31m\ufffdevil ü 🦊"
    printed = slm("callbacks", "list", "job_1", "--json").stdout
    assert printed.replace("\n", "").isprintable()
    assert "evil ü 🦊" in printed
    assert json.loads(printed)[0]["attempts"][0]["response"] == said


def test_secret_show_and_rotate(service: FakeService) -> None:
    first, second = (f"whsec_{digit * 32}" for digit in "12")
    result = slm("keys", "secret", "show")
    assert (result.stdout, result.stderr) == (f"{first}\n", "")
    result = slm("keys", "secret", "rotate", "--overlap", "7d")
    assert service.seen[-1].body == {"overlap_seconds": 604_800}
    assert result.stdout == f"{second}\n"
    until = local("2026-11-21T12:00:00Z").isoformat(" ", "seconds")
    assert result.stderr == f"Until {until} callbacks are signed with {first} too.\n"
    shown = json.loads(slm("keys", "secret", "show", "--json").stdout)
    assert [secret["secret"] for secret in shown] == [second, first]
    slm("keys", "secret", "rotate")
    assert service.seen[-1].body == {"overlap_seconds": 86_400}
    (only,) = json.loads(slm("keys", "secret", "rotate", "--overlap", "0s", "--json").stdout)
    assert only["expires_at"] is None


@pytest.mark.parametrize("overlap", ["24", "1w", "-1h", "1.5h", "", "8d"])
def test_no_overlap(service: FakeService, overlap: str) -> None:
    result = slm("keys", "secret", "rotate", "--overlap", overlap)
    assert result.exit_code == 2
    assert "give 0s to 7d, such as 90m or 36h" in " ".join(result.stderr.split())
    assert service.seen == []


def test_generate(service: FakeService) -> None:
    asked = ["--callback-event", "failed", "--callback-event", "running", "--callback-outputs"]
    assert slm("generate", "Once", "--callback-url", HOOK, *asked).exit_code == 0
    body = service.jobs["job_1"]["body"]
    assert body["callback_url"] == HOOK
    assert (body["callback_events"], body["callback_outputs"]) == (["failed", "running"], True)
    slm("generate", "Once", "--callback-url", HOOK)
    body = service.jobs["job_2"]["body"]
    assert [name for name in body if name.startswith("callback")] == ["callback_url"]
    for wrong in (["--callback-outputs"], ["--callback-event", "failed"]):
        result = slm("generate", "Once", *wrong)
        assert result.exit_code == 2
        assert "need a --callback-url" in result.stderr
    result = slm("generate", "Once", "--callback-url", HOOK, "--callback-event", "progress")
    assert result.exit_code == 2
    refusal = "Callbacks go to https addresses; have an admin list this one for your key."
    service.next_answers.append(problem(422, "callback_url_refused", refusal))
    result = slm("generate", "Once", "--callback-url", "http://10.0.0.1")
    assert (result.exit_code, result.stderr) == (1, f"422 callback_url_refused: {refusal}\n")


def test_bulk(service: FakeService, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once\n")
    told = ["--callback-url", HOOK]
    assert slm("bulk", str(prompts), *told, "--callback-event", "progress").exit_code == 0
    query = next(request.query for request in service.seen if request.method == "POST")
    assert (query["callback_url"], query["callback_events"]) == (HOOK, "progress")
    slm("bulk", str(prompts), *told)
    slm("bulk", str(prompts))
    assert len(service.batches.made) == 3  # who is told is a part of what is asked for
    assert slm("bulk", str(prompts), *told).exit_code == 0
    assert len(service.batches.made) == 3
    result = slm("bulk", str(prompts), "--callback-event", "completed")
    assert result.exit_code == 2
    assert "--callback-event needs a --callback-url" in result.stderr
    assert slm("bulk", str(prompts), *told, "--callback-event", "succeeded").exit_code == 2
