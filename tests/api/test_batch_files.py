"""From the bytes of a file to its records, whatever the pieces in which the bytes come."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.batches.body import file_of
from api.batches.content import Content, limited, unpacked
from api.batches.formats import (
    MAX_LINE_BYTES,
    Cells,
    Columns,
    JsonLine,
    Record,
    TextLine,
    json_lines,
    table,
    text_lines,
)
from api.batches.multipart import parts
from api.problems import Problem
from slm_jobs.batch_schemas import RowProblem

COLUMNS = Columns(("prompt",), ("custom_id", "seed"))
MOST = 1 << 30
_examples = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def cut(content: bytes, places: list[int]) -> Iterator[bytes]:
    """The content in pieces, some of them empty."""
    ends = sorted(place % (len(content) + 1) for place in places)
    for start, end in zip([0, *ends], [*ends, len(content)], strict=True):
        yield content[start:end]


cuts = st.lists(st.integers(0, 10_000), max_size=12)
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def code(problem: pytest.ExceptionInfo[Problem]) -> str:
    return problem.value.code


def join(chunks: Iterator[bytes]) -> bytes:
    return b"".join(chunks)


# gzip


@_examples
@given(st.binary(max_size=2_000), st.integers(1, 3), cuts)
def test_gzip_in_any_pieces(content: bytes, members: int, places: list[int]) -> None:
    packed = gzip.compress(content) * members + b"\0" * (members - 1)
    assert join(unpacked(cut(packed, places))) == content * members


@_examples
@given(st.binary(max_size=200), cuts)
def test_what_is_no_gzip_stays(content: bytes, places: list[int]) -> None:
    if not content.startswith(b"\x1f\x8b"):
        assert join(unpacked(cut(content, places))) == content


@_examples
@given(st.binary(min_size=1, max_size=300), st.integers(2, 10_000), cuts)
def test_gzip_that_ends_too_early(content: bytes, end: int, places: list[int]) -> None:
    packed = gzip.compress(content)
    with pytest.raises(Problem) as problem:
        join(unpacked(cut(packed[: 2 + end % (len(packed) - 2)], places)))
    assert code(problem) == "malformed_gzip"


@pytest.mark.parametrize("tail", [b"x", b"\x1f", b"\x1f\x8b\x08", b"\0\0x", b'{"prompt": "a"}'])
def test_what_may_not_follow_gzip(tail: bytes) -> None:
    with pytest.raises(Problem) as problem:
        join(unpacked(iter([gzip.compress(b"abc") + tail])))
    assert code(problem) == "malformed_gzip"


def test_damaged_gzip() -> None:
    packed = bytearray(gzip.compress(b"a story about a fox" * 20))
    packed[-6] ^= 1  # of the checksum
    with pytest.raises(Problem) as problem:
        join(unpacked(iter([bytes(packed)])))
    assert code(problem) == "malformed_gzip"


def test_gzip_that_was_promised() -> None:
    for content in (b"", b"abc"):
        with pytest.raises(Problem) as problem:
            join(unpacked(iter([content]), gzip=True))
        assert code(problem) == "malformed_gzip"


def test_a_bomb_is_unpacked_in_pieces() -> None:
    packed = gzip.compress(bytes(50 << 20))
    pieces = limited(unpacked(iter([packed])), 1 << 20)
    sizes = []
    with pytest.raises(Problem) as problem:
        sizes.extend(len(piece) for piece in pieces)
    assert code(problem) == "body_too_large"
    assert max(sizes, default=0) <= 1 << 16


def test_the_digest_is_of_the_file_however_it_came() -> None:
    content = b"some bytes" * 1000
    ways = [
        [content],
        [content[:7], b"", content[7:]],
        unpacked(iter([gzip.compress(content)])),
    ]
    assert len({Content(chunks, about=["a", 1]).digest() for chunks in ways}) == 1
    assert (
        Content([content], about=["a", 2]).digest() != Content([content], about=["a", 1]).digest()
    )
    half = Content([b"a", b"b"], about=None)
    assert next(iter(half)) == b"a"
    assert half.digest() == Content([b"ab"], about=None).digest()


# Lines


def values(records: Iterator[Record]) -> list[Any]:
    return [
        (record.line, json.loads(record.raw)) if isinstance(record, JsonLine) else record
        for record in records
    ]


@_examples
@given(
    st.lists(st.text(max_size=8) | st.just(None), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
    cuts,
)
def test_jsonl_in_any_pieces(
    rows: list[str | None], end: str, bom: bool, ended: bool, places: list[int]
) -> None:
    """None: a blank line."""
    lines = ["  " if row is None else json.dumps({"prompt": row}) for row in rows]
    content = end.join(lines).encode("utf-8-sig" if bom else "utf-8") + end.encode() * ended
    assert values(json_lines(cut(content, places))) == [
        (line, {"prompt": row}) for line, row in enumerate(rows, 1) if row is not None
    ]


@_examples
@given(st.lists(st.text("ab ☃\u2028\x0b,\"'", max_size=6), max_size=8), cuts)
def test_text_in_any_pieces(rows: list[str], places: list[int]) -> None:
    """Lines end where files have them end, and at no other of Unicode's separators."""
    content = "\n".join(rows).encode()
    assert list(text_lines(cut(content, places))) == [
        TextLine(line, row) for line, row in enumerate(rows, 1) if row.strip()
    ]


