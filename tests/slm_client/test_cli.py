from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from slm_client.commands.generate import render
from slm_jobs.manifest import Template
from tests.slm_client.fake_http import Events
from tests.slm_client.fake_service import AUTHORISED, KEY, FakeService, event
from tests.slm_client.processes import REPOSITORY, SLM, eventually, slm

COMMANDS = [
    *("generate", "bulk", "up", "demo", "status", "queue", "doctor", "completion"),
    *("batches list", "batches show", "batches results", "batches errors"),
    *("batches cancel", "batches retry", "batches delete", "batches report"),
    *("jobs list", "jobs show", "jobs cancel", "jobs delete"),
    *("callbacks list", "callbacks replay"),
    *("dlq list", "dlq show", "dlq redrive", "dlq drop"),
    *("keys create", "keys list", "keys rotate", "keys revoke"),
    *("keys secret show", "keys secret rotate"),
    *("models list", "models add", "models check"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_defaults(command: str) -> None:
    first, *rest = command.split()
    assert first in slm("--help").stdout
    if rest:
        assert rest[-1] in slm(first, *rest[:-1], "--help").stdout
    help_text = slm(*command.split(), "--help").stdout
    assert f"\n    slm {command}" in help_text
    assert "[default: " in help_text
    assert ".slm/api_key" not in help_text  # nor the environment's values
    # What the docstring says twice, or what typer would print of Python, is no help.
    assert "None" not in help_text


def test_version() -> None:
    assert re.fullmatch(r"slm \d+\.\d+\.\d+\n", slm("--version").stdout)


def test_wrong_usage_is_2() -> None:
    assert slm("generate").exit_code == 2
    assert slm("generate", "x", "--template", "y").exit_code == 2
    assert slm("generate", "x", "--var", "a=b").exit_code == 2
    assert slm("generate", "--template", "y", "--var", "a").exit_code == 2
    assert slm("generate", "--template", "y", "--var", "a=b", "--var", "a=c").exit_code == 2
    assert slm("generate", "x", "--temperature", "9").exit_code == 2
    assert slm("jobs", "show").exit_code == 2
    assert slm("nonsense").exit_code == 2


def test_generate(url: str, service: FakeService) -> None:
    result = slm("generate", "Once", "--max-tokens", "7", "--top-k", "0", "--seed", "3")
    assert (result.exit_code, result.stdout) == (0, "Once and so on.\n")
    assert service.jobs["job_1"]["body"] == {
        "prompt": "Once",
        "model": None,
        "max_tokens": 7,
        "temperature": 0.8,
        "top_k": None,
        "top_p": 1.0,
        "seed": 3,
    }


def test_generate_by_a_deadline(url: str, service: FakeService) -> None:
    slm("generate", "Once", "--queue-timeout", "30s", "--run-timeout", "5m")
    body = service.jobs["job_1"]["body"]
    assert (body["queue_timeout"], body["run_timeout"]) == (30, 300)
    slm("generate", "Once", "--run-timeout", "7d")
    body = service.jobs["job_2"]["body"]
    assert (body["run_timeout"], "queue_timeout" in body) == (604_800, False)


@pytest.mark.parametrize("option", ["--queue-timeout", "--run-timeout"])
@pytest.mark.parametrize("time", ["30", "0s", "8d", "-1s", "1.5h", "", "5 m"])
def test_no_deadline(url: str, service: FakeService, option: str, time: str) -> None:
    result = slm("generate", "Once", option, time)
    assert result.exit_code == 2
    assert f"{option} {time}: give 1s to 7d" in " ".join(result.stderr.split())
    assert service.seen == []


def test_generate_says_where_the_rest_is(url: str, service: FakeService) -> None:
    failed = service.answer("POST", "/jobs", {"prompt": "FAIL"}, AUTHORISED)
    job = service.answer("GET", "/jobs/job_1", None, AUTHORISED)[2]
    partial = {**job, "outputs": [{"index": 0, "text": " and", "finish_reason": "cancelled"}]}
    for how in ("--no-stream", "--json"):
        service.next_answers.extend([failed, (200, {}, partial)])
        result = slm("generate", "FAIL", how)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            "slm jobs show job_1 prints the text that it had.\njob_1 failed: the engine broke\n"
        )


def test_generate_from_a_template(url: str, service: FakeService) -> None:
    variables = ["--var", "animal=fox", "--var", "name=a=b"]
    result = slm("generate", "--template", "animal", *variables, "--priority", "3")
    assert (result.exit_code, result.stdout) == (0, "A fox and so on.\n")
    body = service.jobs["job_1"]["body"]
    assert (body["template"], body["priority"]) == ("animal", 3)
    assert body["variables"] == {"animal": "fox", "name": "a=b"}
    assert "prompt" not in body
    result = slm("generate", "--template", "animal", "--var", "animal={x}", "--stream")
    assert (result.exit_code, result.stdout) == (0, "A {x} and so on.\n")
    result = slm("generate", "--template", "animal", *variables, "--json")
    assert json.loads(result.stdout)["outputs"][0]["text"] == " and so on."
    assert service.seen[-1].path == "/jobs/job_3"  # and it did not ask for the template


@pytest.mark.parametrize(
    "arguments", [["--template", "gone"], ["--template", "animal", "--model", "x"]]
)
def test_a_template_that_is_not_there_any_more(url: str, arguments: list[str]) -> None:
    result = slm("generate", *arguments)
    assert (result.exit_code, result.stdout) == (0, " and so on.\n")


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{a} and {b_2}, {a}", "fox and {a}}}, fox"),
        ("{{a}} is {a}, {b_2}", "{a} is fox, {a}}}"),
        ("{{{a}}}{b_2}", "{fox}{a}}}"),
    ],
)
def test_a_template_is_rendered_as_the_service_does(text: str, rendered: str) -> None:
    variables = {"a": "fox", "b_2": "{a}}}"}
    assert render(text, variables) == rendered
    assert Template(text=text, variables=dict.fromkeys(variables, "")).render(variables) == rendered
    assert render("{missing} {A} {a}", variables) == "{missing} {A} fox"


