from __future__ import annotations

import gzip
import hashlib
import io
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_client import BadInput
from slm_client.source import Format, format_of, named, opened


@given(st.binary(max_size=300), st.integers(0, 20))
def test_bytes_come_through_as_often_as_wanted(data: bytes, skipped: int) -> None:
    file = io.BytesIO(data)
    file.seek(min(skipped, len(data)))
    with opened(file) as source:
        for _ in range(2):
            assert b"".join(source.chunks()) == data[skipped:]
        assert source.size == len(data[skipped:])
        assert source.digest() == hashlib.sha256(data[skipped:]).hexdigest()
        source.guess()
        assert b"".join(source.chunks()) == data[skipped:]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("a.txt", Format.TXT), ("b/a.CSV", Format.CSV), ("a.jsonl.gz", Format.JSONL)],
        *[("a", None), ("txt", None), ("a.json", None), ("a.txt.zip", None), (".gz", None)],
    ],
)
def test_formats_by_name(name: str, kind: Format | None) -> None:
    assert format_of(name) == kind


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b' \n\xef\xbb\xbf{"prompt": 1}', Format.TXT),
        (b'\xef\xbb\xbf\n {"prompt": 1}', Format.JSONL),
        (b"Once {\n", Format.TXT),
        (b"", Format.TXT),
    ],
)
def test_a_pipe_is_judged_by_its_beginning(data: bytes, kind: Format, packed: bool) -> None:
    with opened(gzip.compress(data) if packed else data) as source:
        assert source.guess() == kind


def test_torn_gzip_is_for_the_service_to_judge() -> None:
    with opened(gzip.compress(b"{" * 99)[:15]) as source:
        source.guess()


def test_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"Once")
    (tmp_path / "a.csv").write_bytes(b"prompt")
    with (
        pytest.raises(BadInput, match=r"rows: prompts come from a \.txt, \.csv or \.jsonl"),
        named(str(tmp_path / "rows")),
    ):
        pass
    with named(str(tmp_path / "rows"), Format.TXT) as (source, kind):
        assert (source.size, kind) == (4, Format.TXT)
    with named(str(tmp_path / "a.csv"), Format.TXT) as (_, kind):
        assert kind is Format.TXT


def test_a_named_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: pipe.write_bytes(b'{"prompt": "x"}' * 9999))
    thread.start()
    with named(str(pipe)) as (source, kind):
        assert (source.size, kind) == (15 * 9999, Format.JSONL)
    thread.join()
