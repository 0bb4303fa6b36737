"""The command on small texts: what is in its folder, what is not, and what it says."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from slm_core import Tokenizer
from training.parallel import ordered_map
from training.prepare import app
from training.split import normalise
from training.tokens import DataFolder, TokenFileError, TokenWriter, read_tokens, split_documents

END = "<|endoftext|>"
WORDS = "the a red big old cat dog tree house ran sat saw and to by with lake hill said went"


def story(number: int, length: int = 30) -> str:
    """One of many that have little in common."""
    rng = random.Random(number)
    return f"Story {number}: " + " ".join(rng.choices(WORDS.split(), k=length)) + "."


def put(path: Path, stories: list[str]) -> Path:
    path.write_text("".join(f"{text}\n{END}\n" for text in stories), "utf-8")
    return path


def prepare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["--processes", "1", *map(str, arguments)])


def prepared(out: Path, *arguments: object) -> DataFolder:
    result = prepare(*arguments, "--out", out)
    assert result.exit_code == 0, result.stderr
    data = DataFolder.open(out)
    assert json.loads(result.stdout) == data.meta
    return data


def texts(tokens: np.ndarray) -> list[str]:
    return [Tokenizer().decode(d[:-1].tolist()) for d in split_documents(tokens)]


def test_every_document_is_there_once_and_ended(tmp_path: Path) -> None:
    stories = [story(i) for i in range(200)]
    source = put(tmp_path / "stories.txt", stories)
    data = prepared(tmp_path / "data", source, "--valid-fraction", 0.2)
    train, val = texts(data.train), texts(data.val)
    assert [s for s in stories if s in set(train)] == train
    assert [s for s in stories if s in set(val)] == val
    assert sorted(train + val) == sorted(stories)
    assert 20 < len(val) < 60
    assert (data.train == Tokenizer().eos_id).sum() == len(train)
    expected = [id_ for text in train for id_ in [*Tokenizer().encode(text), Tokenizer().eos_id]]
    assert data.train.tolist() == expected
    assert not data.train.flags.writeable


def test_the_meta_tells_all(tmp_path: Path) -> None:
    sources = [put(tmp_path / f"{name}.txt", [story(i)]) for i, name in enumerate("ba")]
    folder = tmp_path / "valid"
    folder.mkdir()
    put(folder / "v.txt", [story(7), "", story(8)])
    out = tmp_path / "data"
    meta = prepared(out, *sources, "--valid", folder, "--seed", 5).meta

    def sha(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert meta == {
        "tokenizer": "gpt2",
        "seed": 5,
        "valid_fraction": None,
        "train": {
            "sources": [
                {"name": path.name, "sha256": sha(path), "documents": 1} for path in sources
            ],
            "documents": 2,
            "tokens": (out / "train.bin").stat().st_size // 2,
            "sha256": sha(out / "train.bin"),
        },
        "val": {
            "sources": [{"name": "v.txt", "sha256": sha(folder / "v.txt"), "documents": 2}],
            "documents": 2,
            "tokens": (out / "val.bin").stat().st_size // 2,
            "sha256": sha(out / "val.bin"),
        },
        "dropped": {"empty": 1, "bad": 0, "duplicates": 0, "near_duplicates": 0},
    }
    assert sorted(path.name for path in out.iterdir()) == ["meta.json", "train.bin", "val.bin"]


def test_neither_processes_nor_files_change_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.corpus._CHUNK", 1000)
    stories = [story(i % 150) for i in range(300)]
    whole = put(tmp_path / "stories.txt", stories)
    one = prepared(tmp_path / "one", whole, "--valid-fraction", 0.3)
    two = prepared(tmp_path / "two", whole, "--valid-fraction", 0.3, "--processes", 2)
    assert one.meta == two.meta
    assert one.meta["dropped"]["duplicates"] == 150
    assert (tmp_path / "one" / "train.bin").read_bytes() == (
        tmp_path / "two" / "train.bin"
    ).read_bytes()
    stories.reverse()
    put(tmp_path / "1.txt", stories[:100])
    with gzip.open(tmp_path / "2.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in stories[50:])
    parts = (tmp_path / "1.txt", tmp_path / "2.jsonl.gz")
    other = prepared(tmp_path / "other", *parts, "--valid-fraction", 0.3)
    assert sorted(texts(other.val)) == sorted(texts(one.val))
    assert sorted(texts(other.train)) == sorted(texts(one.train))
    reseeded = prepared(tmp_path / "seed", whole, "--valid-fraction", 0.3, "--seed", 2)
    assert sorted(texts(reseeded.val)) != sorted(texts(one.val))


def test_copies_are_dropped_and_near_ones_from_training(tmp_path: Path) -> None:
    valid = put(tmp_path / "valid.txt", [story(1), story(2, 60), story(1).upper()])
    near = [
        story(1) + " And then they went home.",  # longer
        " ".join(story(2, 60).split()[:25]),  # a piece
        story(3, 300) + " " + story(1),  # much longer, with all of it
    ]
    far = [" ".join(story(2, 60).split()[:12]) + " " + story(4, 40), story(5)]
    train = put(tmp_path / "train.txt", [*near, *far, story(2, 60), story(5).title(), story(5)])
    data = prepared(tmp_path / "data", train, "--valid", valid)
    assert texts(data.val) == [story(1), story(2, 60)]
    assert texts(data.train) == far
    assert data.meta["dropped"] == {"empty": 0, "bad": 0, "duplicates": 4, "near_duplicates": 3}


short_texts = st.lists(
    st.lists(st.sampled_from(["Ann", "ann", "ran", "Ran!", "home", "...", "ét\u0301é"]), max_size=4)
    .map(" ".join)
    .filter(str.strip),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(short_texts, short_texts, st.booleans(), st.integers(0, 5))
def test_no_validation_document_is_learned_from(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[str],
    second: list[str],
    own_text: bool,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    one, other = put(folder / "1.txt", first), put(folder / "2.txt", second)
    how: list[object] = (
        [one, "--valid", other] if own_text else [one, other, "--valid-fraction", 0.5]
    )
    result = prepare(*how, "--seed", seed, "--out", folder / "data")
    if result.exit_code:
        assert "no document" in result.stderr
        return
    data = DataFolder.open(folder / "data")
    train, val = ({normalise(t) for t in texts(side)} for side in (data.train, data.val))
    assert not train & val
    assert len(train) == data.meta["train"]["documents"]
    assert len(val) == data.meta["val"]["documents"]
    if own_text:
        assert val == {normalise(text) for text in second}


def test_a_mark_in_a_text_ends_nothing(tmp_path: Path) -> None:
    inside = [f"One {END} two.", f"Three\n{END}\nfour."]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(text) + "\n" for text in inside))
    valid = put(tmp_path / "valid.txt", [story(1)])
    result = prepare(source, "--valid", valid, "--out", tmp_path / "data")
    assert texts(DataFolder.open(tmp_path / "data").train) == inside
    assert f"{source}, line 1 and 1 more have {END} within a text" in result.stderr


def test_bad_input_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepared(out, put(tmp_path / "good.txt", [story(i) for i in range(9)]), "--valid-fraction", 0.4)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    bad = tmp_path / "bad.jsonl"
    bad.write_text('"One."\n"Two."\n"Three."\n"Four."\n{"story": "Five."}\n')
    result = prepare(tmp_path / "good.txt", bad, "--out", out)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == (
        f"{bad}, line 5: no field 'text'; there are 'story'. --text-field names the one with the "
        "text"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    result = prepare(bad, "--out", out, "--skip-bad", "--valid-fraction", 0.5)
    assert result.exit_code == 0, result.stderr
    assert "1 places could not be read:" in result.stderr
    assert DataFolder.open(out).meta["dropped"]["bad"] == 1


def test_what_cannot_work_is_said_in_a_line(tmp_path: Path) -> None:
    source = put(tmp_path / "a.txt", [story(i) for i in range(5)])
    file = tmp_path / "file"
    file.touch()
    for arguments, why in (
        ([source], "with --valid-fraction 0.01 no document was chosen for validation: give a"),
        ([source, "--valid", source], "no document is left to train on: every one is also"),
        ([source, "--valid", tmp_path / "gone.txt"], "gone.txt: no such file or folder"),
        ([file], "text comes from .txt, .jsonl or .csv files"),
        ([source, "--valid-fraction", 0.5, "--out", file / "data"], "file/data: Not a directory"),
    ):
        result = prepare("--out", tmp_path / "data", *arguments)
        assert result.exit_code == 1, result.stderr
        assert why in result.stderr.splitlines()[-1]
        assert not list((tmp_path / "data").glob("*"))
    for arguments, why in (
        ([source, "--valid-fraction", 1.0], "--valid-fraction is above 0 and below 1"),
        ([source, "--tinystories"], "give either SOURCE"),
        (["--tinystories", "--valid", source], "give either SOURCE"),
        ([source, "--processes", 0], "--processes"),
    ):
        result = prepare(*arguments)
        assert result.exit_code == 2
        assert why in result.stderr


def test_a_full_disk_is_said_in_a_line(tmp_path: Path) -> None:
    out = tmp_path / "data"
    out.mkdir()
    (out / ".train.bin.partial").symlink_to("/dev/full")
    source = put(tmp_path / "a.txt", [story(i) for i in range(9)])
    result = prepare(source, "--valid-fraction", 0.4, "--out", out)
    assert (result.exit_code, list(out.iterdir())) == (1, [])
    assert result.stderr.splitlines()[-1] == f"{out}: No space left on device"


def test_a_process_that_dies_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BrokenProcessPool):
        list(ordered_map(os._exit, [1], processes=2))
    monkeypatch.setattr("training.corpus.ordered_map", lambda *_, **__: raise_(BrokenProcessPool()))
    result = prepare(put(tmp_path / "a.txt", [story(1)]), "--out", tmp_path / "data")
    assert (result.exit_code, (tmp_path / "data").exists()) == (1, False)
    assert "try --processes 1" in result.stderr.splitlines()[-1]


def raise_(error: Exception) -> None:
    raise error


def test_only_a_few_items_are_read_ahead() -> None:
    items = iter(range(-100, 0))
    results = ordered_map(abs, items, processes=2)
    assert next(results) == 100
    assert -100 < next(items) < -90
    assert list(results)[-1] == 1


def test_help_has_examples() -> None:
    result = prepare("--help")
    assert "  python -m training.prepare stories.txt --out data\n" in result.stdout


def write(path: Path, ids: list[int]) -> None:
    with TokenWriter(path) as file:
        file.write(np.array(ids, "<u2").tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    meta: dict[str, Any] = {"tokenizer": "gpt2", "train": {"tokens": 3}, "val": {"tokens": 2}}
    write(tmp_path / "train.bin", [1, 2, 50256])
    write(tmp_path / "val.bin", [3, 50256])
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return tmp_path


def test_a_data_folder(folder: Path) -> None:
    data = DataFolder.open(folder)
    assert data.train.tolist() == [1, 2, 50256]
    assert data.val.tolist() == [3, 50256]
    assert [d.tolist() for d in split_documents(np.array([1, 50256, 50256, 2], np.uint16))] == [
        [1, 50256],
        [50256],
        [2],
    ]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("meta.json", None, "no data in .*: meta.json is missing; python -m training.prepare"),
        ("meta.json", b"{", r"meta.json is damaged \(.*anew"),
        ("meta.json", b'{"tokenizer": "gpt2", "train": 3}', r"meta.json is damaged \("),
        ("train.bin", None, "cannot read .*train.bin: No such file"),
        ("train.bin", b"", "train.bin is no token file: it is 0 bytes long"),
        ("val.bin", b"123", "val.bin is no token file: it is 3 bytes long"),
        ("val.bin", b"12", "val.bin is no token file, or was cut off: its last id is not"),
        ("val.bin", b"\0\0\0\0\x50\xc4", "val.bin has 3 tokens and meta.json tells of 2: they are"),
    ],
)
def test_a_damaged_folder_is_refused(
    folder: Path, name: str, content: bytes | None, why: str
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(TokenFileError, match=why):
        DataFolder.open(folder)


def test_a_token_file_that_fails_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", [7, 50256])
    file = TokenWriter(tmp_path / "a.bin")
    file.write(b"\0\0")
    file.__exit__(RuntimeError, RuntimeError(), None)
    assert read_tokens(tmp_path / "a.bin").tolist() == [7, 50256]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
