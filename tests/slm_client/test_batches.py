"""`client.batches` and `client.bulk`."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from slm_client import (
    ApiError,
    BadInput,
    Batch,
    Client,
    Failure,
    JobTimeout,
    Output,
    Result,
    ServiceUnreachable,
)
from tests.slm_client.fake_http import Answer, Lines
from tests.slm_client.fake_service import KEY, FakeService, problem

RESET = httpx.ReadError("reset")
REFUSED = httpx.ConnectError("refused")
BUSY = problem(503, "store_unavailable", "Redis does not answer")
TWIN = problem(409, "idempotency_in_progress", "a twin is being uploaded")
ROWS = b'{"prompt": "Once", "custom_id": "a"}\n{"prompt": "Twice", "custom_id": "b"}\n'


def lines(count: int, prompt: str = "Once") -> bytes:
    return f"{prompt}\n".encode() * count


def test_create_sends_bytes_and_options(client: Client, service: FakeService) -> None:
    batch = client.batches.create(
        ROWS,
        max_tokens=5,
        top_k=None,
        seed=None,
        temperature=0.5,
        ignore_eos=True,
        stop=["a", "b"],
        metadata={"for": "ünit"},
        completion_window="90m",
        name="first",
    )
    (request,) = service.seen
    assert (request.method, request.path, request.body) == ("POST", "/batches", ROWS)
    assert request.headers["content-type"] == "application/jsonl"
    assert request.headers["content-length"] == str(len(ROWS))
    assert request.query == {
        "max_tokens": "5",
        "top_k": "null",
        "temperature": "0.5",
        "ignore_eos": "true",
        "stop": "b",  # both are sent; the stand-in keeps the last
        "metadata": '{"for": "\\u00fcnit"}',
        "completion_window": "90m",
        "name": "first",
    }
    assert (batch.id, batch.status, batch.counts.total, batch.name) == (
        "batch_1",
        "completed",
        2,
        "first",
    )
    assert not batch.replayed


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.txt", "text/plain"),
        ("a.csv", "text/csv"),
        ("a.JSONL.gz", "application/jsonl"),
        ("rows", "application/jsonl"),
    ],
)
def test_the_format_is_in_the_name(
    client: Client, service: FakeService, tmp_path: Path, name: str, media_type: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b'prompt\n"Once"')
    service.next_answers.append(problem(422, "invalid_rows", "no"))
    with pytest.raises(ApiError, match="invalid_rows"):
        client.batches.create(path)
    assert service.seen[0].headers["content-type"] == media_type
    assert client.batches.create(path, format="txt").counts.total == 2


def test_a_file_is_sent_from_where_it_stands(client: Client, service: FakeService) -> None:
    file = io.BytesIO(b"skipped\nOnce\n")
    file.readline()
    service.next_answers.append(RESET)
    assert client.batches.create(file, format="txt").counts.total == 1
    assert [request.body for request in service.seen] == [b"Once\n"] * 2


def test_a_pipe_is_read_once_and_sent_often(client: Client, service: FakeService) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(lines(3))
    service.next_answers.append(RESET)
    with os.fdopen(reading, "rb") as pipe:
        assert client.batches.create(pipe, format="txt").counts.total == 3
    assert [request.body for request in service.seen] == [lines(3)] * 2


def test_progress_is_told(client: Client) -> None:
    told: list[tuple[int, int]] = []
    content = lines(120_000)
    client.batches.create(
        content, format="txt", on_progress=lambda sent, total: told.append((sent, total))
    )
    assert told[-1] == (len(content), len(content))
    assert len(told) == -(-len(content) // (1 << 18))
    assert [sent for sent, _ in told] == sorted(sent for sent, _ in told)


def test_files_that_cannot_be_read(client: Client, service: FakeService, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read .*none: No such file"):
        client.batches.create(tmp_path / "none")
    with pytest.raises(BadInput, match=r"cannot read .*: Is a directory"):
        client.batches.create(tmp_path)
    with pytest.raises(ValueError, match="xml"):
        client.batches.create(b"x", format="xml")
    path = tmp_path / "a.txt"
    path.write_bytes(lines(200_000))
    with pytest.raises(BadInput, match="changed while they were read"):
        client.batches.create(path, on_progress=lambda *_: os.truncate(path, 0))
    assert service.seen == []


@pytest.mark.parametrize(
    "troubles", [["lose"], [RESET, REFUSED], [BUSY, "lose"], [(504, {}, None)], [TWIN, TWIN]]
)
def test_an_upload_is_repeated_and_makes_one_batch(
    client: Client, service: FakeService, troubles: list[Answer | Exception | str]
) -> None:
    service.next_answers.extend(troubles)
    batch = client.batches.create(ROWS)
    assert list(service.batches.made) == [batch.id]
    assert {request.body for request in service.seen} == {ROWS}
    assert len({request.headers["idempotency-key"] for request in service.seen}) == 1
    assert batch.replayed == ("lose" in troubles)


@pytest.mark.parametrize(("flows_after", "uploads"), [(0.0, 5), (60.0, 2)])
def test_patience_with_an_upload_that_flows(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, flows_after: float, uploads: int
) -> None:
    """Trouble counts from when bytes flowed last. It has an end all the same."""
    monkeypatch.setattr("slm_client.transport._FLOWS_AFTER", flows_after)
    content = lines(120_000)
    again: list[str] = []

    def create(client: Client) -> Batch:
        return client.batches.create(
            content,
            format="txt",
            on_progress=lambda *_: time.sleep(0.2),  # three times
            on_again=lambda problem: again.append(str(problem)),
        )

    with Client("http://fake", KEY, retry_for=0.5, transport=service.transport()) as client:
        service.next_answers.extend([RESET] * (uploads - 1))
        assert create(client).counts.total == 120_000
        assert again == ["http://fake broke off before it answered: reset"] * (uploads - 1)
        assert service.count("POST") == uploads
        service.next_answers.extend([RESET] * 50)
        with pytest.raises(ServiceUnreachable):
            create(client)
        assert service.count("POST") <= uploads + 10


def test_what_was_made_before_comes_back(client: Client, service: FakeService) -> None:
    first = client.batches.create(ROWS, idempotency_key="mine")
    again = client.batches.create(ROWS, idempotency_key="mine")
    assert (again.id, again.replayed) == (first.id, True)
    with pytest.raises(ApiError, match="422 idempotency_conflict"):
        client.batches.create(ROWS, idempotency_key="mine", max_tokens=7)
    del service.batches.made[first.id]
    with pytest.raises(ApiError, match="410 batch_gone"):
        client.batches.create(ROWS, idempotency_key="mine")
    assert client.batches.create(ROWS).id != first.id


def test_an_answer_before_all_is_sent(service: FakeService) -> None:
    """Over a real connection: what refuses an upload is read though it broke the upload off."""
    refusal = problem(413, "payload_too_large", "too much")
    with service.served() as url, Client(url, KEY) as client:
        service.next_answers.append(refusal)
        with pytest.raises(ApiError, match="413 payload_too_large"):
            client.batches.create(lines(500_000), format="txt")


def test_small_ones_inline(client: Client, service: FakeService) -> None:
    service.next_answers.append("lose")
    batch = client.batches.create_rows(
        ["Once", {"prompt": "Twice", "custom_id": "b"}], max_tokens=9, seed=None, top_k=None
    )
    assert service.seen[0].body == {
        "rows": ["Once", {"prompt": "Twice", "custom_id": "b"}],
        "max_tokens": 9,
        "top_k": None,
    }
    assert (len(service.batches.made), batch.counts.total) == (1, 2)
    assert [result.custom_id for result in client.batches.results(batch.id)] == ["1", "b"]


def test_wrong_rows_are_in_the_problem(client: Client) -> None:
    with pytest.raises(ApiError, match="422 invalid_rows: 1 rows cannot run") as caught:
        client.batches.create(b"Once\nREJECT\n", format="txt")
    assert caught.value.problem["rows"] == [
        {
            "line": 2,
            "custom_id": "2",
            "code": "prompt_too_long",
            "message": "the prompt is too long",
        }
    ]


def test_get_wait_list_cancel_delete(client: Client, service: FakeService) -> None:
    service.seconds = 60
    first = client.batches.create(lines(20), format="txt")
    assert (first.status, first.ended, first.counts.running, first.counts.pending) == (
        *("running", False),
        *(8, 12),
    )
    assert (first.tokens_per_second, first.estimated_seconds) == (2000.4, 61.0)
    with pytest.raises(JobTimeout, match=r"batch_1 is still running after 1\.2 s"):
        client.batches.wait(first.id, timeout=1.2)
    with pytest.raises(ApiError, match="409 batch_not_ended"):
        client.batches.delete(first.id)
    for _ in range(2):
        assert client.batches.cancel(first.id).status == "cancelled"
    assert client.batches.wait(first.id).counts.unsuccessful == 20
    service.seconds = 0
    others = [client.batches.create(lines(1), format="txt").id for _ in range(4)]
    assert [batch.id for batch in client.batches.list()] == [*reversed(others), first.id]
    assert [batch.id for batch in client.batches.list(limit=3)] == others[:0:-1]
    service.next_answers.append("lose")
    client.batches.delete(first.id)
    with pytest.raises(ApiError, match="404 batch_not_found"):
        client.batches.get(first.id)
    with pytest.raises(ApiError, match="404"):
        client.batches.get("../admin/keys")
    assert service.seen[-1].path == "/batches/..%2Fadmin%2Fkeys"


def test_retry_makes_a_batch_of_what_failed(client: Client, service: FakeService) -> None:
    batch = client.batches.create(b"Once\nFAIL\nPOISON\n", format="txt")
    service.next_answers.append(BUSY)
    again = client.batches.retry(batch.id)
    assert (again.retry_of, again.counts.total, again.replayed) == (batch.id, 2, False)
    service.next_answers.extend(["lose", TWIN, TWIN])
    other = client.batches.retry(batch.id, new=True)
    assert (other.id != again.id, other.retry_of, other.replayed) == (True, batch.id, True)
    replayed = client.batches.retry(batch.id)
    assert (replayed.id, replayed.replayed) == (again.id, True)
    assert len(service.batches.made) == 3
    good = client.batches.create(b"Once", format="txt")
    with pytest.raises(ApiError, match="409 nothing_to_retry"):
        client.batches.retry(good.id)


def test_results_and_errors(client: Client) -> None:
    batch = client.batches.create(
        b'{"prompt": "Once", "custom_id": "a"}\n{"prompt": "FAIL"}\nnonsense\n',
        on_invalid="skip",
    )
    (good,) = client.batches.results(batch.id)
    assert (good.seq, good.custom_id, good.prompt, good.text) == (1, "a", "Once", " and so on.")
    assert (good.finish_reason, good.completion_tokens, good.error) == ("stop", 4, None)
    assert good.raw["usage"]["total_tokens"] == 7
    wrong, failed = client.batches.errors(batch.id)
    assert (wrong.custom_id, wrong.line, wrong.prompt, wrong.text) == ("3", 3, "", "")
    assert wrong.error == Failure("malformed_json", "it is no JSON object")
    assert (failed.custom_id, failed.prompt, failed.line) == ("2", "FAIL", None)
    assert failed.error == Failure("engine_error", "the engine broke")
    assert [result.seq for result in client.batches.errors(batch.id, after=1)] == [2]
    assert (batch.counts.succeeded, batch.counts.failed) == (1, 2)


def test_lines_of_all_kinds_are_read() -> None:
    base = {"seq": 1, "custom_id": "a", "finished_at": None}
    several = [{"index": i, "text": str(i), "finish_reason": "length"} for i in range(2)]
    result = Result.from_json({**base, "prompt": ["x", "y"], "outputs": several})
    assert (result.prompt, result.text, result.usage) == ('["x", "y"]', "0", None)
    assert result.outputs[1] == Output(1, "1", "length")
    partial = {"error": {"code": "c", "message": "m"}, "text": "Onc", "finish_reason": None}
    result = Result.from_json({**base, "prompt": "p", **partial})
    assert (result.text, result.finish_reason) == ("Onc", "")
    result = Result.from_json({**base, "custom_id": None, "line": 5})
    assert (result.custom_id, result.outputs) == ("5", ())


def test_results_with_many_outputs(client: Client) -> None:
    batch = client.batches.create(b"Once", format="txt", n=2)
    (result,) = client.batches.results(batch.id)
    assert [output.text for output in result.outputs] == [" and 0.", " and 1."]


def test_results_are_read_across_broken_connections(client: Client, service: FakeService) -> None:
    batch = client.batches.create(lines(50), format="txt")
    service.batches.breaks = [3, 0, 7]
    service.next_answers.extend([REFUSED, BUSY, (502, {}, None)])
    seqs = [result.seq for result in client.batches.results(batch.id)]
    assert seqs == list(range(1, 51))
    asked = [request.query["after"] for request in service.seen if "after" in request.query]
    assert asked == ["0", "0", "0", "0", "3", "3", "10"]


def test_a_torn_connection_is_made_anew(service: FakeService) -> None:
    with service.served() as url, Client(url, KEY) as client:
        batch = client.batches.create(lines(20), format="txt")
        service.batches.breaks = [5]
        assert len(list(client.batches.results(batch.id))) == 20


def test_results_are_followed_to_the_end(client: Client, service: FakeService) -> None:
    service.seconds = 0.1
    batch = client.batches.create(b"FAIL\n" + lines(19), format="txt")
    assert len(list(client.batches.results(batch.id))) == 0
    service.batches.breaks = [10]
    assert len(list(client.batches.results(batch.id, follow=True))) == 19
    assert len(list(client.batches.errors(batch.id, follow=True))) == 1


def test_only_a_newline_ends_a_line(client: Client, service: FakeService) -> None:
    line = '{"seq": 1, "custom_id": "a", "prompt": "x\u2028y\x85z", "text": "t"}'
    raw = line.encode()
    service.next_answers.append((200, {}, Lines([raw[:40], raw[40:], b"\n\n", b"\n"])))
    (result,) = client.batches.results("batch_1")
    assert result.prompt == "x\u2028y\x85z"


@pytest.mark.parametrize("line", [b"<html>\n", b"{}\n", b"[]\n", b"7", b'{"seq": "x"}\n'])
def test_what_is_no_result_is_said_so(client: Client, service: FakeService, line: bytes) -> None:
    service.next_answers.append((200, {}, Lines([line])))
    with pytest.raises(ApiError, match="is that our service"):
        list(client.batches.results("batch_1"))


def test_patience_with_lists_ends(service: FakeService) -> None:
    with Client("http://fake", KEY, retry_for=0.2, transport=service.transport()) as client:
        with pytest.raises(ApiError, match="404 batch_not_found"):
            list(client.batches.results("batch_9"))
        service.next_answers.extend([REFUSED] * 50)
        with pytest.raises(ServiceUnreachable):
            list(client.batches.results("batch_9"))


def test_watching_tells_every_row_once(client: Client, service: FakeService) -> None:
    service.seconds = 0.7
    batch = client.batches.create(b"REJECT\nFAIL\n" + lines(28), format="txt", on_invalid="skip")
    service.batches.breaks = [2, 0, 1, 3, 1, 4]
    seen = list(client.batches.watch(batch.id))
    told = [item for item in seen if isinstance(item, Result)]
    assert sorted(int(result.custom_id) for result in told) == list(range(1, 31))
    states = [item for item in seen if isinstance(item, Batch)]
    assert not states[0].ended
    assert states[-1].ended
    assert len(states) <= 5  # once a second, and at the end
    assert isinstance(next(client.batches.watch(batch.id, follow=False)), Batch)
    assert len(list(client.batches.watch(batch.id, follow=False))) == 31


def test_watching_a_cancelled_batch(client: Client, service: FakeService) -> None:
    service.seconds = 60
    batch = client.batches.create(lines(20), format="txt")
    assert len(list(client.batches.watch(batch.id, follow=False))) == 1
    client.batches.cancel(batch.id)
    told = [item for item in client.batches.watch(batch.id) if isinstance(item, Result)]
    assert [result.error and result.error.code for result in told] == ["cancelled"] * 20


def test_watching_what_was_cancelled_while_it_came_in(client: Client, service: FakeService) -> None:
    batch = client.batches.create(lines(2), format="txt")
    service.batches.made[batch.id].update(rows=[], end=0.0, emptied=True)
    [state] = client.batches.watch(batch.id)
    assert isinstance(state, Batch)
    assert (state.status, state.ended, state.counts.total) == ("cancelled", True, 0)


def test_results_that_are_kept_back_are_missed(service: FakeService) -> None:
    with Client("http://fake", KEY, retry_for=0.2, transport=service.transport()) as client:
        batch = client.batches.create(lines(2), format="txt")
        row = {"seq": 1, "custom_id": "1", "prompt": "Once", "text": "t"}
        short = Lines([httpx.Response(200, json=row).content])
        view = (200, {}, service.batches.view(service.batches.made[batch.id]))
        service.next_answers.extend([view, (200, {}, short), *[view, (200, {}, Lines([]))] * 50])
        with pytest.raises(ServiceUnreachable, match="keeps back 1 results of batch_1"):
            list(client.batches.watch(batch.id))


def test_a_service_that_does_not_wait_is_not_stormed(client: Client, service: FakeService) -> None:
    service.seconds = 60
    batch = client.batches.create(lines(1), format="txt")
    view = service.batches.view(service.batches.made[batch.id])
    service.next_answers.extend([(200, {}, view)] * 3)
    service.batches.made[batch.id]["end"] = 0
    client.batches.cancel(batch.id)
    began = time.monotonic()
    states = client.batches.watch(batch.id)
    next(states)
    next(states)
    next(states)
    assert time.monotonic() - began >= 0.9


def test_bulk_is_a_batch_of_prompts(client: Client, service: FakeService) -> None:
    results = list(client.bulk(["Once\nupon", "Ünce"], max_tokens=5, seed=7))
    assert [(result.custom_id, result.prompt) for result in results] == [
        ("1", "Once\nupon"),
        ("2", "Ünce"),
    ]
    assert results[0].text == " and so on."
    query = {"max_tokens": "5", "seed": "7", "on_invalid": "skip"}
    assert (service.seen[0].query, len(service.batches.made)) == (query, 1)


def test_bulk_with_rows_that_fail(client: Client) -> None:
    rows = ["fine", "REJECT", {"prompt": "FAIL", "custom_id": "mine"}, "fine too"]
    results = {result.custom_id: result for result in client.bulk(rows)}
    codes = {key: result.error and result.error.code for key, result in results.items()}
    assert codes == {"1": None, "2": "prompt_too_long", "mine": "engine_error", "4": None}
    with pytest.raises(ApiError, match="invalid_rows"):
        list(client.bulk(rows, on_invalid="refuse"))


def test_bulk_takes_any_number_from_anywhere(client: Client, service: FakeService) -> None:
    assert list(client.bulk([])) == []
    assert service.seen == []

    def many() -> Iterator[str]:
        yield from (f"Story {number}" for number in range(5000))

    assert len({result.custom_id for result in client.bulk(many())}) == 5000
    assert service.count("GET") <= 4


def test_results_come_while_others_run(client: Client, service: FakeService) -> None:
    service.seconds = 1.5
    began = time.monotonic()
    results = client.bulk(["Once"] * 16)
    next(results)
    assert time.monotonic() - began < 2.9
    assert len(list(results)) == 15


@pytest.mark.parametrize("leave", [lambda results: results.close(), lambda _: None])
def test_leaving_bulk_early_cancels_the_rest(
    client: Client, service: FakeService, leave: Callable[[object], None]
) -> None:
    service.seconds = 0.3
    results = client.bulk(["Once"] * 9)
    for _ in results:
        service.batches.made["batch_1"]["end"] = time.monotonic() + 60
        break
    leave(results)
    del results
    assert service.seen[-1].path == "/batches/batch_1/cancel"


def test_several_batches_from_one_client(service: FakeService) -> None:
    """As threads of one program may."""
    counts: list[int] = []
    with service.served() as url, Client(url, KEY) as client:

        def work() -> None:
            counts.append(len(list(client.bulk(["Once"] * 300))))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counts == [300] * 6
