"""`client.dead_letters`, deadlines, and `slm dlq`."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from slm_client import ApiError, Client
from tests.slm_client.fake_batches import problem
from tests.slm_client.fake_service import KEY, FakeService
from tests.slm_client.processes import slm
from tests.slm_client.test_cli_service import cells

FAILED = datetime.fromisoformat("2026-11-21T12:00:46Z").astimezone().strftime("%Y-%m-%d %H:%M:%S")


@pytest.fixture
def five(service: FakeService) -> FakeService:
    for number in range(1, 6):
        service.dead_letters.put(f"job_{number}")
    return service


# The client


def test_deadlines_are_sent(client: Client, service: FakeService) -> None:
    client.submit("Once", queue_timeout=0.5, run_timeout=None)
    body = {"prompt": "Once", "queue_timeout": 0.5, "run_timeout": None}
    assert service.requests[0][2] == body


@pytest.mark.usefixtures("five")
def test_list_and_count(client: Client) -> None:
    found = [job.id for job in client.dead_letters.list()]
    assert found == [f"job_{number}" for number in (5, 4, 3, 2, 1)]
    assert [job.id for job in client.dead_letters.list(limit=3)] == found[:3]
    assert client.dead_letters.count() == 5


def test_get(client: Client, service: FakeService) -> None:
    service.dead_letters.put("job_1", retry_of="job_0")
    letter = client.dead_letters.get("job_1")
    assert (letter.job.id, letter.job.retry_of, letter.key) == ("job_1", "job_0", "x7k2m9q4ab")
    assert letter.job.failure.code == "attempts_exhausted"
    assert (letter.request["prompts"], letter.request["seed"]) == (["Once", [1, 2]], 7)
    assert letter.raw["request"] == letter.request
    with pytest.raises(ApiError, match="404 dead_letter_not_found"):
        client.dead_letters.get("job_1/redrive")
    assert service.seen[-1].path == "/admin/dead-letters/job_1%2Fredrive"


def test_redrive(client: Client, service: FakeService) -> None:
    service.dead_letters.put("job_1")
    service.next_answers.append("lose")
    job = client.dead_letters.redrive("job_1")
    assert (job.id, job.status, job.retry_of) == ("job_1x", "queued", "job_1")
    assert service.count("POST") == 2
    with pytest.raises(ApiError, match="404 dead_letter_not_found"):
        client.dead_letters.redrive("job_2")


def test_redrive_these(client: Client, five: FakeService) -> None:
    given = ["job_2", *(f"gone_{number}" for number in range(100))]
    first, second = client.dead_letters.redrive_these(given)
    assert [len(request.body["ids"]) for request in five.seen] == [100, 1]
    assert [job.retry_of for job in first.jobs] == ["job_2"]
    assert first.not_found + second.not_found == tuple(given[1:])
    assert (second.jobs, second.left) == ((), 4)
    assert list(client.dead_letters.redrive_these([])) == []


def test_redrive_all(client: Client, five: FakeService) -> None:
    parts = list(client.dead_letters.redrive_all())
    assert [[job.retry_of for job in part.jobs] for part in parts] == [
        ["job_1", "job_2"],
        ["job_3", "job_4"],
        ["job_5"],
    ]
    assert [part.left for part in parts] == [3, 1, 0]
    assert list(client.dead_letters.redrive_all()) == []


def test_what_fails_again_is_redriven_once(client: Client, five: FakeService) -> None:
    five.dead_letters.fails_again = True
    redriven = [job.retry_of for part in client.dead_letters.redrive_all() for job in part.jobs]
    assert redriven == [f"job_{number}" for number in range(1, 6)]
    assert len(five.dead_letters.letters) == 5


def test_drop(client: Client, five: FakeService) -> None:
    five.next_answers.append("lose")
    client.dead_letters.drop("job_2")
    assert "job_2" not in five.dead_letters.letters
    with pytest.raises(ApiError, match="404 dead_letter_not_found"):
        client.dead_letters.drop("job_2")


# The command


@pytest.mark.usefixtures("url", "five")
def test_dlq_list(service: FakeService) -> None:
    header, *rows = cells(slm("dlq", "list"))
    assert header == ["id", "failed", "model", "attempts", "error", "message"]
    assert len(rows) == 5
    assert rows[0] == ["job_5", FAILED, "tiny", "3", "attempts_exhausted", "it went [red]"]
    result = slm("dlq", "list", "--limit", "2")
    assert len(cells(result)) == 3
    assert result.stderr == "5 in all; --limit shows more\n"
    listed = json.loads(slm("dlq", "list", "--json").stdout)
    assert [job["id"] for job in listed][:2] == ["job_5", "job_4"]
    service.dead_letters.letters.clear()
    result = slm("dlq", "list")
    assert (result.stdout, result.stderr) == ("", "There are no dead letters.\n")
    assert slm("dlq", "list", "--json").stdout == "[]\n"


@pytest.mark.usefixtures("url")
def test_dlq_show(service: FakeService) -> None:
    service.dead_letters.put("job_1", retry_of="job_0")
    result = slm("dlq", "show", "job_1")
    assert result.stdout == "Once\n[1, 2]\n and [so]\n"
    for line in (
        "error            attempts_exhausted: it went [red]",
        f"failed           {FAILED}",
        "attempts         3",
        "key              x7k2m9q4ab",
        "retry of         job_0",
        "seed             7",
        "Prompt 1:",
        "Output 0, as far as it came:",
        "slm dlq redrive job_1 runs it again.",
    ):
        assert f"{line}\n" in result.stderr
    assert "run_timeout" not in result.stderr
    assert json.loads(slm("dlq", "show", "job_1", "--json").stdout)["key"] == "x7k2m9q4ab"
    result = slm("dlq", "show", "job_9")
    assert result.exit_code == 1
    assert result.stderr == (
        "404 dead_letter_not_found: No such dead letter. "
        "`slm dlq list` shows those that there are.\n"
    )


@pytest.mark.usefixtures("url", "five")
def test_dlq_redrive(service: FakeService) -> None:
    result = slm("dlq", "redrive", "job_2", "job_3")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == ("job_2: runs again as job_2x\njob_3: runs again as job_3x\n")
    service.dead_letters.redriven["job_2"]["status"] = "succeeded"
    result = slm("dlq", "redrive", "job_2", "job_9")
    assert result.exit_code == 1
    assert result.stderr == (
        "job_2: had run again (succeeded) as job_2x\n"
        "job_9: no dead letter; it may have been dropped, or has expired\n"
    )


@pytest.mark.usefixtures("url")
def test_dlq_redrive_all(five: FakeService) -> None:
    result = slm("dlq", "redrive", "--all", stdin="n\n")
    assert result.exit_code == 1
    assert "Redrive all 5 dead letters?" in result.stderr
    assert slm("dlq", "redrive", "--all", stdin="").exit_code == 1
    assert len(five.dead_letters.letters) == 5
    result = slm("dlq", "redrive", "--all", stdin="y\n")
    assert result.exit_code == 0
    assert result.stderr.endswith("Redriven: 5.\n")
    assert five.dead_letters.letters == {}
    result = slm("dlq", "redrive", "--all", "--yes")
    assert (result.exit_code, result.stderr) == (0, "There are no dead letters.\n")
    five.dead_letters.put("job_7")
    five.dead_letters.fails_again = True
    result = slm("dlq", "redrive", "--all", "--yes")
    assert result.stderr.startswith("Redriven: 1; failed since: 1.")


@pytest.mark.usefixtures("url")
def test_dlq_drop(five: FakeService) -> None:
    result = slm("dlq", "drop", "job_9", "job_2", "job_2")
    assert result.exit_code == 1
    assert result.stderr == (
        "job_9: no dead letter; it may have been dropped, or has expired\njob_2: dropped\n"
    )
    result = slm("dlq", "drop", "--all")
    assert result.exit_code == 2
    assert "--yes says so" in result.stderr
    assert len(five.dead_letters.letters) == 4
    result = slm("dlq", "drop", "--all", "--yes")
    assert (result.exit_code, result.stderr) == (0, "Dropped: 4.\n")
    assert five.dead_letters.letters == {}


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize("command", ["redrive", "drop"])
def test_either_ids_or_all(service: FakeService, command: str) -> None:
    for wrong in ([], ["job_1", "--all", "--yes"]):
        result = slm("dlq", command, *wrong)
        assert result.exit_code == 2
        assert "give either IDs or --all" in result.stderr
    assert service.seen == []


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize(
    "arguments", [["list"], ["show", "job_1"], ["redrive", "--all"], ["drop", "job_1"]]
)
def test_dead_letters_are_for_admins(service: FakeService, arguments: list[str]) -> None:
    service.tokens = {KEY: "user"}
    result = slm("dlq", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("dead letters are of all keys, and for admin keys only: set")
    assert "slm keys create NAME --admin" in result.stderr


@pytest.mark.usefixtures("url")
def test_other_problems_are_told_as_they_are(service: FakeService) -> None:
    service.next_answers.append(problem(422, "invalid_request", "Not so."))
    assert slm("dlq", "list").stderr == "422 invalid_request: Not so.\n"


@pytest.mark.parametrize(
    "code",
    ["attempts_exhausted", "deadline_exceeded", "engine_fault", "internal_error", "job_timeout"],
)
def test_help_explains_why_jobs_fail(code: str) -> None:
    assert f"\n    {code} " in slm("dlq", "--help").stdout
