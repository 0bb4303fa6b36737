"""The reader of pages does what they say, and sees what is not so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.docs.pages import Block
from tests.docs.reader import Reader, checkout
from tests.docs.shapes import Mismatch, Shapes
from tests.slm_client.processes import eventually, lives


def block(language: str, text: str, saved_as: str = "") -> Block:
    return Block("page.md", 1, language, text, saved_as=saved_as)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with Reader(checkout(tmp_path), {8000: 1234}) as reader:
        yield reader


def test_blocks_share_what_they_set(reader: Reader) -> None:
    reader.run(block("text", "{WORD} there", saved_as="note.txt"))
    reader.run(block("sh", "WORD='hello  you'\necho \"$WORD\"\ncat note.txt"))
    reader.run(block("text", "hello …\n{WORD} there"))
    reader.run(block("python", "import os\n\nword = os.environ['WORD']"))
    reader.run(block("python", "print(word)"))
    reader.run(block("text", "hello you"))


def test_ids_and_ports_are_those_that_there_are(reader: Reader) -> None:
    reader.run(block("sh", 'echo \'{"id": "job_2", "text": "a"}\''))
    reader.run(block("json", '{"id": "job_1", "text": "b"}'))
    reader.run(block("sh", "echo http://127.0.0.1:8000/jobs/job_1"))
    reader.run(block("text", "http://127.0.0.1:1234/jobs/job_2"))
    reader.run(block("sh", "echo --port 9000 localhost:9000"))
    with pytest.raises(Mismatch):
        reader.run(block("text", "--port 9001 localhost:9001"))


def test_what_runs_in_the_background_is_ended(tmp_path: Path) -> None:
    with Reader(checkout(tmp_path), {}) as reader:
        reader.run(block("sh", "sleep 600 &\necho $! > pid"))
        pid = int((tmp_path / "pid").read_text())
        assert psutil.pid_exists(pid)
    eventually(lambda: not lives(pid))


@pytest.mark.parametrize(
    "wrong",
    [
        block("sh", "false"),
        block("sh", "true | false"),
        block("python", "1 / 0"),
        block("toml", "[mine]\nprecision = 'fp8'"),
        block("json", "{"),
        block("cobol", "STOP RUN."),
    ],
    ids=lambda block: f"{block.language} {len(block.text)}",
)
def test_what_fails_is_seen(reader: Reader, wrong: Block) -> None:
    with pytest.raises(Exception, match=r".") as failed:
        reader.run(wrong)
    assert not isinstance(failed.value, AttributeError)


def test_an_error_that_is_not_shown_is_seen(reader: Reader) -> None:
    problem = '{"type": "urn:slm:problem:x", "status": 404}'
    reader.run(block("sh", f"echo '{problem}'"))
    reader.run(block("json", problem))
    reader.run(block("sh", f"echo '{problem}'"))
    with pytest.raises(Mismatch):
        reader.run(block("sh", "true"))
    with pytest.raises(Mismatch):  # as curl -o leaves it
        reader.run(block("sh", f"echo '{problem}' > x.json\ntrue -o x.json"))


@pytest.mark.parametrize(
    ("shown", "came"),
    [
        ('{"status": "queued"}', '{"status": "failed"}'),
        ('{"a": 1}', '{"b": 1}'),
        ('{"a": null}', '{"a": 1}'),
        ('{"a": "1"}', '{"a": 1}'),
        ('{"a": [1]}', '{"a": []}'),
        ('{"a": [{"b": 1}]}', '{"a": [{"c": 1}]}'),
        ('{"a": 1}', '{"a": 1}\n{"a": 2}'),
        ('{"a": 1}', "no"),
    ],
)
def test_another_shape_is_seen(shown: str, came: str) -> None:
    with pytest.raises(Mismatch):
        Shapes().compare("json", shown, came)


def test_other_texts_and_numbers_are_the_same_shape() -> None:
    shapes = Shapes()
    shapes.compare("json", '{"a": 1, "b": ["x"]}', '{"b": ["y", "z"], "a": 2.5}')
    shapes.compare("json", '{"a": 1}\n…', '{"a": 1}\n{"a": 2}')
    shapes.compare(
        "http", "HTTP/1.1 202 Accepted\nETag: x\n\n{}", "HTTP/1.1 202 \r\netag: y\r\n\r\n{}"
    )
    for shown in ("HTTP/1.1 404 \n\n{}", "HTTP/1.1 202 \nDate: x\n\n{}"):
        with pytest.raises(Mismatch):
            shapes.compare("http", shown, "HTTP/1.1 202 \r\netag: y\r\n\r\n{}")
