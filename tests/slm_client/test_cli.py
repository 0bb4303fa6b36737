from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from slm_client.cli import app
from slm_client.redis_server import free_port
from tests.slm_client.fake_service import FakeService
from tests.slm_client.processes import REPOSITORY, SLM, eventually


def slm(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


@pytest.fixture
def url(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fake service, found through SLM_URL."""
    with service.served() as url:
        monkeypatch.setenv("SLM_URL", url)
        yield url


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "prompts.txt"
    path.write_text("Once\n\nTwice\n")
    return path


def results(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("command", ["generate", "bulk", "up", "demo"])
def test_help_has_examples_and_defaults(command: str) -> None:
    assert command in slm("--help").stdout
    help_text = slm(command, "--help").stdout
    assert f"  slm {command}" in help_text
    assert "[default: " in help_text
    # What the docstring says twice, or what typer would print of Python, is no help.
    assert "None" not in help_text


def test_version() -> None:
    assert re.fullmatch(r"slm \d+\.\d+\.\d+\n", slm("--version").stdout)


def test_wrong_usage_is_2() -> None:
    assert slm("generate").exit_code == 2
    assert slm("generate", "x", "--temperature", "9").exit_code == 2
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


def test_no_service(prompts: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    (prompts.parent / "out.jsonl").write_text("kept")
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl", "--overwrite", "--url", url)
    assert result.exit_code == 1
    assert result.stderr == f"nothing answers at {url}; is `slm up` running?\n"
    assert (prompts.parent / "out.jsonl").read_text() == "kept"


def test_bulk(url: str, prompts: Path, service: FakeService) -> None:
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl", "--seed", "5", "--max-tokens", "9")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "2 rows succeeded, 0 failed; 8 tokens in " in result.stderr
    lines = results(prompts.parent / "out.jsonl")
    assert [(line["custom_id"], line["prompt"]) for line in lines] == [
        ("1", "Once"),
        ("3", "Twice"),
    ]
    assert [job["body"]["seed"] for job in service.jobs.values()] == [5, 6]


def test_bulk_from_stdin_to_stdout(url: str) -> None:
    result = slm("bulk", "-", stdin='{"prompt": "Ünce", "custom_id": "a"}\n')
    assert result.exit_code == 0
    assert json.loads(result.stdout)["prompt"] == "Ünce"


def test_bulk_with_a_failed_row(url: str, prompts: Path) -> None:
    prompts.write_text("Once\nREJECT\n")
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl")
    assert result.exit_code == 1
    assert "1 rows succeeded, 1 failed" in result.stderr
    assert len(results(prompts.parent / "out.jsonl")) == 2


def test_bulk_refuses_to_lose_a_file(url: str, prompts: Path) -> None:
    out = prompts.parent / "out.jsonl"
    out.write_text("old")
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl")
    assert (result.exit_code, out.read_text()) == (1, "old")
    assert result.stderr == "out.jsonl is not empty; add --overwrite to replace it.\n"
    result = slm("bulk", "prompts.txt", "-o", "./prompts.txt", "--overwrite")
    assert (result.exit_code, prompts.read_text()) == (1, "Once\n\nTwice\n")
    assert slm("bulk", "prompts.txt", "-o", "out.jsonl", "--overwrite").exit_code == 0
    assert len(results(out)) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rows.jsonl"], "rows.jsonl, line 2: not JSON\n"),
        (["none.txt"], "cannot read none.txt: No such file or directory\n"),
        (["prompts.txt", "-o", "no/out"], "cannot write no/out: No such file or directory\n"),
        (["prompts.txt", "--model", "big"], "there is no model 'big'; there are: tiny.\n"),
    ],
)
def test_bulk_checks_everything_first(
    url: str, service: FakeService, prompts: Path, arguments: list[str], sentence: str
) -> None:
    (prompts.parent / "rows.jsonl").write_text('{"prompt": "fine"}\n{')
    result = slm("bulk", *arguments)
    assert (result.exit_code, result.stderr) == (1, sentence)
    assert service.jobs == {}


def test_bulk_ctrl_c_keeps_what_is_there(url: str, service: FakeService, prompts: Path) -> None:
    service.seconds = 0.3
    prompts.write_text("Once\n" * 100)
    out = prompts.parent / "out.jsonl"
    process = subprocess.Popen(
        [*SLM, "bulk", "prompts.txt", "-o", "out.jsonl"], stderr=subprocess.PIPE, text=True
    )
    with process:
        eventually(lambda: out.exists() and len(out.read_text().splitlines()) >= 3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    kept = results(out)
    assert 3 <= len(kept) < 100
    assert f"Stopped: {len(kept)} of 100 rows are kept in out.jsonl." in stderr
    assert "Traceback" not in stderr


def test_bulk_into_a_reader_that_has_seen_enough(url: str, prompts: Path) -> None:
    prompts.write_text("Once\n" * 500)
    process = subprocess.Popen(
        [*SLM, "bulk", "prompts.txt"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in stderr
    assert "Exception" not in stderr


@pytest.mark.usefixtures("standins")
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = slm("demo")
    assert result.exit_code == 1
    assert result.stderr.startswith("examples/prompts.txt is not here;")
    examples = REPOSITORY / "examples" / "prompts.txt"
    for _ in range(2):  # it replaces its own file
        result = slm("demo", "--prompts", str(examples))
        assert result.exit_code == 0
    assert len(results(tmp_path / "stories.jsonl")) == 72
    for words in ("starting redis", "starting api", "starting worker-1", "and so on.", "72 rows"):
        assert words in result.stderr
    assert result.stderr.endswith("The stories are in stories.jsonl.\n")
    assert (tmp_path / ".slm" / "demo" / "logs" / "api.log").exists()
