"""`/v1/batches`, through OpenAI's client: what goes in, and what its files say then."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from typing import Any

import openai
import pytest
from fakeredis import FakeRedis
from openai.types import Batch, Completion
from starlette.testclient import TestClient

from slm_core.tokenizer import Tokenizer
from slm_jobs import keys
from slm_jobs.api_keys import KeyProof, KeySettings, NewKey
from slm_jobs.batch_schemas import BatchDraft, BatchRow, RowEnd, RowProblem
from slm_jobs.errors import FileNotFound
from slm_jobs.files import FileStore
from slm_jobs.schemas import GenerationParams, JobError, Work
from slm_jobs.store import JobStore
from tests.api.fake_worker import FINGERPRINT, outputs, usage
from tests.api.openai_batch_calls import (
    asgi,
    claim,
    connect,
    content,
    finish,
    line,
    lines_of,
    raises,
    run,
    succeed,
    upload,
)
from tests.api.openai_calls import error

# https://platform.openai.com/docs/guides/batch: its file as it stands there.
CHAT = [
    {
        "custom_id": f"request-{i}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-3.5-turbo-0125",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "Hello world!"},
            ],
            "max_tokens": 1000,
        },
    }
    for i in (1, 2)
]


@pytest.fixture
def api(client: TestClient, key: NewKey) -> openai.OpenAI:
    return connect(client, key)


def completions(api: openai.OpenAI, file_id: str | None) -> dict[str, Completion]:
    """The answers of an output file, by custom_id."""
    found = {}
    for row in lines_of(api, file_id):
        assert set(row) == {"id", "custom_id", "response", "error"}
        assert row["id"].startswith("batch_req_")
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        assert row["response"]["request_id"]
        found[row["custom_id"]] = Completion.model_validate(row["response"]["body"], strict=True)
    return found


def texts(answer: Completion) -> list[str]:
    return [choice.text for choice in answer.choices]


def test_a_batch_from_its_file_to_its_output(api: openai.OpenAI, store: JobStore) -> None:
    file = upload(api, line("request-1"), line("request-2", prompt="The end"))
    batch = api.batches.create(
        input_file_id=file.id,
        endpoint="/v1/completions",
        completion_window="24h",
        metadata={"description": "nightly eval job"},
    )
    assert isinstance(batch, Batch)
    assert (batch.object, batch.status, batch.endpoint) == (
        "batch",
        "in_progress",
        "/v1/completions",
    )
    assert (batch.input_file_id, batch.completion_window) == (file.id, "24h")
    assert batch.metadata == {"description": "nightly eval job"}
    assert batch.expires_at is not None
    assert batch.expires_at - batch.created_at in (86_400, 86_401)
    assert batch.request_counts
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 0, "failed": 0}
    assert batch.output_file_id is batch.error_file_id is batch.errors is batch.completed_at is None

    finish(store)
    done = api.batches.retrieve(batch.id)
    assert (done.status, done.model) == ("completed", "tiny")
    assert done.request_counts
    assert done.request_counts.to_dict() == {"total": 2, "completed": 2, "failed": 0}
    assert done.in_progress_at is not None
    assert done.completed_at is not None
    assert done.created_at <= done.in_progress_at <= done.completed_at
    assert done.finalizing_at == done.completed_at
    assert done.failed_at is done.expired_at is done.cancelled_at is done.error_file_id is None
    assert done.usage
    assert (done.usage.input_tokens, done.usage.output_tokens) == (8, 6)
    assert done.usage.total_tokens == 14

    answers = completions(api, done.output_file_id)
    assert list(answers) == ["request-1", "request-2"]
    answer = answers["request-1"]
    assert (answer.object, answer.model) == ("text_completion", "tiny")
    assert answer.system_fingerprint == FINGERPRINT
    assert answer.created == pytest.approx(done.completed_at, abs=2)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (" <0> ☃", "stop", None)
    assert answer.usage
    assert answer.usage.total_tokens == 7
    assert len({answer.id for answer in answers.values()}) == 2


def test_an_answer_is_that_of_completions(api: openai.OpenAI, store: JobStore) -> None:
    """Field for field."""
    batch = run(api, line())
    finish(store)
    [row] = lines_of(api, api.batches.retrieve(batch.id).output_file_id)
    answered: list[Any] = []
    thread = threading.Thread(
        target=lambda: answered.append(api.completions.create(**line()["body"]))
    )
    thread.start()
    while not (works := store.claim_next("tiny", worker="w1")):
        pass
    store.complete(works[0], outputs(works[0]), usage(works[0]), fingerprint=FINGERPRINT)
    thread.join()
    direct = answered[0].to_dict()
    body = row["response"]["body"]
    assert set(direct) == set(body)
    changing = {"id": "", "created": 0}
    assert {**direct, **changing} == {**body, **changing}


def test_what_is_asked_reaches_the_worker(api: openai.OpenAI, store: JobStore) -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["."], "n": 3, "top_k": 5}
    run(api, line("own", **fields), line("plain"))
    own, plain = (work.spec for work in finish(store))
    assert own.model_dump(include=set(fields)) == fields
    assert (own.max_tokens, own.prompts) == (8, ["Once upon"])
    # OpenAI's defaults, not ours
    assert (plain.temperature, plain.top_k, plain.top_p, plain.n) == (1.0, None, 1.0, 1)


@pytest.mark.parametrize(
    "custom_id", ["a", "request 1", "☃/ü\u2028", '{"a": 1}', "\\", "x" * 256, "0", "file:///etc"]
)
def test_custom_ids_come_back(api: openai.OpenAI, store: JobStore, custom_id: str) -> None:
    batch = run(api, line(custom_id))
    finish(store)
    assert list(completions(api, api.batches.retrieve(batch.id).output_file_id)) == [custom_id]


def test_every_form_of_prompt(api: openai.OpenAI, store: JobStore) -> None:
    ids = Tokenizer().encode("Once upon ☃")
    batch = run(
        api,
        line("ids", prompt=ids),
        line("lists", prompt=[ids, ids], n=2),
        line("texts", prompt=["A", "B"]),
        line("none", prompt=""),
    )
    works = {work.row.custom_id: work.spec for work in finish(store) if work.row}
    assert works["ids"].prompts == [ids]
    assert works["lists"].prompts == [ids, ids]
    answers = completions(api, api.batches.retrieve(batch.id).output_file_id)
    assert texts(answers["lists"]) == [f" <{i}> ☃" for i in range(4)]
    assert [choice.index for choice in answers["lists"].choices] == [0, 1, 2, 3]
    assert texts(answers["texts"]) == [" <0> ☃", " <1> ☃"]
    assert texts(answers["none"]) == texts(answers["ids"]) == [" <0> ☃"]


def test_prompts_are_echoed(api: openai.OpenAI, store: JobStore) -> None:
    ids = Tokenizer().encode("Once upon ☃")
    batch = run(
        api,
        line("text", echo=True, n=2),
        line("ids", prompt=ids, echo=True),
        line("several", prompt=["A", "B"], n=2, echo=True),
        line("none", prompt="", echo=True),
    )
    finish(store)
    answers = completions(api, api.batches.retrieve(batch.id).output_file_id)
    assert texts(answers["text"]) == ["Once upon <0> ☃", "Once upon <1> ☃"]
    assert texts(answers["ids"]) == ["Once upon ☃ <0> ☃"]
    assert texts(answers["several"]) == ["A <0> ☃", "A <1> ☃", "B <2> ☃", "B <3> ☃"]
    assert texts(answers["none"]) == [" <0> ☃"]


def test_lines_come_in_the_order_in_which_rows_ended(api: openai.OpenAI, store: JobStore) -> None:
    batch = run(api, *(line(str(i)) for i in range(450)))
    while works := claim(store):
        store.batches.finish([succeed(work) for work in reversed(works)])
    found = list(completions(api, api.batches.retrieve(batch.id).output_file_id))
    assert found[:64] == [str(i) for i in reversed(range(64))]
    assert sorted(map(int, found)) == list(range(450))


# What is wrong


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/embeddings", "/v1/responses"])
def test_other_endpoints_are_refused(api: openai.OpenAI, endpoint: Any) -> None:
    file = upload(api, *CHAT)
    with raises(openai.BadRequestError, "unsupported_parameter") as message:
        api.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    assert endpoint in message[0]
    assert '"url": "/v1/completions"' in message[0]  # what to send instead
    assert '"prompt"' in message[0]


def test_lines_for_another_endpoint_fail_the_batch(api: openai.OpenAI, store: JobStore) -> None:
    batch = run(api, line("good"), *CHAT)
    assert (batch.status, batch.failed_at is None) == ("failed", False)
    assert batch.errors
    assert batch.errors.object == "list"
    assert batch.errors.data
    assert [found.line for found in batch.errors.data] == [2, 3]
    for found in batch.errors.data:
        assert found.code == "invalid_row"
        assert found.message
        assert "/v1/completions" in found.message
        assert "prompt" in found.message
    assert api.batches.retrieve(batch.id) == batch
    assert batch.output_file_id is batch.error_file_id is None
    assert finish(store) == []


def test_every_wrong_line_is_named(api: openai.OpenAI, store: JobStore) -> None:
    lines = [
        content(line("a")),
        b"{nonsense\n",
        content(line("b", temperature=3)),
        b"\n",
        content(line("a")),
        content(line("c", model="gpt-3.5-turbo-instruct")),
        content(line("d", model="small")),
        content(line("e", prompt="word " * 200)),
        content(line("f", logprobs=3)),
        content(line("g", stream=True)),
        content({**line("h"), "method": "GET"}),
        content({"prompt": "ours"}),
        b'{"custom_id": "\xff"}\n',
    ]
    file = api.files.create(file=("rows.jsonl", b"".join(lines)), purpose="batch")
    batch = api.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    assert batch.status == "failed"
    assert batch.errors
    assert [(found.line, found.code) for found in batch.errors.data or ()] == [
        (2, "malformed_json"),
        (3, "invalid_row"),
        (5, "duplicate_custom_id"),
        (6, "unknown_model"),
        (7, "unknown_model"),
        (8, "prompt_too_long"),
        (9, "invalid_row"),
        (10, "invalid_row"),
        (11, "invalid_row"),
        (12, "invalid_row"),
        (13, "not_utf8"),
    ]
    assert finish(store) == []


@pytest.mark.parametrize("sent", [b"\n", b"\n \n\n", b"not json at all", b"\x1f\x8bnonsense"])
def test_a_file_without_rows(api: openai.OpenAI, sent: bytes) -> None:
    file = api.files.create(file=("rows.jsonl", sent), purpose="batch")
    asked: dict[str, Any] = {"endpoint": "/v1/completions", "completion_window": "24h"}
    if sent.startswith(b"\x1f"):
        with raises(openai.BadRequestError, "malformed_gzip"):
            api.batches.create(input_file_id=file.id, **asked)
        assert list(api.batches.list()) == []
    else:
        batch = api.batches.create(input_file_id=file.id, **asked)
        assert (batch.status, bool(batch.errors and batch.errors.data)) == ("failed", True)


def test_a_packed_file_is_read(api: openai.OpenAI, store: JobStore) -> None:
    packed = gzip.compress(content(line("a"), line("b")))
    file = api.files.create(file=("rows.jsonl.gz", packed), purpose="batch")
    batch = api.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    assert len(finish(store)) == 2
    assert api.batches.retrieve(batch.id).status == "completed"


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"completion_window": "25x"}, 400, "invalid_request", "completion_window"),
        ({"completion_window": "8d"}, 400, "invalid_request", "completion_window"),
        ({"completion_window": None}, 400, "invalid_request", "completion_window"),
        ({"endpoint": 7}, 400, "invalid_request", "endpoint"),
        ({"input_file_id": "file-abc123"}, 404, "file_not_found", None),
        ({"input_file_id": f"file-{'0' * 26}"}, 404, "file_not_found", None),
        ({"input_file_id": f"file-out_{'0' * 26}"}, 404, "file_not_found", None),
        ({"metadata": {"a": 1}}, 400, "invalid_request", "metadata"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3_600}},
            400,
            "unsupported_parameter",
            "output_expires_after",
        ),
        ({"model": "tiny"}, 400, "invalid_request", "model"),
    ],
)
def test_wrong_fields(
    client: TestClient, api: openai.OpenAI, fields: Any, status: int, code: str, param: str | None
) -> None:
    body = {
        "input_file_id": upload(api, line()).id,
        "endpoint": "/v1/completions",
        "completion_window": "24h",
        **fields,
    }
    error(client.post("/v1/batches", json=body), status, code, param)
    assert list(api.batches.list()) == []


@pytest.mark.parametrize(("window", "seconds"), [("1m", 60), ("90s", 90), ("7d", 7 * 86_400)])
def test_windows_of_our_own(api: openai.OpenAI, window: Any, seconds: int) -> None:
    batch = run(api, line(), completion_window=window, metadata=None)
    assert batch.completion_window == window
    assert batch.expires_at
    assert batch.expires_at - batch.created_at in (seconds, seconds + 1)
    assert batch.metadata is None


def test_ceilings_hold(client: TestClient, store: JobStore) -> None:
    poor = connect(client, store.keys.create(KeySettings(name="x", batch_rows=3)))
    with raises(openai.BadRequestError, "exceeds_limit"):
        run(poor, *(line(str(i)) for i in range(4)))
    assert list(poor.batches.list()) == []
    run(poor, line("a"), line("b"))
    with raises(openai.RateLimitError, "rate_limit_exceeded"):
        run(poor, line("a"), line("b"))
    finish(store)
    run(poor, *(line(str(i)) for i in range(3)))


def test_a_file_that_goes_meanwhile_makes_no_batch(
    api: openai.OpenAI, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: FileStore, file: Any) -> Any:
        yield content(line("a"))
        raise FileNotFound(file.id)

    monkeypatch.setattr(FileStore, "content", broken)
    with raises(openai.NotFoundError, "file_not_found"):
        run(api, line("a"), line("b"))
    assert list(api.batches.list()) == []
    assert redis.keys(keys.ROWS + "*") == []


# How it ends otherwise


def fail(work: Work) -> RowEnd:
    error = JobError(code="engine_fault", message="The engine broke.")
    return RowEnd(work, "failed", outputs(work), usage(work), FINGERPRINT, error)


def test_failed_rows_are_in_the_error_file(api: openai.OpenAI, store: JobStore) -> None:
    batch = run(api, line("good"), line("bad ☃"))
    good, bad = claim(store)
    store.batches.finish([succeed(good), fail(bad)])
    done = api.batches.retrieve(batch.id)
    assert done.status == "completed"
    assert done.request_counts
    assert done.request_counts.to_dict() == {"total": 2, "completed": 1, "failed": 1}
    assert list(completions(api, done.output_file_id)) == ["good"]
    [row] = lines_of(api, done.error_file_id)
    assert set(row) == {"id", "custom_id", "response", "error"}
    assert row["custom_id"] == "bad ☃"
    assert row["error"] == {"code": "engine_fault", "message": "The engine broke."}
    assert row["response"]["status_code"] == 500
    assert row["response"]["body"]["error"] == {
        "message": "The engine broke.",
        "type": "server_error",
        "param": None,
        "code": "engine_fault",
    }


def test_a_cancelled_batch_keeps_what_is_done(api: openai.OpenAI, store: JobStore) -> None:
    batch = run(api, *(line(str(i)) for i in range(4)))
    done, running = claim(store, most=2)
    store.batches.finish([succeed(done)])
    cancelling = api.batches.cancel(batch.id)
    assert cancelling.status == "cancelling"
    assert cancelling.output_file_id is None
    assert cancelling.cancelling_at is not None
    assert cancelling.created_at <= cancelling.cancelling_at
    store.batches.finish([RowEnd(running, "cancelled", [], None, FINGERPRINT)])
    cancelled = api.batches.retrieve(batch.id)
    assert (cancelled.status, cancelled.completed_at) == ("cancelled", None)
    assert cancelled.cancelled_at
    assert cancelled.request_counts
    assert cancelled.request_counts.to_dict() == {"total": 4, "completed": 1, "failed": 3}
    assert list(completions(api, cancelled.output_file_id)) == ["0"]
    rows = lines_of(api, cancelled.error_file_id)
    assert sorted(row["custom_id"] for row in rows) == ["1", "2", "3"]
    for row in rows:
        assert row["response"] is None
        assert row["error"]["code"] == "batch_cancelled"
        assert row["error"]["message"]
    assert api.batches.cancel(batch.id) == cancelled


def test_what_did_not_start_in_time_expires(
    api: openai.OpenAI, store: JobStore, redis: FakeRedis
) -> None:
    batch = run(api, *(line(str(i)) for i in range(3)), completion_window="1m")
    [first] = claim(store, most=1)
    store.batches.finish([succeed(first)])
    store.clock_offset_ms += 61_000
    redis.delete(keys.JANITOR)
    store.sweep()
    expired = api.batches.retrieve(batch.id)
    assert (expired.status, expired.completed_at, expired.cancelled_at) == ("expired", None, None)
    assert expired.expired_at is not None
    assert expired.expires_at is not None
    assert expired.expired_at >= expired.expires_at
    assert list(completions(api, expired.output_file_id)) == ["0"]
    rows = lines_of(api, expired.error_file_id)
    assert [(row["custom_id"], row["response"]) for row in rows] == [("1", None), ("2", None)]
    assert {row["error"]["code"] for row in rows} == {"batch_expired"}


# Lists, keys, repeats


def test_a_list_is_read_in_pages(api: openai.OpenAI) -> None:
    file = upload(api, line())
    asked: dict[str, Any] = {"endpoint": "/v1/completions", "completion_window": "24h"}
    made = [api.batches.create(input_file_id=file.id, **asked).id for _ in range(7)]
    assert [batch.id for batch in api.batches.list(limit=2)] == made[::-1]
    assert [batch.id for batch in api.batches.list()] == made[::-1]
    page = api.batches.list(limit=3)
    assert ([batch.id for batch in page.data], page.has_more) == (made[:-4:-1], True)
    rest = api.batches.list(limit=4, after=made[-3])
    assert ([batch.id for batch in rest.data], rest.has_more) == (made[3::-1], False)
    assert api.batches.list(after=made[0]).data == []


def test_a_list_reads_each_batch_once(
    api: openai.OpenAI, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [run(api, line("a"), completion_window="36h") for _ in range(5)]
    monkeypatch.setattr(store.batches, "get", None)
    listed = list(api.batches.list(limit=50))
    assert [batch.input_file_id for batch in listed] == [b.input_file_id for b in made[::-1]]
    assert {batch.completion_window for batch in listed} == {"36h"}


def test_a_batch_that_is_cancelled_while_it_comes_in(
    api: openai.OpenAI, store: JobStore, key: NewKey
) -> None:
    """None of its rows ran, so it has no files."""
    draft = BatchDraft("tiny", GenerationParams())
    batch = store.batches.begin(draft, owner=KeyProof.of(key.token)).batch_id
    store.batches.add_rows(batch, [BatchRow("a", 1, ["a"], {}, 2, 1)])
    store.batches.add_invalid(batch, [RowProblem(line=2, code="invalid_row", message="x")])
    assert api.batches.retrieve(batch).status == "validating"
    ended = api.batches.cancel(batch)
    assert (ended.status, ended.error_file_id, ended.output_file_id) == ("cancelled", None, None)
    assert ended.request_counts is not None
    assert ended.request_counts.to_dict() == {"total": 0, "completed": 0, "failed": 0}
    assert list(api.batches.list()) == [ended]
    assert list(api.files.list()) == []
    with raises(openai.NotFoundError, "file_not_found"):
        api.files.content(f"file-err_{batch.removeprefix('batch_')}")


def test_an_unknown_place_in_a_list(client: TestClient) -> None:
    for after, status, code in (
        (f"batch_{'0' * 26}", 404, "batch_not_found"),
        ("batch_1", 400, "invalid_request"),
    ):
        error(client.get("/v1/batches", params={"after": after}), status, code)


def test_other_keys_see_nothing(
    client: TestClient, store: JobStore, api: openai.OpenAI, admin: NewKey
) -> None:
    stranger = connect(client, store.keys.create(KeySettings(name="stranger")))
    file = upload(api, line())
    batch = run(api, line())
    for call in (stranger.batches.retrieve, stranger.batches.cancel):
        with raises(openai.NotFoundError, "batch_not_found"):
            call(batch.id)
    with raises(openai.NotFoundError, "file_not_found"):
        stranger.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
    assert list(stranger.batches.list()) == []
    assert connect(client, admin).batches.retrieve(batch.id) == api.batches.retrieve(batch.id)
    finish(store)
    assert api.batches.retrieve(batch.id).status == "completed"


@pytest.mark.parametrize("batch_id", ["batch_1", "job_1", "x" * 100, "batch_" + "é" * 26])
def test_an_id_of_another_form_is_nobodys(client: TestClient, batch_id: str) -> None:
    error(client.get(f"/v1/batches/{batch_id}"), 404, "batch_not_found")
    error(client.post(f"/v1/batches/{batch_id}/cancel"), 404, "batch_not_found")


def test_it_is_the_same_batch_everywhere(
    client: TestClient, api: openai.OpenAI, store: JobStore
) -> None:
    batch = run(api, line("a"), metadata={"night": "12"})
    ours = client.get(f"/batches/{batch.id}").json()
    assert (ours["status"], ours["metadata"], ours["counts"]["total"]) == (
        "running",
        {"night": "12"},
        1,
    )
    made = client.post("/batches", json={"rows": ["Once"], "max_tokens": 8}).json()
    finish(store)
    theirs = api.batches.retrieve(made["id"])
    assert (theirs.status, theirs.input_file_id) == ("completed", "")
    assert theirs.completion_window in ("86400s", "86401s")
    assert list(completions(api, theirs.output_file_id)) == ["1"]
    assert {found.id for found in api.batches.list()} == {batch.id, made["id"]}


def test_a_repeated_request_gives_the_same_batch(api: openai.OpenAI, store: JobStore) -> None:
    asked: dict[str, Any] = {"endpoint": "/v1/completions", "completion_window": "24h"}
    headers = {"Idempotency-Key": "night-12"}
    file, twin, other = upload(api, line()), upload(api, line()), upload(api, line("b"))

    def create(file_id: str, **fields: Any) -> Any:
        raw = api.batches.with_raw_response.create(
            input_file_id=file_id, extra_headers=headers, **{**asked, **fields}
        )
        return raw.parse(), raw.headers.get("idempotent-replayed")

    first, replayed = create(file.id)
    assert replayed is None
    for same in (file, twin):  # what the file holds counts
        again, replayed = create(same.id)
        assert (again.id, again.input_file_id, replayed) == (first.id, file.id, "true")
    with raises(openai.UnprocessableEntityError, "idempotency_conflict"):
        create(other.id)
    with raises(openai.UnprocessableEntityError, "idempotency_conflict"):
        create(file.id, metadata={"a": "b"})
    assert len(finish(store)) == 1


def test_a_failed_batch_is_repeated_as_failed(api: openai.OpenAI) -> None:
    made = [
        run(api, *CHAT, extra_headers={"Idempotency-Key": "night-13"}).to_dict() for _ in range(2)
    ]
    assert made[0] == made[1]
    assert made[0]["status"] == "failed"


def test_batches_made_at_once(client: TestClient, key: NewKey, store: JobStore) -> None:
    file = upload(connect(client, key), *(line(str(i)) for i in range(20)))
    made: list[str] = []

    def create() -> None:
        api = connect(client, key)
        batch = api.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        made.append(batch.id)

    threads = [threading.Thread(target=create) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 10
    assert len(finish(store)) == 200
    api = connect(client, key)
    for batch_id in made:
        output = api.batches.retrieve(batch_id).output_file_id
        assert list(completions(api, output)) == [str(i) for i in range(20)]


def test_twins_at_once_are_one_batch(client: TestClient, key: NewKey, store: JobStore) -> None:
    file = upload(connect(client, key), *(line(str(i)) for i in range(20)))
    outcomes: list[str] = []
    codes: list[str | None] = []

    def create() -> None:
        try:
            batch = connect(client, key).batches.create(
                input_file_id=file.id,
                endpoint="/v1/completions",
                completion_window="24h",
                extra_headers={"Idempotency-Key": "twin"},
            )
            outcomes.append(batch.id)
        except openai.ConflictError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=create) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(outcomes)) == 1
    assert set(codes) <= {"idempotency_in_progress"}
    assert len(finish(store)) == 20


def test_a_file_that_is_gone_is_no_matter_to_its_batch(api: openai.OpenAI, store: JobStore) -> None:
    batch = run(api, line("a"))
    api.files.delete(batch.input_file_id)
    finish(store)
    done = api.batches.retrieve(batch.id)
    assert list(completions(api, done.output_file_id)) == ["a"]


def test_an_output_that_goes_meanwhile_is_not_taken_for_whole(
    client: TestClient, api: openai.OpenAI, store: JobStore, redis: FakeRedis
) -> None:
    batch = run(api, *(line(str(i)) for i in range(5)))
    finish(store)
    redis.ltrim(keys.RESULTS + batch.id, 0, 2)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)  # the client stays
        raise AssertionError

    sent = asgi(client, "GET", f"/v1/files/file-out_{batch.id[6:]}/content", receive)
    assert sent[0]["status"] == 200
    assert sum(message["body"].count(b"\n") for message in sent[1:]) == 3
    assert all(message["more_body"] for message in sent[1:])  # it has not ended as answers do


def test_lines_are_json_of_one_line_each(api: openai.OpenAI, store: JobStore) -> None:
    """Whatever a text holds, and however they are split."""

    def end(work: Work) -> RowEnd:
        text = '\n\u2028\x00\x85 " \\ ☃ \U0001f600'
        changed = [output.model_copy(update={"text": text}) for output in outputs(work)]
        return succeed(work)._replace(outputs=changed)

    batch = run(api, line("a"), line("b"))
    finish(store, end)
    answer = api.files.content(api.batches.retrieve(batch.id).output_file_id or "")
    for lines in (answer.text.splitlines(), answer.content.split(b"\n")[:-1]):
        assert [json.loads(one)["custom_id"] for one in lines] == ["a", "b"]
