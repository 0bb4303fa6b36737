"""Taking batches: what rows and options may say, and what comes of wrong ones."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import fakeredis
import pytest
from httpx2 import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from api.batches.formats import JsonLine
from api.batches.inputs import BatchInputLine, BatchInputRow
from api.batches.options import WINDOW_PATTERN, window_seconds
from api.batches.rows import RowReader
from api.desk import Desk
from slm_jobs.batch_schemas import Batch, BatchRow, RowProblem
from slm_jobs.schemas import GenerationParams, Work
from slm_jobs.store import JobStore
from tests.api.batch_calls import JSONL, claim_all, jsonl, left_in, send, take
from tests.api.test_problems import problem

ANIMAL = {"model": "small", "template": "animal"}
LINE = {"url": "/v1/completions", "body": {"model": "tiny", "prompt": "a", "max_tokens": 5}}


def prompts(works: list[Work]) -> list[Any]:
    return [
        work.spec.prompts[0] if len(work.spec.prompts) == 1 else work.spec.prompts for work in works
    ]


def ids(works: list[Work]) -> list[str]:
    return [work.row.custom_id for work in works if work.row]


def invalid(response: Response) -> list[Any]:
    """The rows that are wrong, after what holds for all such answers."""
    document = problem(response, "invalid_rows")
    rows: list[Any] = document["rows"]
    assert document["invalid"] >= len(rows) > 0
    assert [row["line"] for row in rows] == sorted(row["line"] for row in rows)
    assert f"Line {rows[0]['line']}: {rows[0]['message']}." in document["detail"]
    return rows


# Formats


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("application/jsonl", jsonl({"prompt": "A cat"}, {"prompt": "A dog"})),
        ("application/x-ndjson", jsonl("A cat", {"prompt": "A dog"})),
        ("application/x-jsonlines; charset=utf-8", jsonl({"prompt": "A cat"}, "A dog")),
        ("text/plain; charset=UTF-8", b"A cat\nA dog"),
        ("text/plain", b"\xef\xbb\xbfA cat\r\nA dog\r\n\r\n"),
        ("TEXT/CSV", b'prompt\nA cat\n"A dog"\n'),
        ("application/json", b'{"rows": ["A cat", {"prompt": "A dog"}]}'),
        ("application/jsonl", gzip.compress(jsonl("A cat", "A dog"), mtime=0)),
        ("text/plain", gzip.compress(b"A cat\n", mtime=0) + gzip.compress(b"A dog\n", mtime=0)),
    ],
)
def test_formats(client: TestClient, store: JobStore, kind: str, content: bytes) -> None:
    response = send(client, content, kind)
    assert response.status_code == 202, response.text
    batch = response.json()
    Batch.model_validate_json(response.content)
    assert response.headers["location"] == f"/batches/{batch['id']}"
    assert (batch["status"], batch["counts"]["pending"]) == ("running", 2)
    works = claim_all(store)
    assert prompts(works) == ["A cat", "A dog"]
    assert ids(works) == (["2", "3"] if "CSV" in kind else ["1", "2"])
    assert [work.spec.seed for work in works] == [batch["seed"], batch["seed"] + 1]


def test_a_compressed_body(client: TestClient, store: JobStore) -> None:
    packed = gzip.compress(b"A cat\n")
    headers = {"Content-Encoding": "gzip"}
    assert send(client, packed, "text/plain", headers).status_code == 202
    assert send(client, gzip.compress(packed), "text/plain", headers).status_code == 202
    assert prompts(claim_all(store)) == ["A cat", "A cat"]
    problem(send(client, b"A cat", "text/plain", headers), "malformed_gzip")
    problem(send(client, packed[:-1], "text/plain"), "malformed_gzip")
    problem(send(client, b"{}", "application/json", headers), "unsupported_media_type")


def test_a_form(client: TestClient, store: JobStore) -> None:
    response = client.post(
        "/batches?top_k=3",
        data={"max_tokens": "7", "stop": ["x", "y"], "metadata": '{"a": "b"}', "name": "é"},
        files={"file": ("rows.csv.gz", gzip.compress(b"prompt\nA cat\n"))},
    )
    assert response.status_code == 202, response.text
    [work] = claim_all(store)
    assert (work.spec.max_tokens, work.spec.top_k, work.spec.stop) == (7, 3, ["x", "y"])
    assert (response.json()["name"], response.json()["metadata"]) == ("é", {"a": "b"})


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("", "unsupported_media_type"),
        ("image/png", "unsupported_media_type"),
        ("application/x-www-form-urlencoded", "unsupported_media_type"),
        ("text/plain; charset=iso-8859-1", "unsupported_media_type"),
        ('text/csv;charset="UTF-16"', "unsupported_media_type"),
        ("multipart/form-data", "malformed_multipart"),
        ("multipart/form-data; boundary=x", "malformed_multipart"),
        ("application/json", "malformed_json"),
    ],
)
def test_other_bodies(client: TestClient, redis: fakeredis.FakeRedis, kind: str, code: str) -> None:
    document = problem(send(client, b"A cat", kind), code)
    assert code != "unsupported_media_type" or "Send " in document["detail"]
    assert left_in(redis) == []


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (JSONL, b""),
        (JSONL, b"\n \n\r\n"),
        ("text/plain", b"\xef\xbb\xbf"),
        ("text/csv", b"prompt\n\n"),
        ("text/csv", b""),
        ("application/json", b'{"rows": []}'),
    ],
)
@pytest.mark.parametrize("on_invalid", ["refuse", "skip"])
def test_empty(
    client: TestClient, redis: fakeredis.FakeRedis, kind: str, content: bytes, on_invalid: str
) -> None:
    problem(send(client, content, kind, on_invalid=on_invalid), "empty_batch")
    assert left_in(redis) == []


# Options

OPTIONS: dict[str, Any] = {
    "model": "small",
    "max_tokens": 9,
    "temperature": 0.5,
    "top_k": None,
    "top_p": 0.25,
    "seed": 11,
    "stop": ["one", "two"],
    "ignore_eos": True,
    "n": 2,
    "on_invalid": "skip",
    "completion_window": "90m",
    "name": "foxes",
    "metadata": {"a": "b"},
}


def as_texts(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if name == "stop" or isinstance(value, str) else json.dumps(value)
        for name, value in options.items()
    }


@pytest.mark.parametrize("place", ["query", "form", "json"])
def test_options(client: TestClient, store: JobStore, place: str) -> None:
    if place == "query":
        response = client.post(
            "/batches",
            params=as_texts(OPTIONS),
            content=b"A cat\n",
            headers={"Content-Type": "text/plain"},
        )
    elif place == "form":
        files = {"file": ("a.txt", b"A cat\n")}
        response = client.post("/batches", data=as_texts(OPTIONS), files=files)
    else:
        response = client.post("/batches", json={**OPTIONS, "rows": ["A cat"]})
    assert response.status_code == 202, response.text
    batch = Batch.model_validate_json(response.content)
    assert batch.params == GenerationParams.model_validate(
        {name: value for name, value in OPTIONS.items() if name in GenerationParams.model_fields}
    ).model_dump(exclude={"seed"})
    assert (batch.seed, batch.name, batch.metadata) == (11, "foxes", {"a": "b"})
    assert batch.expires_at is not None
    assert round((batch.expires_at - batch.created_at).total_seconds()) == 5400
    [work] = claim_all(store, "small")
    expected = {**batch.params, "seed": 11, "model": "small", "prompts": ["A cat"]}
    assert work.spec.model_dump(include=set(expected)) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": "0"},
        {"max_tokens": "4.5"},
        {"max_tokens": "null"},
        {"max_tokens": "\u0661"},
        {"temperature": "nan"},
        {"temperature": "1e999"},
        {"temperature": "0x1"},
        {"seed": "-1"},
        {"ignore_eos": "True"},
        {"ignore_eos": "1"},
        {"stop": [""]},
        {"stop": ["x"] * 9},
        {"metadata": "{"},
        {"metadata": "[]"},
        {"metadata": '{"a": 1}'},
        {"metadata": "[" * 5_000},
        {"name": ""},
        {"name": "x" * 129},
        {"completion_window": "59s"},
        {"completion_window": "8d"},
        {"completion_window": "1w"},
        {"completion_window": "060s"},
        {"on_invalid": "ignore"},
        {"priority": "1"},
        {"seed": ["1", "2"]},
        {"rows": "a"},
    ],
)
def test_wrong_options(
    client: TestClient, redis: fakeredis.FakeRedis, options: dict[str, Any]
) -> None:
    [name] = options
    document = problem(send(client, b"A cat", "text/plain", **options), "invalid_request")
    assert {error["pointer"].split("/")[1] for error in document["errors"]} == {name}
    assert left_in(redis) == []


def test_options_in_two_places(client: TestClient) -> None:
    """Those of the body hold; both must be right."""
    said = {"max_tokens": 3, "seed": 2}
    path = "/batches?max_tokens=9&stop=x"
    files = {"file": ("a.txt", b"a")}
    for response in (
        client.post(path, json={"rows": ["a"], **said}),
        client.post(path, data={name: str(value) for name, value in said.items()}, files=files),
    ):
        batch = response.json()
        assert (batch["params"]["max_tokens"], batch["params"]["stop"]) == (3, ["x"])
        assert batch["seed"] == 2
    response = client.post("/batches?seed=-1", json={"rows": ["a"], **said})
    problem(response, "invalid_request")
    problem(client.post("/batches?max_tokens=3", json=["a"]), "invalid_request")


@given(st.integers(0, 700_000), st.sampled_from("smhdw"))
@settings(max_examples=300, derandomize=True, database=None)
def test_the_documented_windows_are_those_that_are_taken(number: int, unit: str) -> None:
    window = f"{number}{unit}"
    try:
        taken = 60 <= window_seconds(window) <= 604_800
    except ValueError:
        taken = False
    assert bool(re.search(WINDOW_PATTERN, window)) is taken


def test_unknown_names(client: TestClient) -> None:
    problem(send(client, b"a", "text/plain", model="gpt-5"), "unknown_model")
    problem(send(client, b"a", "text/plain", template="poem"), "unknown_template")
    response = send(client, b"a", "text/plain", **ANIMAL)
    assert "animal, name" in problem(response, "invalid_request")["detail"]


# Rows


def test_rows_say_what_differs(client: TestClient, store: JobStore) -> None:
    take(
        client,
        {"prompt": "a", "temperature": 0.5, "top_k": None, "n": 3},
        {"prompt": "b", "seed": 4, "max_tokens": 5},
        {"prompt": "c", "seed": None, "stop": ["x"]},
        {"prompt": "d", "seed": 100},
        temperature="0.5",
        seed="100",
    )
    one, two, three, four = (work.spec for work in claim_all(store))
    assert (one.temperature, one.top_k, one.n, one.seed) == (0.5, None, 3, 100)
    assert (two.seed, two.max_tokens) == (4, 5)
    assert (three.seed, three.stop) == (102, ["x"])
    assert four.seed == 100


def test_templates(client: TestClient, store: JobStore) -> None:
    fox, bear = {"animal": "fox", "name": "Bo"}, {"animal": "bear", "name": "{x}"}
    take(client, {"variables": fox}, {"prompt": "plain"}, {"variables": bear}, **ANIMAL)
    take(client, {"template": "animal", "variables": fox}, model="small")
    assert sorted(prompts(claim_all(store, "small"))) == sorted(
        ["A fox named Bo", "plain", "A bear named {x}", "A fox named Bo"]
    )
    send(client, b"name,custom_id,animal,seed\nBo,x,fox,3\n", "text/csv", **ANIMAL)
    [work] = claim_all(store, "small")
    assert (work.row, work.spec.seed, prompts([work])) == (("x", {}), 3, ["A fox named Bo"])


WRONG_ROWS: list[tuple[object, str, str]] = [
    (5, "invalid_row", "Input should be a JSON object"),
    ([], "invalid_row", "Input should be a JSON object"),
    ({}, "invalid_row", "Send a prompt"),
    ({"prompt": None}, "invalid_row", "Send a prompt"),
    ("", "invalid_row", "/prompt: String should have at least 1"),
    ({"prompt": ""}, "invalid_row", "/prompt: String should have at least 1"),
    ({"prompt": "a" * 100_001}, "invalid_row", "/prompt: String should have at most 100000"),
    ({"prompt": ["a"]}, "invalid_row", "/prompt: Input should be a valid string"),
    ({"prompt": "a", "colour": 1}, "invalid_row", "/colour: Unknown field"),
    ({"prompt": "a", "model": "tiny"}, "invalid_row", "/model: Unknown field"),
    ({"prompt": "a", "max_tokens": "5"}, "invalid_row", "/max_tokens: Input should be a valid int"),
    ({"prompt": "a", "temperature": 6}, "invalid_row", "/temperature: Input should be less"),
    ({"prompt": "a", "n": 65}, "invalid_row", "/n: Input should be less"),
    ({"prompt": "a", "custom_id": ""}, "invalid_row", "/custom_id: String should have at least"),
    ({"prompt": "a", "custom_id": 5}, "invalid_row", "/custom_id: Input should be a valid string"),
    ({"prompt": "a", "custom_id": "x" * 257}, "invalid_row", "/custom_id: String should have"),
    ({"prompt": "\ud800"}, "invalid_row", "/prompt: Text holds an unpaired surrogate"),
    ({"prompt": "a", "\ud800": 1}, "invalid_row", "Text holds an unpaired surrogate"),
    ({"prompt": "a", "template": "x"}, "invalid_row", "Send either a prompt, or variables"),
    ({"prompt": "a", "variables": {"x": "y"}}, "invalid_row", "Send either a prompt"),
    ({"variables": {"x": "y"}}, "invalid_row", "Send a prompt, or a template"),
    (
        {"template": "poem", "variables": {}},
        "invalid_row",
        "/template: tiny has no template 'poem'",
    ),
    ({"prompt": " a" * 124}, "prompt_too_long", "124 prompt tokens + 5 max_tokens = 129"),
    ({"prompt": "a", "max_tokens": 128}, "prompt_too_long", "1 prompt tokens + 128 max_tokens"),
    ({**LINE, "url": "/v1/chat/completions"}, "invalid_row", "/url: only /v1/completions is"),
    ({"body": LINE["body"]}, "invalid_row", "/url: Field required"),
    ({**LINE, "method": "GET"}, "invalid_row", "/method: Input should be 'POST'"),
    ({**LINE, "body": {"model": "tiny", "messages": []}}, "invalid_row", "/body/messages: Unkn"),
    ({**LINE, "body": {"model": "small"}}, "unknown_model", "/body/model: the batch runs on tiny"),
    ({**LINE, "body": {"model": "gpt-5"}}, "unknown_model", "/body/model: no model 'gpt-5'; there"),
    (
        {**LINE, "body": {"model": "tiny", "suffix": "x"}},
        "invalid_row",
        "/body: Not supported here",
    ),
    ({**LINE, "body": {"model": "tiny", "stream": True}}, "invalid_row", "/body: stream and prior"),
    ({**LINE, "body": {"model": "tiny", "priority": 1}}, "invalid_row", "/body: stream and priori"),
    ({**LINE, "body": {"model": "tiny", "prompt": [70_000]}}, "invalid_row", "/body/prompt"),
    ({**LINE, "body": {"model": "tiny", "prompt": [7] * 128}}, "prompt_too_long", "128 prompt tok"),
    ({**LINE, "more": 1}, "invalid_row", "/more: Unknown field"),
]


@pytest.mark.parametrize(("row", "code", "message"), WRONG_ROWS)
def test_wrong_rows(
    client: TestClient, redis: fakeredis.FakeRedis, row: object, code: str, message: str
) -> None:
    """Behind and before right ones."""
    named = isinstance(row, dict) and "custom_id" not in row
    wrong = {**row, "custom_id": "w"} if isinstance(row, dict) and named else row
    [found] = invalid(send(client, jsonl("a", wrong, "b"), model="tiny"))
    assert (found["line"], found["code"]) == (2, code)
    assert found["message"].startswith(message)
    assert found["custom_id"] == ("w" if named else None)
    assert left_in(redis) == []


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (b"{", "malformed_json", "Expecting property name enclosed in double quotes at column 2"),
        (b'{"prompt": "a"} x', "malformed_json", "Extra data at column 17"),
        (b'{"prompt": "a", "temperature": NaN}', "malformed_json", "NaN is not JSON"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "malformed_json", "A number has too many digits"),
        (b"[" * 200_000, "malformed_json", "The line is nested too deeply"),
        (b'{"prompt": "\xff"}', "not_utf8", "Byte 12 is not UTF-8"),
        (b'"' + b"a" * (1 << 20) + b'"', "row_too_large", "The line is longer than 1048576 bytes"),
    ],
)
def test_wrong_lines(
    client: TestClient, redis: fakeredis.FakeRedis, line: bytes, code: str, message: str
) -> None:
    [found] = invalid(send(client, b'"a"\n' + line + b'\n"b"\n'))
    assert found == {"line": 2, "code": code, "message": message, "custom_id": None}
    assert left_in(redis) == []


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("a,5,,", "4 cells"),
        (",5,", "Send a prompt"),
        ("a,x,", "/seed: Input should be a valid integer"),
        ("a,-1,", "/seed: Input should be greater"),
        ("a,,nan", "/temperature: Input should be a valid number"),
    ],
)
def test_wrong_cells(client: TestClient, cells: str, message: str) -> None:
    content = f"prompt,seed,temperature\nb,,\n{cells}\n".encode()
    [found] = invalid(send(client, content, "text/csv"))
    assert (found["line"], found["code"]) == (3, "invalid_row")
    assert message in found["message"]


def test_a_table_says_what_rows_may(client: TestClient, store: JobStore) -> None:
    header = "custom_id,prompt,max_tokens,temperature,top_k,top_p,seed,stop,ignore_eos,n\r\n"
    content = header + '"a ""b""","two\r\nlines",7,0.5,null,1,null,"x,y",true,2\r\n,b,,,,,,,,\r\n'
    assert send(client, content.encode(), "text/csv", seed="5").status_code == 202
    one, two = claim_all(store)
    assert (ids([one, two]), prompts([one, two])) == (['a "b"', "4"], ["two\r\nlines", "b"])
    spec = one.spec
    assert (spec.max_tokens, spec.temperature, spec.top_k, spec.top_p) == (7, 0.5, None, 1)
    assert (spec.seed, spec.stop, spec.ignore_eos, spec.n) == (5, ["x,y"], True, 2)
    assert (two.spec.top_k, two.spec.stop, two.spec.n) == (40, [], 1)


