"""`slm bulk`: upload, results, and coming back."""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from slm_client import Client
from slm_client.redis_server import free_port
from tests.slm_client.fake_service import KEY, FakeService, problem
from tests.slm_client.processes import SLM, eventually, slm


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("Once\n\nTwice\n")


def results(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def uploads(service: FakeService) -> int:
    return sum(request.method == "POST" for request in service.seen)


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SLM, "bulk", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def interrupted(process: subprocess.Popen[str]) -> str:
    """What it says after Ctrl-C."""
    with process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    return stderr


def test_stories_from_a_file(url: str, service: FakeService) -> None:
    options = ["--seed", "5", "--max-tokens", "9", "--top-k", "0", "--window", "2h", "--name", "x"]
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl", *options)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "batch_1: 2 rows\n" in result.stderr
    assert result.stderr.endswith("2 rows succeeded, 0 failed; 8 tokens.\n")
    lines = results()
    assert [(line["custom_id"], line["prompt"]) for line in lines] == [
        ("1", "Once"),
        ("3", "Twice"),
    ]
    assert lines[0]["text"] == " and so on."
    request = next(request for request in service.seen if request.method == "POST")
    assert (request.body, request.headers["content-type"]) == (b"Once\n\nTwice\n", "text/plain")
    assert request.headers["idempotency-key"].startswith("slm-bulk-")
    assert request.query == {
        "max_tokens": "9",
        "temperature": "0.8",
        "top_k": "null",
        "top_p": "1.0",
        "seed": "5",
        "n": "1",
        "on_invalid": "refuse",
        "completion_window": "2h",
        "name": "x",
    }
    assert [path.name for path in Path().iterdir() if "out" in path.name] == ["out.jsonl"]


def test_other_files_and_outputs(url: str, service: FakeService) -> None:
    Path("rows.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "Once", "custom_id": "a/b"}\n'))
    assert slm("bulk", "rows.jsonl.gz", "-o", "stories/").exit_code == 0
    (story,) = Path("stories").iterdir()
    assert re.fullmatch(r"a_b-[0-9a-f]{12}\.txt", story.name)
    assert story.read_text() == "Once and so on.\n"
    Path("table.csv").write_text("prompt,custom_id\nOnce,a\n")
    assert slm("bulk", "table.csv", "-o", "out.csv", "--n", "2").exit_code == 0
    assert len(Path("out.csv").read_text().splitlines()) == 3
    Path("rows").write_text("Once\n")
    result = slm("bulk", "rows", "--format", "txt", "--template", "animal")
    assert json.loads(result.stdout)["prompt"] == "Once"
    assert any(request.query.get("template") == "animal" for request in service.seen)


@pytest.mark.parametrize(
    ("stdin", "arguments"),
    [
        (b'{"prompt": "\xc3\x9cnce", "custom_id": "a"}\n', []),
        ("Ünce\n".encode(), []),
        (gzip.compress("Ünce\n".encode(), mtime=0), []),
        ("prompt\nÜnce\n".encode(), ["--format", "csv"]),
    ],
)
def test_from_standard_input_to_standard_output(
    url: str, stdin: bytes, arguments: list[str]
) -> None:
    result = slm("bulk", "-", *arguments, stdin=stdin)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["prompt"] == "Ünce"


def test_rows_that_fail(url: str) -> None:
    Path("prompts.txt").write_text("Once\nREJECT\nFAIL\n")
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl", "--on-invalid", "skip")
    assert result.exit_code == 1
    assert "1 rows succeeded, 2 failed; 4 tokens" in result.stderr
    assert "Which and why:  slm batches errors batch_1\n" in result.stderr
    assert "Try them again: slm batches retry batch_1\n" in result.stderr
    assert sorted(line.get("error", {}).get("code", "") for line in results()) == [
        "",
        "engine_error",
        "prompt_too_long",
    ]
    assert not Path("out.jsonl.batch").exists()


def test_rows_that_cannot_run(url: str, service: FakeService) -> None:
    Path("prompts.txt").write_text("Once\n" + "REJECT\n" * 30)
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0] == "prompts.txt, line 2: the prompt is too long"
    assert lines[19] == "prompts.txt, line 21: the prompt is too long"
    assert lines[20] == "and 10 more"
    assert lines[21] == (
        "422 invalid_rows: 30 rows cannot run. Nothing was started; --on-invalid skip runs the "
        "other rows."
    )
    assert (service.batches.made, list(Path().glob("out*"))) == ({}, [])
    service.next_answers.append((200, {}, {"data": []}))  # of models
    service.next_answers.append(problem(422, "invalid_rows", "odd", rows=[{}]))
    assert "line None: None" in slm("bulk", "prompts.txt").stderr


def test_no_service() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    Path("out.jsonl").write_text("kept")
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl", "--overwrite", "--url", url)
    assert result.exit_code == 1
    assert result.stderr == f"nothing answers at {url}; is `slm up` running?\n"
    assert Path("out.jsonl").read_text() == "kept"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.txt"], "cannot read none.txt: No such file or directory\n"),
        (["prompts.txt", "-o", "no/o.csv"], "cannot write no/o.csv: No such file or directory\n"),
        (["prompts.txt", "--model", "big"], "there is no model 'big'; there are: tiny.\n"),
        (["prompts.txt", "-o", "./"], "./ is the folder of prompts.txt; choose another.\n"),
        (["rows"], "rows: prompts come from a .txt, .csv or .jsonl file, or one of these with"),
        (["prompts.txt", "--report", "no/r.html"], "cannot write no/r.html: it is a folder, or"),
    ],
)
def test_what_can_be_checked_is_checked_first(
    url: str, service: FakeService, arguments: list[str], sentence: str
) -> None:
    result = slm("bulk", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(sentence)
    assert service.batches.made == {}


def test_no_file_is_lost(url: str, service: FakeService) -> None:
    out = Path("out.jsonl")
    out.write_text("old")
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl")
    assert (result.exit_code, out.read_text()) == (1, "old")
    assert result.stderr == "out.jsonl is not empty; add --overwrite to replace it.\n"
    assert slm("bulk", "prompts.txt", "-o", "out.jsonl", "--new").exit_code == 1
    Path("rows.jsonl").write_text('{"prompt": "Once"}\n')
    result = slm("bulk", "rows.jsonl", "-o", "./rows.jsonl", "--overwrite")
    assert (result.exit_code, len(results("rows.jsonl"))) == (1, 1)
    assert uploads(service) == 0
    assert slm("bulk", "prompts.txt", "-o", "out.jsonl", "--overwrite").exit_code == 0
    assert len(results()) == 2


def test_the_same_again_is_the_same_batch(url: str, service: FakeService) -> None:
    slm("bulk", "prompts.txt", "-o", "out.jsonl")
    first = Path("out.jsonl").read_text()
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl", "--overwrite")
    assert result.exit_code == 0
    said = r"The same was asked for before: batch_1 of .* has ended \(completed\)\. --new starts"
    assert re.search(said, result.stderr)
    assert Path("out.jsonl").read_text() == first
    assert slm("bulk", "prompts.txt").stdout == first
    assert list(service.batches.made) == ["batch_1"]
    slm("bulk", "prompts.txt", "-o", "out.jsonl", "--overwrite", "--new")
    slm("bulk", "prompts.txt", "--seed", "1")
    Path("prompts.txt").write_text("Once\n")
    slm("bulk", "prompts.txt")
    assert list(service.batches.made) == [f"batch_{number}" for number in range(1, 5)]


def test_a_batch_that_is_gone(url: str, service: FakeService) -> None:
    slm("bulk", "prompts.txt")
    service.batches.made.clear()
    result = slm("bulk", "prompts.txt")
    assert result.stderr == "410 batch_gone: its batch is gone. --new starts another.\n"
    assert slm("bulk", "prompts.txt", "--new").exit_code == 0


def test_ctrl_c_leaves_the_batch_running(url: str, service: FakeService) -> None:
    service.seconds = 1.0
    Path("prompts.txt").write_text("Once\n" * 24)
    process = started("prompts.txt", "-o", "out.jsonl")
    eventually(lambda: Path("out.jsonl").exists() and len(results()) >= 8)
    stderr = interrupted(process)
    assert 8 <= len(results()) < 24
    for words in (
        "batch_1 goes on in the service. The same command comes back to it; or\n",
        "  slm batches results batch_1 -o out.jsonl --follow --overwrite\n",
        "  slm batches cancel batch_1\n",
    ):
        assert words in stderr
    note = json.loads(Path("out.jsonl.batch").read_text())
    assert (note["batch"], note["url"], len(note["digest"])) == ("batch_1", url, 64)
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl")
    assert result.exit_code == 0
    assert "The same was asked for before: batch_1 of " in result.stderr
    assert [line["seq"] for line in results()] == list(range(1, 25))
    assert uploads(service) == 1
    assert not Path("out.jsonl.batch").exists()


def test_ctrl_c_while_uploading(url: str, service: FakeService) -> None:
    Path("prompts.txt").write_text("Once\n" * 9)
    service.next_answers.append((200, {}, {"data": []}))  # of models
    service.next_answers.extend([problem(503, "queue_full", "later")] * 999)
    process = started("prompts.txt", "-o", "out.jsonl")
    eventually(lambda: uploads(service))
    assert "Stopped while uploading; the same command sends it again" in interrupted(process)
    assert list(Path().glob("out*")) == []


def test_detach_and_come_back(url: str, service: FakeService) -> None:
    service.seconds = 60
    result = slm("bulk", "prompts.txt", "-o", "new/", "--detach", "--url", url + "/")
    assert (result.exit_code, result.stdout) == (0, "batch_1\n")
    assert f"slm batches results batch_1 -o new/ --follow --url {url}/\n" in result.stderr
    assert [path.name for path in Path("new").iterdir()] == [".batch"]
    service.batches.made["batch_1"]["end"] = 0
    service.batches.made["batch_1"]["rows"] = [({"prompt": "Once", "custom_id": "1"}, 0.0)]
    assert slm("bulk", "prompts.txt", "-o", "new/", "--url", url + "/").exit_code == 0
    assert [path.name for path in Path("new").iterdir()] == ["1.txt"]
    assert slm("bulk", "prompts.txt", "--detach", "--report", "r.html").exit_code == 2


def test_an_output_of_another_batch(url: str, service: FakeService) -> None:
    slm("bulk", "prompts.txt", "-o", "out.jsonl", "--detach")
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl", "--seed", "9")
    assert result.exit_code == 1
    assert "out.jsonl is for the results of batch batch_1, of other prompts" in result.stderr
    assert slm("bulk", "prompts.txt", "-o", "out.jsonl", "--new").exit_code == 0  # of the same
    Path("out.jsonl.batch").write_text("{")
    Path("out.jsonl").unlink()
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl")
    assert "out.jsonl is for the results of another batch" in result.stderr
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl", "--seed", "9", "--overwrite")
    assert result.exit_code == 0
    assert not Path("out.jsonl.batch").exists()


def test_a_noted_batch_that_is_gone(url: str, service: FakeService) -> None:
    slm("bulk", "prompts.txt", "-o", "out.jsonl", "--detach")
    service.batches.made.clear()
    Path("out.jsonl").write_text("what there was")
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl")
    assert result.exit_code == 1
    assert "batch_1, whose results are in out.jsonl, is gone from the service" in result.stderr
    assert Path("out.jsonl").read_text() == "what there was"
    assert slm("bulk", "prompts.txt", "-o", "out.jsonl", "--new").exit_code == 0
    assert len(results()) == 2


def test_a_service_that_is_away_for_a_while(service: FakeService) -> None:
    """Its port refuses, its answers break; every row is there once in the end."""
    port = free_port()
    service.seconds = 1.0
    Path("prompts.txt").write_text("Once\n" * 24)
    service.batches.breaks = [3, 0, 5]
    flags = ["--url", f"http://127.0.0.1:{port}", "--api-key", KEY]
    with service.served(port):
        process = started("prompts.txt", "-o", "out.jsonl", *flags)
        eventually(lambda: Path("out.jsonl").exists() and len(results()) >= 8)
    time.sleep(0.5)
    with service.served(port), process:
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert [line["seq"] for line in results()] == list(range(1, 25))


def test_a_reader_that_has_seen_enough(url: str) -> None:
    Path("prompts.txt").write_text("Once\n" * 5000)
    process = started("prompts.txt")
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in stderr
    assert "Exception" not in stderr
    assert "slm batches results batch_1 -o FILE --follow" in stderr


def test_two_of_the_same_at_once(url: str, service: FakeService) -> None:
    """They share a batch, and do not mix in one file."""
    service.seconds = 60
    first = started("prompts.txt", "-o", "out.jsonl")
    eventually(lambda: any(request.path == "/batches/batch_1" for request in service.seen))
    second = slm("bulk", "prompts.txt", "-o", "out.jsonl")
    assert second.exit_code == 1
    assert "another process writes out.jsonl" in second.stderr
    batch = service.batches.made["batch_1"]
    batch.update(rows=[(row, 0.0) for row, _ in batch["rows"]], end=0.0)
    with first:
        first.communicate(timeout=10)
    assert (first.returncode, len(results()), len(service.batches.made)) == (0, 2, 1)


def test_a_cancelled_batch(url: str, service: FakeService) -> None:
    service.seconds = 60
    process = started("prompts.txt", "-o", "out.jsonl")
    eventually(lambda: service.batches.made)
    with Client(url, KEY) as client:
        client.batches.cancel("batch_1")
    with process:
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "0 rows succeeded, 0 failed, 2 cancelled" in stderr
    assert [line["error"]["code"] for line in results()] == ["cancelled"] * 2


def test_a_batch_that_is_cancelled_while_it_comes_in(url: str, service: FakeService) -> None:
    slm("bulk", "prompts.txt", "-o", "out.jsonl", "--detach")
    service.batches.made["batch_1"].update(rows=[], end=0.0, emptied=True)
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl")
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "0 rows succeeded, 0 failed; 0 tokens.\n"
        "batch_1 was cancelled while its rows came in; none of them ran.\n"
    )
    assert not Path("out.jsonl.batch").exists()


def test_an_upload_that_begins_again(url: str, service: FakeService) -> None:
    """It says so, but not each time where that is often."""
    service.next_answers.append((200, {}, {"data": []}))  # of models
    service.next_answers.extend([problem(503, "queue_full", "later")] * 5)
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl")
    assert result.exit_code == 0
    assert result.stderr.count("503 queue_full: later. The upload begins again.\n") == 1
    assert len(results()) == 2


def test_a_report(url: str) -> None:
    result = slm("bulk", "prompts.txt", "-o", "out.jsonl", "--report", "report.html")
    assert result.exit_code == 0
    assert "<b>Once</b> and so on." in Path("report.html").read_text()