@_examples
@given(
    st.lists(st.tuples(text.filter(lambda t: "\0" not in t), text), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    cuts,
)
def test_tables_in_any_pieces(
    rows: list[tuple[str, str]], end: str, bom: bool, places: list[int]
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("custom_id", "prompt"), *rows])
    content = file.getvalue().encode("utf-8-sig" if bom else "utf-8")
    found = list(table(cut(content, places), COLUMNS))
    assert [record.cells for record in found if isinstance(record, Cells)] == [
        {"custom_id": one, "prompt": other} for one, other in rows
    ]
    line = 2
    for record, cells in zip(found, rows, strict=True):
        assert record.line == line
        line += 1 + "".join(cells).count("\n")


def test_lines_that_are_too_long() -> None:
    """They are told of, and not kept; the longest that may be is."""
    longest = b'"' + b"a" * (MAX_LINE_BYTES - 3) + b'"\n'
    assert len(longest) == MAX_LINE_BYTES
    content = longest + b" " + longest + b'"b"\n' + b"c" * (MAX_LINE_BYTES + 1)
    chunks = [content[start : start + 5_000] for start in range(0, len(content), 5_000)]
    for pieces in (chunks, [content]):
        first, second, third, last = values(json_lines(iter(pieces)))
        assert len(first[1]) == MAX_LINE_BYTES - 3
        assert third == (3, "b")
        for problem, line in ((second, 2), (last, 4)):
            assert isinstance(problem, RowProblem)
            assert (problem.code, problem.line) == ("row_too_large", line)
    found = list(text_lines(iter([b"x" * (MAX_LINE_BYTES + 2)])))
    assert [record.code for record in found if isinstance(record, RowProblem)] == ["row_too_large"]


@pytest.mark.parametrize("blank", [b"\n", b" \t\r\n"])
def test_blank_lines_have_an_end(monkeypatch: pytest.MonkeyPatch, blank: bytes) -> None:
    monkeypatch.setattr("api.batches.formats.MOST_BLANK_LINES", 1000)
    readers = [json_lines, text_lines, lambda chunks: table(chunks, COLUMNS)]
    for read in readers if blank == b"\n" else readers[:2]:
        assert list(read(iter([blank * 1000]))) == []
        with pytest.raises(Problem) as problem:
            list(read(iter([blank * 1001])))
        assert code(problem) == "body_too_large"


def test_lines_that_are_not_utf8() -> None:
    good, bad = text_lines(iter(["ä\n".encode(), "ä\n".encode("latin-1")]))
    assert good == TextLine(1, "ä")
    assert isinstance(bad, RowProblem)
    assert (bad.code, bad.message) == ("not_utf8", "Byte 0 is not UTF-8")


# Tables


def rows_of(content: bytes) -> list[Any]:
    return [
        (record.line, record.code) if isinstance(record, RowProblem) else record
        for record in table(iter([content]), COLUMNS)
    ]


def test_a_record_goes_on_after_a_wrong_one() -> None:
    content = b'prompt,seed\n"a" b,1\n\xff,1\nc,2,3\n\nd\ne,5\n"f\ng",6\n"h,7'
    assert rows_of(content) == [
        (2, "invalid_row"),
        (3, "not_utf8"),
        (4, "invalid_row"),
        (6, "invalid_row"),
        Cells(7, {"prompt": "e", "seed": "5"}),
        Cells(8, {"prompt": "f\ng", "seed": "6"}),
        (10, "invalid_row"),
    ]


def test_a_record_of_many_lines_has_an_end() -> None:
    """A quote that is never closed must not gather the file."""
    found = rows_of(b'prompt\n"a' + b'\n","' * 300_000)
    assert found[0] == (2, "row_too_large")


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"prompt,colour\n", "'colour'"),
        (b"seed\n", "'prompt' is missing"),
        (b"prompt,seed,seed\n", "twice"),
        (b'"prompt\n', "no CSV"),
        (b"\xff\n", "UTF-8"),
        (b"{}\n", "'{}'"),
    ],
)
def test_wrong_headers(header: bytes, word: str) -> None:
    with pytest.raises(Problem) as problem:
        rows_of(header + b"a,1\n")
    assert code(problem) == "invalid_rows"
    assert word in problem.value.detail
    assert problem.value.fields["rows"][0]["line"] == 1