def test_openai_lines(client: TestClient, store: JobStore) -> None:
    body = {"model": "small", "echo": True, "user": "me", "n": 2, "top_p": 0}
    rows = [
        {
            "custom_id": "a",
            "method": "POST",
            "url": "/v1/completions",
            "body": {**body, "prompt": x},
        }
        for x in ("A cat", ["A cat", "A dog"], [1, 2, 3], [[1], [2]], "")
    ]
    for row, name in zip(rows, "abcde", strict=True):
        row["custom_id"] = name
    rows[0]["body"] = {"model": "small", "prompt": "A cat", "max_tokens": 4, "seed": -1}
    response = client.post("/batches", content=jsonl(*rows), headers={"Content-Type": JSONL})
    assert response.status_code == 202, response.text
    assert response.json()["model"] == "small"
    works = claim_all(store, "small")
    assert ids(works) == list("abcde")
    assert [work.spec.prompts for work in works] == [
        ["A cat"],
        ["A cat", "A dog"],
        [[1, 2, 3]],
        [[1], [2]],
        [[50256]],
    ]
    first, second = works[0].spec, works[1].spec
    assert (first.max_tokens, first.temperature, first.top_k, first.n) == (4, 1.0, None, 1)
    assert first.seed == 2**63 - 65
    assert (second.max_tokens, second.temperature, second.top_p, second.n) == (16, 0, 1, 2)
    assert [work.row and work.row.extra for work in works] == [{}, *[{"echo": True}] * 4]


