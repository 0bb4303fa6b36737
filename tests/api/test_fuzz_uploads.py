"""Any file, in any form, is taken or refused; of what is refused nothing is kept."""

from __future__ import annotations

import csv
import gzip
import io
import json
from typing import Any

import pytest
from fakeredis import FakeRedis
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from slm_jobs.store import JobStore
from tests.api.batch_calls import JSONL, claim_all, left_in, send
from tests.api.fuzzing import any_text, check, examples, header, number, refused
from tests.api.test_fuzz import anything, text

# Rows

own = st.dictionaries(
    st.sampled_from(["prompt", "custom_id", "template", "variables", "n", "seed", "stop", "top_k"])
    | text,
    anything,
    max_size=5,
)
openai = st.fixed_dictionaries(
    {"url": st.just("/v1/completions") | anything, "body": st.just({"model": "tiny"}) | anything},
    optional={"custom_id": anything, "method": anything, "more": anything},
)
nested = st.integers(1, 1_200).map(lambda depth: "[" * depth + "]" * depth)
json_line = st.builds(json.dumps, own | openai | anything) | nested | any_text
line = json_line.map(lambda value: value.encode("utf-8", "surrogatepass")) | st.binary(max_size=60)
line_end = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n", b""])
lines = st.lists(st.builds(bytes.__add__, line, line_end), max_size=6).map(b"".join)
cell = any_text | number | st.sampled_from(['"', '""', ",", "\r", "{}", "null"])


def _table(rows: list[list[str]]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue().encode("utf-8", "surrogatepass")


columns = st.lists(st.sampled_from(["prompt", "custom_id", "seed", "stop", "n"]) | cell, max_size=4)
tables = st.builds(
    lambda head, rows: _table([["prompt", *head], *rows]),
    columns,
    st.lists(st.lists(cell, max_size=5), max_size=4),
)
files = st.one_of(
    st.tuples(st.just(JSONL), lines),
    st.tuples(st.just("text/plain"), lines),
    st.tuples(st.just("text/csv"), tables | lines),
)


@examples
@given(file=files, skip=st.booleans(), packed=st.sampled_from(["", "gzip", "cut", "bent"]))
@example(file=(JSONL, b"\xef\xbb\xbf"), skip=True, packed="")
@example(file=(JSONL, b'{"prompt": "a", "prompt": "b"}\n'), skip=False, packed="")
@example(file=("text/csv", b'prompt\n"a'), skip=True, packed="")
@example(file=("text/csv", b"prompt\n" + b"," * 200_000), skip=True, packed="gzip")
def test_rows(
    client: TestClient,
    store: JobStore,
    redis: FakeRedis,
    file: tuple[str, bytes],
    skip: bool,
    packed: str,
) -> None:
    """Every row that was taken can be run: what is stored reads as what a worker needs."""
    kind, content = file
    if packed:
        content = gzip.compress(content)
        content = {"gzip": content, "cut": content[:-5], "bent": content[:12] + b"?"}[packed]
    before = left_in(redis)
    response = send(client, content, kind, on_invalid="skip" if skip else "refuse")
    if response.status_code == 202:
        assert len(claim_all(store)) == response.json()["counts"]["pending"]
        found = client.get(f"/batches/{response.json()['id']}/errors")
        assert all(json.loads(line)["error"] for line in found.text.splitlines())
    refused(response, redis, before)


@examples
@given(rows=st.lists(own | openai | anything, max_size=3), options=own)
def test_json(
    client: TestClient, redis: FakeRedis, rows: list[Any], options: dict[str, Any]
) -> None:
    before = left_in(redis)
    body = json.dumps({"max_tokens": 5, **options, "rows": rows})
    headers = {"Content-Type": "application/json"}
    refused(client.post("/batches", content=body, headers=headers), redis, before)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_no_depth_of_json_is_a_failure(client: TestClient, redis: FakeRedis, opening: str) -> None:
    """Also not one that can be read just so, and is deeper in the stack when it is written."""
    before = left_in(redis)
    closing = {"[": "]", '{"a":': "}"}[opening]
    for depth in (*range(900, 1_010), 100_000):
        row = opening * depth + "1" + closing * depth
        response = client.post(
            "/batches",
            content=f'{{"rows": [{row}]}}',
            headers={"Content-Type": "application/json"},
        )
        assert refused(response, redis, before)


# Forms


def _part(disposition: bytes, headers: list[bytes], content: bytes) -> bytes:
    above = b"\r\n".join([b"Content-Disposition: " + disposition, *headers])
    return b"--x\r\n" + above + b"\r\n\r\n" + content + b"\r\n"


names = st.sampled_from(
    ["file", "purpose", "max_tokens", "metadata", "stop", "expires_after[seconds]"]
)
named = st.builds(
    'form-data; name="{}"{}'.format,
    names | any_text,
    st.just("") | st.builds('; filename="{}"'.format, any_text),
).map(str.encode)
dispositions = named | header | st.just(b'form-data; name="file"; filename="a.jsonl"')
part_headers = st.lists(
    header | st.sampled_from([b"Content-Type: text/csv", b"Content-Type: application/jsonl"]),
    max_size=9,
)
values = st.binary(max_size=60) | st.sampled_from([b"batch", b"5", b'"a"\n', b"--x", b"\r\n--x"])
forms = st.lists(st.builds(_part, dispositions, part_headers, values), max_size=4).map(b"".join)
ends = st.sampled_from([b"--x--\r\n", b"--x--", b"--x", b"", b"--x--\r\nmore", b"--x\r\n"])


@examples
@given(form=forms, end=ends, before_=st.sampled_from([b"", b"\r\n", b"x", b"-"]))
@example(form=_part(b'form-data; name="\xff"', [], b""), end=b"--x--", before_=b"")
@example(form=_part(b"form-data; name*=utf-8''%ff", [], b""), end=b"--x--", before_=b"")
@pytest.mark.parametrize("path", ["/batches?max_tokens=5", "/v1/files"])
def test_forms(
    client: TestClient, redis: FakeRedis, path: str, form: bytes, end: bytes, before_: bytes
) -> None:
    before = left_in(redis)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = client.post(path, content=before_ + form + end, headers=headers)
    refused(response, redis, before)


@examples
@given(content=lines)
def test_files_of_openai(client: TestClient, redis: FakeRedis, content: bytes) -> None:
    """A batch of any file ends in one with errors, or runs."""
    data = {"purpose": "batch"}
    made = client.post("/v1/files", data=data, files={"file": ("a.jsonl", content)})
    if check(made) is None:
        asked = {
            "input_file_id": made.json()["id"],
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        check(client.post("/v1/batches", json=asked))
    before = left_in(redis)
    refused(made, redis, before)
