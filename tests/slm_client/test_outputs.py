from __future__ import annotations

import csv
import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_client import BadInput
from slm_client.outputs import Output, _Folder, _Lines
from tests.slm_client.examples import result

FAILED = {"error": {"code": "engine_error", "message": "broke"}, "text": None, "usage": None}
TWO = {
    "text": None,
    "outputs": [{"index": i, "text": f" {i}", "finish_reason": "length"} for i in range(2)],
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def listed(folder: str) -> list[str]:
    return [path.name for path in Path(folder).iterdir()]


def test_lines_are_as_the_service_sends_them() -> None:
    with Output("out.jsonl").opened() as writer:
        writer.write(result(1, prompt="Ü\u2028"))
        assert len(Path("out.jsonl").read_text().split("\n")) == 2  # it is there at once
        writer.write(result(1, **FAILED))
    lines = Path("out.jsonl").read_text("utf-8").split("\n")
    assert json.loads(lines[0]) == result(1, prompt="Ü\u2028").raw
    assert "Ü" in lines[0]
    assert json.loads(lines[1])["error"]["code"] == "engine_error"


def test_a_table() -> None:
    with Output("out.csv").opened() as writer:
        writer.write(result(1, prompt='Say "Ü",\nplease', custom_id="a"))
        writer.write(result(2, **TWO))
        writer.write(result(1, **FAILED))
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines == [
        ["custom_id", "prompt", "text", "finish_reason", "tokens", "seq", "index", "error"],
        ["a", 'Say "Ü",\nplease', " and so on.", "stop", "4", "1", "0", ""],
        ["2", "Story 2", " 0", "length", "4", "2", "0", ""],
        ["2", "Story 2", " 1", "length", "", "2", "1", ""],
        ["1", "Story 1", "", "", "", "1", "0", "engine_error: broke"],
    ]


def test_a_folder_of_stories() -> None:
    with Output("out/").opened() as writer:
        writer.write(result(1, custom_id="a"))
        writer.write(result(2, custom_id="b", **TWO))
    assert sorted(listed("out")) == ["a.txt", "b-0.txt", "b-1.txt"]
    assert Path("out/a.txt").read_text() == "Story 1 and so on.\n"
    assert Path("out/b-1.txt").read_text() == "Story 2 1\n"
    with Output("out").opened() as writer:  # it is there: a folder without the stroke
        writer.write(result(1, **FAILED))
    assert json.loads(Path("out/errors.jsonl").read_text())["error"]["message"] == "broke"
    assert Path("out/a.txt").exists()  # others stay
    with Output("out").opened():
        pass
    assert not Path("out/errors.jsonl").exists()


@pytest.mark.parametrize(
    "custom_id",
    ["../up", "a/b", "", ".", "..", ".batch", "a\0b", "-rf", "x" * 300, "日" * 200, "a\n", "con:"],
)
def test_no_name_leads_elsewhere(custom_id: str) -> None:
    with Output("out/").opened() as writer:
        writer.write(result(1, custom_id=custom_id))
    (name,) = listed("out")
    assert name.endswith(".txt")
    assert name[0] not in ".-"
    assert len(name.encode()) <= 255
    assert listed(".") == ["out"]


NAMES = st.lists(st.text(max_size=30) | st.sampled_from(["a", "A", "á", "a\u0301", "a/", "_"]))


@given(NAMES)
def test_names_are_unique_everywhere(wanted: list[str]) -> None:
    folder = _Folder(Path(), _Lines(open(os.devnull, "w"), ""))  # noqa: PTH123, SIM115
    with folder._errors._file:
        names = [folder._name(name) for name in wanted]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(names)
    assert all("/" not in name and "\0" not in name for name in names)


def test_plain_names_are_kept() -> None:
    folder = _Folder(Path(), _Lines(open(os.devnull, "w"), ""))  # noqa: PTH123, SIM115
    with folder._errors._file:
        names = ["1", "row-7", "Größe_2", "a.b c", "2b41f3a0-0000-4000-8000-000000000000"]
        assert [folder._name(name) for name in names] == names


def test_what_is_there_is_seen() -> None:
    assert Output("out.jsonl").is_empty()
    Path("out.jsonl").touch()
    assert Output("out.jsonl").is_empty()
    Path("out.jsonl").write_text("x")
    assert not Output("out.jsonl").is_empty()
    assert Output("new/").is_empty()
    Path("new/.batch").touch()
    assert Output("new").is_empty()
    Path("new/a.txt").touch()
    assert not Output("new").is_empty()
    assert Output("-").is_empty()
    assert Output("/dev/null").is_empty()


def test_notes_have_their_place() -> None:
    assert Output("./out.jsonl").state_file == Path("out.jsonl.batch")
    assert Output("new/").state_file == Path("new/.batch")
    assert Output("-").state_file is None
    assert Output("/dev/null").state_file is None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("out.txt", r"out\.txt: results go to a \.jsonl or \.csv file, a folder/, or -"),
        ("no/out.jsonl", "cannot write no/out.jsonl: No such file or directory"),
        ("no/out/", "cannot write no/out/: No such file or directory"),
        ("file/out.jsonl", "cannot write file/out.jsonl: Not a directory"),
        ("file/", "cannot write file/: File exists"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(name: str, sentence: str) -> None:
    Path("file").touch()
    with pytest.raises(BadInput, match=sentence):
        Output(name)


def test_a_full_disk() -> None:
    with (
        pytest.raises(BadInput, match="cannot write /dev/full: No space left"),
        Output("/dev/full").opened() as writer,
    ):
        writer.write(result(1))


def test_two_do_not_write_one_file() -> None:
    for name in ("out.jsonl", "out.csv", "out/"):
        with Output(name).opened() as writer:
            writer.write(result(1))
            with (
                pytest.raises(BadInput, match="another process writes out"),
                Output(name).opened(),
            ):
                pass
        assert not Output(name).is_empty()