def test_what_a_batch_says_holds_for_openai_lines(client: TestClient, store: JobStore) -> None:
    bodies = [{"model": "tiny", "prompt": "a"}, {"model": "tiny", "prompt": "a", "max_tokens": 9}]
    take(client, *({"url": "/v1/completions", "body": body} for body in bodies), temperature="0.1")
    one, two = (work.spec for work in claim_all(store))
    assert (one.max_tokens, one.temperature, one.top_k) == (5, 0.1, None)
    assert (two.max_tokens, two.temperature) == (9, 0.1)


def test_the_model_of_the_first_openai_line(client: TestClient, store: JobStore) -> None:
    small = {"url": "/v1/completions", "body": {"model": "small", "prompt": "a"}}
    found = invalid(send(client, b"{\n" + jsonl(small, LINE)))
    assert [(row["line"], row["code"]) for row in found] == [
        (1, "malformed_json"),
        (3, "unknown_model"),
    ]
    assert [row["line"] for row in invalid(send(client, jsonl("a", small, LINE)))] == [2]


text = st.text(st.characters(exclude_categories=()), max_size=5)
values = st.none() | st.booleans() | st.integers(-1, 2**65) | st.floats() | text | st.just([])
row_fields = [*BatchInputRow.model_fields, "x"]
line_fields = ["model", "prompt", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "echo"]
one_row = st.dictionaries(st.sampled_from(row_fields), values, max_size=5)
one_line = st.fixed_dictionaries(
    {"url": st.just("/v1/completions")},
    optional={
        "custom_id": text,
        "method": st.just("POST"),
        "body": st.dictionaries(st.sampled_from(line_fields), values, max_size=5).map(
            lambda body: {"model": "tiny", "prompt": "a", **body}
        ),
    },
)


