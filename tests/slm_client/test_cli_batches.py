"""`slm batches`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.slm_client.fake_service import FakeService
from tests.slm_client.processes import slm
from tests.slm_client.test_cli_service import cells

pytestmark = pytest.mark.usefixtures("url")


@pytest.fixture(autouse=True)
def _made(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """batch_1 with a row of each kind, batch_2 all good."""
    monkeypatch.chdir(tmp_path)
    slm("bulk", "-", "--on-invalid", "skip", "--name", "mixed", stdin="Once\nREJECT\nFAIL\n")
    slm("bulk", "-", stdin="Once\nTwice\n")


def test_list() -> None:
    header, second, first = cells(slm("batches", "list"))
    assert header == ["id", "status", "model", "created", "rows", "done", "failed", "name"]
    assert first[:3] == ["batch_1", "completed", "tiny"]
    assert first[4:] == ["3", "3", "2", "mixed"]
    assert second[4:] == ["2", "2", "0"]
    assert len(cells(slm("batches", "list", "--limit", "1"))) == 2
    listed = json.loads(slm("batches", "list", "--json").stdout)
    assert [batch["id"] for batch in listed] == ["batch_2", "batch_1"]


def test_show(service: FakeService) -> None:
    text = slm("batches", "show", "batch_1").stdout
    for line in (
        "name       mixed",
        "status     completed",
        "rows       3",
        "  succeeded 1",
        "  failed   2",
        "tokens     3 of prompts, 4 generated",
        "result     1 rows succeeded, 2 failed; 4 tokens",
        "params     max_tokens 200, top_k null",
    ):
        assert f"{line}\n" in text
    assert "pending" not in text
    service.seconds = 60
    slm("bulk", "-", "--detach", stdin="Once\n" * 20)
    text = slm("batches", "show", "batch_3").stdout
    for line in ("  pending  12", "rate       12.5 rows/s, 2,000 tokens/s", "left       1:01"):
        assert f"{line}\n" in text
    assert "window     closes " in text
    assert json.loads(slm("batches", "show", "batch_3", "--json").stdout)["id"] == "batch_3"
    result = slm("batches", "show", "batch_9")
    assert result.stderr == "404 batch_not_found: there is no such batch\n"
    assert result.exit_code == 1


def test_results(service: FakeService) -> None:
    result = slm("batches", "results", "batch_2")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 2)
    result = slm("batches", "results", "batch_1", "-o", "out.csv")
    assert (result.exit_code, len(Path("out.csv").read_text().splitlines())) == (1, 4)
    assert "slm batches retry batch_1" in result.stderr
    result = slm("batches", "results", "batch_2", "-o", "out.csv")
    assert result.stderr == "out.csv is not empty; add --overwrite to replace it.\n"
    assert slm("batches", "results", "batch_2", "-o", "out.csv", "--overwrite").exit_code == 0
    service.seconds = 1.0
    slm("bulk", "-", "--detach", stdin="Once\n" * 20)
    result = slm("batches", "results", "batch_3")
    assert result.exit_code == 0
    assert "It goes on: " in result.stderr
    result = slm("batches", "results", "batch_3", "-o", "all/", "--follow")
    assert (result.exit_code, len(list(Path("all").iterdir()))) == (0, 20)


def test_results_end_what_bulk_began() -> None:
    Path("prompts.txt").write_text("Thrice\n")
    slm("bulk", "prompts.txt", "-o", "out.jsonl", "--detach")
    slm("batches", "results", "batch_2", "-o", "out.jsonl")
    assert Path("out.jsonl.batch").exists()  # it is about another
    slm("batches", "results", "batch_3", "-o", "out.jsonl", "--overwrite")
    assert not Path("out.jsonl.batch").exists()


def test_errors() -> None:
    assert cells(slm("batches", "errors", "batch_1")) == [
        ["custom_id", "line", "code", "message"],
        ["2", "2", "prompt_too_long", "the prompt is too long"],
        ["3", "engine_error", "the engine broke"],
    ]
    lines = slm("batches", "errors", "batch_1", "--json").stdout.splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["2", "3"]


def test_many_errors_are_cut() -> None:
    slm("bulk", "-", "--on-invalid", "skip", stdin="REJECT\n" * 1001)
    result = slm("batches", "errors", "batch_3")
    assert len(result.stdout.splitlines()) == 1001
    assert result.stderr == "Only the first 1,000 are shown; --json prints all.\n"


def test_cancel_retry_delete(service: FakeService) -> None:
    result = slm("batches", "retry", "batch_1")
    assert (result.exit_code, result.stdout) == (0, "batch_3\n")
    assert result.stderr == "1 rows: slm batches results batch_3 -o FILE --follow\n"
    assert "retry of   batch_1\n" in slm("batches", "show", "batch_3").stdout
    result = slm("batches", "retry", "batch_1")
    assert result.stdout == "batch_3\n"
    said = "The same was asked for before: batch_3 (completed). --new makes another.\n"
    assert result.stderr.startswith(said)
    assert "409 nothing_to_retry" in slm("batches", "retry", "batch_2").stderr
    service.seconds = 60
    slm("bulk", "-", "--detach", stdin="Thrice\n")
    result = slm("batches", "delete", "batch_1", "batch_4")
    assert result.exit_code == 1
    assert result.stderr == "batch_1: deleted\n409 batch_not_ended: cancel it first\n"
    result = slm("batches", "cancel", "batch_4", "batch_2")
    assert result.stderr == (
        "batch_4: cancelled; 0 rows are kept\nbatch_2: completed; 2 rows are kept\n"
    )
    assert sorted(service.batches.made) == ["batch_2", "batch_3", "batch_4"]


def test_report() -> None:
    result = slm("batches", "report", "batch_1", "-o", "r.html")
    assert (result.exit_code, result.stderr) == (0, "The report is in r.html.\n")
    assert re.search("<h1>mixed</h1>.*engine_error", Path("r.html").read_text())
    assert slm("batches", "report", "batch_1", "-o", "no/r.html").exit_code == 1
