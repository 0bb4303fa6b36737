from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_client import BadInput, Row
from slm_client.rows import parse, read_rows

# What a line can hold: no \n, no surrogates; \x1c, \x85, U+2028 and friends included.
LINES = st.lists(
    st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=20), max_size=10
)


@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_text_gives_every_line_that_is_not_blank(lines: list[str], end: str, bom: bool) -> None:
    data = end.join(lines).encode("utf-8-sig" if bom else "utf-8")
    wanted = [
        Row(str(number), line.strip()) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not bom and lines and lines[0].startswith("\ufeff"):
        return  # a byte order mark by chance
    if not wanted:
        with pytest.raises(BadInput, match="prompts has no prompts"):
            parse("prompts", data, jsonl=False)
    else:
        assert parse("prompts", data, jsonl=False) == wanted


TEXT = st.text(st.characters(codec="utf-8"), min_size=1)


@given(
    st.dictionaries(TEXT.filter(lambda key: not key.isdecimal()), TEXT, min_size=1),
    st.booleans(),
    st.booleans(),
)
def test_json_lines_come_through_unchanged(
    prompts: dict[str, str], with_id: bool, ascii_only: bool
) -> None:
    lines = [
        json.dumps(
            {"prompt": prompt, "custom_id": key} if with_id else {"prompt": prompt},
            ensure_ascii=ascii_only,
        )
        for key, prompt in prompts.items()
    ]
    rows = parse("rows", "\n\n".join(lines).encode(), jsonl=True)
    assert [row.prompt for row in rows] == list(prompts.values())
    ids = list(prompts) if with_id else [str(2 * n + 1) for n in range(len(prompts))]
    assert [row.custom_id for row in rows] == ids


def rows_or_error(data: bytes, jsonl: bool) -> tuple[list[Row], str | None]:
    try:
        return parse("file", data, jsonl=jsonl), None
    except BadInput as error:
        return [], str(error)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_rows_or_a_clear_error(data: bytes, jsonl: bool) -> None:
    rows, error = rows_or_error(data, jsonl)
    if error is None:
        assert rows
        assert all(row.prompt and row.custom_id for row in rows)
    else:
        assert error.startswith("file")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional={"prompt": JSON, "custom_id": JSON}) | JSON)
def test_any_json_is_a_row_or_an_error_that_names_the_line(value: object) -> None:
    rows, error = rows_or_error(json.dumps(value).encode(), True)
    if error is None:
        assert isinstance(value, dict)
        assert [row.prompt for row in rows] == [value["prompt"]]
    else:
        assert error.startswith("file, line 1: ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'"Once"', "not an object"),
        (b'{"text": "Once"}', "unknown field 'text'"),
        (b'{"prompt": "Once", "max_tokens": 3}', "unknown field 'max_tokens'"),
        (b'{"custom_id": "a"}', "prompt must be a string"),
        (b'{"prompt": ""}', "prompt must be a string"),
        (b'{"prompt": "Once", "custom_id": 7}', "custom_id must be a string"),
        (b'{"prompt": "\\ud83d"}', "half a character"),
        (b'{"prompt": "Once", "custom_id": "1"}', "custom_id '1' is taken by line 1"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_a_bad_line_is_named(line: bytes, message: str) -> None:
    with pytest.raises(BadInput, match="file, line 3: ") as caught:
        parse("file", b'{"prompt": "fine"}\n\n' + line, jsonl=True)
    assert message in str(caught.value)


def test_files_by_their_ending(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b'{"prompt": 1}\r\n \n  two ')
    assert read_rows(str(tmp_path / "a.txt")) == [Row("1", '{"prompt": 1}'), Row("3", "two")]
    with pytest.raises(BadInput, match=r"a \.txt or a \.jsonl file"):
        read_rows(str(tmp_path / "a.csv"))
    with pytest.raises(BadInput, match=r"cannot read .*none\.txt: No such file"):
        read_rows(str(tmp_path / "none.txt"))
    (tmp_path / "dir.txt").mkdir()
    with pytest.raises(BadInput, match="cannot read"):
        read_rows(str(tmp_path / "dir.txt"))


def test_the_examples_are_varied() -> None:
    rows = read_rows(str(Path(__file__).parents[2] / "examples" / "prompts.txt"))
    assert 64 <= len(rows) <= 80
    assert len({row.prompt for row in rows}) == len(rows)