def test_generate_streams(url: str, service: FakeService) -> None:
    result = slm("generate", "Once", "--stream")
    assert (result.exit_code, result.stdout) == (0, "Once and so on.\n")
    assert service.jobs["job_1"]["body"]["stream"] is True
    result = slm("generate", "FAIL", "--stream")
    assert (result.exit_code, result.stdout) == (1, "FAIL\n")
    assert result.stderr == "job_2 failed: the engine broke\n"


def test_a_stream_that_begins_anew(url: str, service: FakeService) -> None:
    submitted = service.answer("POST", "/jobs", {"prompt": "Once"}, AUTHORISED)
    job = service.answer("GET", "/jobs/job_1", None, AUTHORISED)[2]
    wrong, right = (event("token", {"index": 0, "text": text}, "0:1") for text in (" or", " and"))
    told = Events([wrong, event("restart", {}), right, event("done", job)])
    service.next_answers.extend([submitted, (200, {}, told)])
    result = slm("generate", "Once", "--stream")
    assert "It runs again on another kind of worker" in result.stderr
    assert result.stdout == "Once or\nOnce and so on.\n"


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
def test_ctrl_c_cancels_the_job(url: str, service: FakeService, how: str) -> None:
    service.seconds = 60
    process = subprocess.Popen(
        [*SLM, "generate", "Once", how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        eventually(lambda: service.count("GET"))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Cancelled job_1.\n" in stderr
    assert "Traceback" not in stderr
    assert service.jobs["job_1"]["cancelled"]


def test_generate_json(url: str) -> None:
    job = json.loads(slm("generate", "Ünce", "--json").stdout)
    assert (job["status"], job["usage"]["total_tokens"]) == ("succeeded", 7)


def test_errors_are_one_sentence_on_stderr(url: str) -> None:
    for arguments, sentence in (
        (["REJECT"], "422 prompt_too_long: the prompt is too long"),
        (["FAIL"], "job_1 failed: the engine broke"),
        (["x", "--url", "nowhere"], "'nowhere' is no address: it needs http:// in front"),
    ):
        result = slm("generate", *arguments)
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", sentence + "\n")


def test_the_key_of_a_service_here_is_found(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLM_API_KEY")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".slm").mkdir()
    (tmp_path / ".slm" / "api_key").write_text(KEY + "\n")
    (tmp_path / "prompts.txt").write_text("Once\n")
    assert slm("generate", "Once").exit_code == 0
    assert slm("bulk", "prompts.txt").exit_code == 0
    assert slm("generate", "Once", "--api-key", "another").exit_code == 1
    result = slm("generate", "Once", "--data-dir", "elsewhere")
    assert result.exit_code == 1
    assert "No API key was sent: set SLM_API_KEY" in result.stderr
    (tmp_path / ".slm" / "api_key").write_bytes(b"\xff")
    result = slm("generate", "Once")
    assert result.stderr == "cannot read the API key in .slm/api_key: it is no text\n"


@pytest.mark.usefixtures("standins")
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = slm("demo")
    assert result.exit_code == 1
    assert result.stderr.startswith("examples/prompts.txt is not here;")
    monkeypatch.setenv("SLM_API_KEY", "of another service")
    examples = REPOSITORY / "examples" / "prompts.txt"
    for _ in range(2):  # it replaces its own file
        result = slm("demo", "--prompts", str(examples))
        assert result.exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "stories.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [str(number) for number in range(1, 73)]
    assert {"prompt", "text", "finish_reason", "usage"} <= lines[0].keys()
    assert not (tmp_path / "stories.jsonl.batch").exists()
    for words in ("starting redis", "starting api", "starting worker-1", "and so on.", "72 rows"):
        assert words in result.stderr
    assert result.stderr.endswith("The stories are in stories.jsonl.\n")
    assert (tmp_path / ".slm" / "demo" / "logs" / "api.log").exists()
