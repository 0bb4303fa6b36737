"""What is a document in each kind of file, and how what is none is named."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import sources
from training.files import SourceError, find_sources
from training.sources import Reader, TextFormat, read_documents

END = "<|endoftext|>"


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return path


def read(path: Path, **options: object) -> list[str]:
    return list(Reader(TextFormat(**options)).documents(path))  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_every_kind_packed_or_not(tmp_path: Path, ending: str) -> None:
    stories = ["One, two.\n\nThree.", 'A "quoted" word.', "Ünïcode 🦊."]
    text = "".join(f"\n{story}\n{END}\n" for story in stories)
    lines = "".join(json.dumps(s) + "\n" for s in [stories[0], *({"text": s} for s in stories[1:])])
    quoted = ['"' + story.replace('"', '""') + '"' for story in stories]
    table = "id,text\r\n" + "".join(f"{i},{cell}\r\n" for i, cell in enumerate(quoted))
    for name, content in (("a.txt", text), ("a.jsonl", lines), ("a.csv", table)):
        assert list(read_documents(put(tmp_path, name + ending, content))) == stories, name


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_line_ends_and_byte_order_marks_of_windows(tmp_path: Path, name: str) -> None:
    content = {
        "a.txt": f"One\r\ntwo.\r\n{END}\r\nThree.\r\n",
        "a.jsonl": '{"text": "One\\ntwo."}\r\n\r\n"Three."\r\n',
        "a.csv": 'text\r\n"One\r\ntwo."\r\nThree.\r\n',
    }[name]
    assert read(put(tmp_path, name, "\ufeff" + content)) == ["One\ntwo.", "Three."]


def test_without_marks_paragraphs_are_documents(tmp_path: Path) -> None:
    path = put(tmp_path, "novel.txt", "\n\nOne.\nStill one.\n \n\nTwo.\n\n")
    reader = Reader()
    assert list(reader.documents(path)) == ["One.\nStill one.", "Two."]
    assert reader.empty == 0
    [note] = reader.notes()
    assert note.startswith(f"{path} has no line {END}: there every paragraph is a document;")


def test_the_separator_is_free(tmp_path: Path) -> None:
    path = put(tmp_path, "a.txt", f"One.\n\nOne more.\n***\nTwo.\n{END}\n")
    assert read(path) == ["One.\n\nOne more.\n***\nTwo."]
    assert read(path, separator="***") == ["One.\n\nOne more.", f"Two.\n{END}"]
    assert read(path, separator="blank") == ["One.", f"One more.\n***\nTwo.\n{END}"]
    assert read(path, separator="file") == [path.read_text().strip()]


def test_documents_without_text_are_counted(tmp_path: Path) -> None:
    for name, content in (
        ("a.txt", f"{END}\nOne.\n{END}\n \n{END}\n\n"),
        ("a.jsonl", '"One."\n{"text": " "}\n\n""\n'),
        ("a.csv", "text,id\nOne.,1\n,2\n\n  ,3\n"),
    ):
        reader = Reader()
        assert list(reader.documents(put(tmp_path, name, content))) == ["One."], name
        assert reader.empty == 2, name


def test_a_mark_within_a_text_is_no_border_and_is_told(tmp_path: Path) -> None:
    reader = Reader()
    path = put(tmp_path, "a.txt", f"One.\n{END}\nTwo.{END} Still two.\n{END}\n")
    assert list(reader.documents(path)) == ["One.", f"Two.{END} Still two."]
    lines = put(tmp_path, "a.jsonl", json.dumps(f"Three.\n{END}\nStill three.") + "\n")
    assert list(reader.documents(lines)) == [f"Three.\n{END}\nStill three."]
    [note] = reader.notes()
    assert note.startswith(f"{path}, line 3 and 1 more have {END} within a text")


BAD = [
    ("a.txt", b"One.\nTwo \xff.\n", "line 2: not UTF-8: byte 0xff at byte 5 of the line"),
    ("a.txt", "One.\n".encode("utf-16"), ": the file is UTF-16: save it as UTF-8"),
    ("a.txt", gzip.compress(b"One.", mtime=0), ": the file is packed with gzip: give it a name"),
    ("a.txt", b"", ": holds no document"),
    ("a.txt.gz", b" \n\n", ": holds no document"),
    ("a.jsonl", b"", ": holds no document"),
    ("a.csv", b"text\n", ": holds no document"),
    ("a.jsonl", b'"One."\n{"text": "Two}\n', "line 2: no JSON: Unterminated string"),
    (
        "a.jsonl",
        b'{"story": "One.", "id": 1}\n',
        "line 1: no field 'text'; there are 'story', 'id'",
    ),
    ("a.jsonl", b'\n{"text": null}\n', "line 2: field 'text' is null, not a string"),
    ("a.jsonl", b"[1]\n", "line 1: it is an array, not a string"),
    ("a.jsonl", b"12\n", "line 1: it is a number, not a string"),
    ("a.jsonl", b'"\xe9t\xe9"\n', "line 1: not UTF-8: byte 0xe9 at byte 2 of the line"),
    ("a.jsonl", b'"half of a pair: \\ud83d"\n', "line 1: half of a surrogate pair"),
    ("a.jsonl", b"[" * 100_000 + b"\n", "line 1: no JSON that can be read"),
    ("a.csv", b"id,story\n1,One.\n", "line 1: no column 'text'; there are 'id', 'story'"),
    ("a.csv", b'id,text\n1,"One\n.\n2,Two.\n', "line 2: no CSV from here on: a quote is opened"),
    (
        "a.csv",
        b'id,text\n1,"One\n."\n2,Two, too.\n',
        "line 4: 3 columns where the first line has 2",
    ),
    ("a.csv", b'id,text\n1,"One" more\n', "line 2: no CSV from here on: ',' expected after '\"'"),
    ("a.jsonl", b'"One.%s."' % (b" " * 100_000), "line 1: 100,000 spaces or line breaks one after"),
    ("a.csv", b"text\nOne.\nTwo\xff.\n", "line 3: half of a surrogate pair, or bytes that are"),
]


@pytest.mark.parametrize(("name", "content", "why"), BAD)
def test_bad_input_is_named_by_file_and_line(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    path = put(tmp_path, name, content)
    with pytest.raises(SourceError) as error:
        read(path)
    assert str(error.value).removeprefix(str(path)).lstrip(", ").startswith(why.lstrip(", "))
    assert len(str(error.value).splitlines()) == 1
    reader = Reader(TextFormat(skip_bad=True))
    list(reader.documents(path))
    assert reader.bad == 1
    assert reader.notes()[1] == str(error.value)


def test_damaged_gzip_is_named_with_the_line_before(tmp_path: Path) -> None:
    lines = "".join(f"Story {i} of {i * 7919 % 1000}.\n{END}\n" for i in range(2000))
    whole = gzip.compress(lines.encode(), mtime=0)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    for data, why in (
        (whole[: len(whole) // 2], r"line \d+: gzip data that is damaged, or cut off, after this"),
        (whole[:-4], r"line 4000: gzip data that is damaged, or cut off, after this"),
        (bytes(damaged), r"line \d+: gzip data that is damaged, or cut off, after this"),
        (b"not packed", "no gzip data"),
    ):
        path = tmp_path / "a.txt.gz"
        path.write_bytes(data)
        with pytest.raises(SourceError, match=why):
            read(path)
    reader = Reader(TextFormat(skip_bad=True))
    path.write_bytes(whole[: len(whole) // 2])
    documents = list(reader.documents(path))
    assert documents == [f"Story {i} of {i * 7919 % 1000}." for i in range(len(documents))]
    assert 0 < len(documents) < 2000
    assert reader.bad == 1


def test_what_is_bad_is_left_out_if_asked(tmp_path: Path) -> None:
    mark = END.encode()
    text = b"One.\n%s\nTwo\xff.\nStill two.\n%s\nThree.\n%s\n" % (mark, mark, mark)
    assert read(put(tmp_path, "a.txt", text), skip_bad=True) == ["One.", "Three."]
    lines = b'"One."\n{\n{"text": 2}\n{}\n"Three."\n'
    assert read(put(tmp_path, "a.jsonl", lines), skip_bad=True) == ["One.", "Three."]
    table = b'text,id\nOne.,1\nTwo,\xff,2\nTw\xff,2\nThree.,3\n"Four" x,4\nfive,5\n'
    reader = Reader(TextFormat(skip_bad=True))
    assert list(reader.documents(put(tmp_path, "a.csv", table))) == ["One.", "Three."]
    assert reader.bad == 3
    assert list(reader.documents(put(tmp_path, "b.jsonl", b"{\n" * 9 + b'"One."\n'))) == ["One."]
    assert reader.notes()[0] == "12 places could not be read:"
    assert len(reader.notes()) == 7
    assert reader.notes()[-1] == "and more"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_no_document_fills_the_memory(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_LONGEST", 100)
    line = "word " * 30
    content = {
        "a.txt": f"One.\n{END}\n{line}\n",
        "a.jsonl": f'"One."\n"{line}"\n',
        "a.csv": f"text\nOne.\n{line}\n",
    }[name]
    with pytest.raises(SourceError, match=r"line 3|line 2"):
        read(put(tmp_path, name, content))
    many = {
        "a.txt": f"One.\n{END}\n" + "words\n" * 30 + f"{END}\nThree.\n",
        "a.jsonl": '"One."\n"Three."\n"' + "words" * 30,
        "a.csv": 'text\nOne.\nThree.\n"' + "words\n" * 30 + '"\nFour.\n',
    }[name]
    assert read(put(tmp_path, name, many), skip_bad=True) == ["One.", "Three."]


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["b/2.txt", "b/1.csv.gz", "b/c/3.jsonl", "a.txt", "z.txt"]
    for name in [*names, "b/.hidden.txt", "b/.git/x.txt", "b/picture.png"]:
        put(tmp_path, name, "x")
    found = find_sources(["z.txt", "b", "*.txt"])
    assert [source.name for source in found] == ["z.txt", "1.csv.gz", "2.txt", "c/3.jsonl", "a.txt"]
    assert [s.name for s in find_sources([str(tmp_path / "**" / "*.jsonl")])] == ["3.jsonl"]
    (tmp_path / "empty").mkdir()
    for name, why in (
        ("empty", "no .txt, .jsonl or .csv file is in the folder empty"),
        ("gone.txt", "gone.txt: no such file or folder"),
        ("*.json", r"\*.json: no such file or folder"),
        ("b/picture.png", "b/picture.png: text comes from .txt, .jsonl or .csv files"),
    ):
        with pytest.raises(SourceError, match=why):
            find_sources([name])
    with pytest.raises(SourceError, match=r"cannot read gone\.txt: No such file or directory"):
        list(read_documents(Path("gone.txt")))
    with pytest.raises(SourceError, match="text comes from"):
        list(read_documents(Path("b/picture.png")))


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]",\n\\text:1 ', max_size=60).map(str.encode))
def test_no_content_at_all_breaks_a_reader(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("a.txt", "a.jsonl", "a.csv"):
        path = put(folder, name, content)
        reader = Reader(TextFormat(skip_bad=True))
        good = list(reader.documents(path))
        assert all(text and text == text.strip() for text in good)
        if reader.bad:
            with pytest.raises(SourceError, match=re.escape(str(path))):
                read(path)
        else:
            assert read(path) == good