class SlowReader(RowReader):
    """Without the short way."""

    def _json(self, line: int, raw: bytes) -> BatchRow:
        found = self._explained(raw)
        own = isinstance(found, BatchInputRow)
        return self._own(line, found) if own else self._line(line, found)  # type: ignore[arg-type]


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    row=st.builds(lambda row, more: {"prompt": "a", **row, **more}, one_row, st.just({})) | one_line
)
def test_the_short_way_leads_where_the_long_one_does(client: TestClient, row: Any) -> None:
    desk: Desk = client.app.state.desk  # type: ignore[attr-defined]
    model = desk.manifest.default
    params = GenerationParams(max_tokens=5)
    record = JsonLine(1, json.dumps(row).encode())
    expected = SlowReader(desk, model, params).read(record)
    for usual in (BatchInputRow, BatchInputLine):
        reader = RowReader(desk, model, params)
        reader._usual = usual
        assert reader.read(record) == expected
    if isinstance(expected, RowProblem):
        expected.model_dump_json().encode()


# Wrong rows among right ones


def test_duplicates(client: TestClient, redis: fakeredis.FakeRedis) -> None:
    """In one chunk and across chunks; also what a row has by default."""
    rows: list[dict[str, str]] = [{"prompt": "a"} for _ in range(1100)]
    for place, name in ((3, "x"), (4, "x"), (900, "x"), (1000, "12")):
        rows[place]["custom_id"] = name
    found = invalid(send(client, jsonl(*rows)))
    assert [(row["line"], row["custom_id"], row["code"]) for row in found] == [
        (5, "x", "duplicate_custom_id"),
        (901, "x", "duplicate_custom_id"),
        (1001, "12", "duplicate_custom_id"),
    ]
    assert found[1]["message"] == "The custom_id 'x' is that of line 4"
    assert left_in(redis) == []