def test_a_header_may_follow_blank_lines() -> None:
    assert rows_of(b"\n\n prompt , seed \na,\n") == [Cells(4, {"prompt": "a", "seed": ""})]
    assert rows_of(b"") == []


# Forms

BOUNDARY = "x--y"
KIND = f"multipart/form-data; boundary={BOUNDARY}"


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


@_examples
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=30)), max_size=5),
    cuts,
    st.booleans(),
)
def test_forms_in_any_pieces(
    fields: list[tuple[str, bytes]], places: list[int], read: bool
) -> None:
    content = b"".join(part(name, b"\r\n--" + value) for name, value in fields) + END
    found = [
        (found.name, join(found.chunks) if read else None)
        for found in parts(cut(content, places), KIND)
    ]
    assert found == [(name, b"\r\n--" + value if read else None) for name, value in fields]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("multipart/form-data", END),
        (KIND, b""),
        (KIND, part("a", b"x")),
        (KIND, END[:-3]),
        (KIND, b"nonsense"),
        (KIND, part("a", b"x")[:-1]),
        (KIND, f"--{BOUNDARY}\r\nX: y\r\n\r\nz\r\n".encode() + END),
        (KIND, f"--{BOUNDARY}\r\n{'x' * 100_000}: y\r\n\r\nz\r\n".encode() + END),
        (KIND, part("a", b"x") * 101 + END),
        (f"multipart/form-data; boundary={'b' * 1000}", END),
    ],
)
def test_forms_that_are_none(kind: str, content: bytes) -> None:
    with pytest.raises(Problem) as problem:
        [found.text() for found in parts(iter([content]), kind)]
    assert code(problem) == "malformed_multipart"


def form_file(*sections: bytes, kind: str = KIND) -> Any:
    return file_of(iter([b"".join(sections) + END]), kind, "", MOST)


@pytest.mark.parametrize(
    ("more", "form"),
    [
        ('; filename="a.jsonl"', "jsonl"),
        ('; filename="A.TXT"', "txt"),
        ('; filename="a.b.csv.gz"', "csv"),
        ('; filename="a.txt"\r\nContent-Type: text/csv; charset=UTF-8', "csv"),
        ('; filename="a.csv"\r\nContent-Type: application/octet-stream', "csv"),
        ('; filename="a"\r\nContent-Type: application/x-ndjson', "jsonl"),
    ],
)
def test_which_format_a_file_has(more: str, form: str) -> None:
    content = gzip.compress(b"hello") if ".gz" in more else b"hello"
    file = form_file(part("seed", b"7"), part("seed", "ä".encode()), part("file", content, more))
    assert (file.form, file.fields) == (form, [("seed", "7"), ("seed", "ä")])
    assert join(file.chunks) == b"hello"


@pytest.mark.parametrize(
    "more",
    [
        '; filename="a.pdf"',
        "",
        '; filename="gz"',
        '; filename="a.txt"\r\nContent-Type: text/plain; charset=latin-1',
    ],
)
def test_files_that_are_not_read(more: str) -> None:
    with pytest.raises(Problem) as problem:
        form_file(part("file", b"x", more))
    assert code(problem) == "unsupported_media_type"


@pytest.mark.parametrize(
    "sections",
    [
        [part("seed", b"7")],
        [part("file", b"x", '; filename="a.txt"'), part("seed", b"7")],
        [part("name", b"x" * 70_000), part("file", b"x", '; filename="a.txt"')],
        [part("name", b"\xff"), part("file", b"x", '; filename="a.txt"')],
    ],
)
def test_forms_that_are_not_as_they_must_be(sections: list[bytes]) -> None:
    with pytest.raises(Problem) as problem:
        join(form_file(*sections).chunks)
    assert code(problem) == "malformed_multipart"


def test_a_large_body_is_cut_off_before_it_is_unpacked() -> None:
    empty = gzip.compress(b"")
    with pytest.raises(Problem) as problem:
        join(file_of(iter([empty] * 1000), "text/plain", "", 5_000).chunks)
    assert code(problem) == "body_too_large"


def test_codings() -> None:
    packed = gzip.compress(b"hello")
    assert join(file_of(iter([packed]), "text/plain", "GZIP", MOST).chunks) == b"hello"
    assert join(file_of(iter([b"hello"]), "text/plain", "identity", MOST).chunks) == b"hello"
    with pytest.raises(Problem) as problem:
        file_of(iter([b"hello"]), "text/plain", "br", MOST)
    assert code(problem) == "unsupported_media_type"