def test_only_so_many_are_told(client: TestClient, redis: fakeredis.FakeRedis) -> None:
    document = problem(send(client, b"{\n" * 150), "invalid_rows")
    assert (document["invalid"], len(document["rows"])) == (150, 100)
    document = problem(send(client, b"{\n" * 5000), "invalid_rows")
    assert (document["invalid"], len(document["rows"])) == (1000, 100)
    assert document["detail"].startswith("At least 1000 rows are invalid.")
    assert left_in(redis) == []


def test_wrong_rows_are_skipped(client: TestClient, store: JobStore) -> None:
    rows = [{"prompt": "a", "custom_id": f"r{i}"} for i in range(600)]
    content = jsonl(*rows[:300]) + b"{\n\xff\n" + jsonl(*rows[300:], rows[0], {"custom_id": "y"})
    response = send(client, content, on_invalid="skip")
    assert response.status_code == 202
    batch = response.json()
    assert (batch["counts"]["total"], batch["counts"]["failed"]) == (604, 4)
    assert (batch["status"], batch["counts"]["pending"]) == ("running", 600)
    assert len(claim_all(store)) == 600
    found = [json.loads(x) for x in client.get(f"/batches/{batch['id']}/errors").text.splitlines()]
    assert [(row["line"], row["error"]["code"], row["custom_id"]) for row in found] == [
        (301, "malformed_json", None),
        (302, "not_utf8", None),
        (603, "duplicate_custom_id", "r0"),
        (604, "invalid_row", "y"),
    ]
    assert "prompt" not in found[0]


def test_only_wrong_rows_are_skipped(client: TestClient) -> None:
    response = send(client, b"{\n{\n", on_invalid="skip")
    batch = response.json()
    assert (response.status_code, batch["status"]) == (202, "completed")
    assert batch["counts"]["failed"] == batch["counts"]["total"] == 2


def test_not_everything_can_be_skipped(
    client: TestClient, redis: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.batches.upload.MOST_SKIPPED", 700)
    found = problem(send(client, b"{\n" * 701, on_invalid="skip"), "invalid_rows")
    assert found["invalid"] == 701
    assert 1 <= found["rows"][0]["line"] <= 701
    assert left_in(redis) == []
    assert send(client, b"{\n" * 700, on_invalid="skip").status_code == 202
