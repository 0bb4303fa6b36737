from __future__ import annotations

import httpx
import pytest

from slm_client import (
    ApiError,
    Client,
    DoneEvent,
    RestartEvent,
    ServiceUnreachable,
    StatusEvent,
    StreamEvent,
    TokenEvent,
)
from tests.slm_client.fake_http import Answer, Events
from tests.slm_client.fake_service import KEY, STORY, FakeService, event, problem

RESET = httpx.ReadError("reset")


def token(number: int, text: str) -> bytes:
    return event("token", {"index": 0, "text": text}, f"0:{number}")


def sent(*parts: bytes | Exception) -> Answer:
    return 200, {}, Events(parts)


def texts(events: list[StreamEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, TokenEvent)]


@pytest.fixture
def done(client: Client) -> bytes:
    """The last event of `job_1`, which it makes."""
    return event("done", client.generate("Once").raw)


def test_a_job_is_told_from_its_beginning_to_its_end(client: Client, service: FakeService) -> None:
    service.seconds = 0.1
    job = client.submit("Once", stream=True)
    events = list(client.stream(job.id))
    assert events[0] == StatusEvent("running", 1)
    assert texts(events) == STORY
    assert isinstance(events[-1], DoneEvent)
    assert (events[-1].job.id, events[-1].job.text) == (job.id, "".join(STORY))


def test_over_a_real_connection(service: FakeService) -> None:
    with service.served() as url, Client(url, KEY) as client:
        assert texts(list(client.stream(client.submit("Once").id))) == STORY


def test_a_broken_stream_goes_on_where_it_was(
    client: Client, service: FakeService, done: bytes
) -> None:
    status = event("status", {"status": "running", "attempt": 1})
    service.next_answers.extend(
        [
            sent(status, RESET),
            problem(503, "store_unavailable", "soon"),
            sent(token(1, " and"), token(2, " so"), RESET),
            httpx.ConnectError("refused"),
            sent(b": only a heartbeat\n\n"),
            sent(status),  # no text since: the place is still known
        ]
    )
    assert "".join(texts(list(client.stream("job_1")))) == "".join(STORY)
    asked = [r.headers.get("last-event-id") for r in service.seen if r.path.endswith("/stream")]
    assert asked == [None, None, None, "0:2", "0:2", "0:2", "0:2"]


def test_a_restart_forgets_the_place(client: Client, service: FakeService, done: bytes) -> None:
    restart = event("restart", {})
    service.next_answers.append(sent(token(1, "x"), restart, RESET))
    service.next_answers.append(sent(token(1, "x"), restart, token(1, "y"), done))
    events = list(client.stream("job_1"))
    assert RestartEvent() in events
    assert texts(events) == ["x", "x", "y"]
    assert "last-event-id" not in service.seen[-1].headers


@pytest.mark.parametrize("text", ["a\nb", "\u2028", "\x85\x0b", "ü😀", "", '"data: {}"'])
def test_any_text_comes_through(
    client: Client, service: FakeService, done: bytes, text: str
) -> None:
    service.next_answers.append(sent(token(1, text), done))
    assert texts(list(client.stream("job_1"))) == [text]


def test_events_cut_anywhere_are_read(client: Client, service: FakeService, done: bytes) -> None:
    whole = token(1, "ü") + done
    parts = [whole[index : index + 1] for index in range(len(whole))]
    service.next_answers.append(sent(*parts))
    assert texts(list(client.stream("job_1"))) == ["ü"]


def test_events_of_a_later_version_do_no_harm(
    client: Client, service: FakeService, done: bytes
) -> None:
    service.next_answers.append(sent(event("mood", {"mood": "good"}), done))
    (only,) = client.stream("job_1")
    assert isinstance(only, DoneEvent)


def test_what_cannot_be_read_is_said_so(client: Client, service: FakeService, done: bytes) -> None:
    service.next_answers.append(sent(event("token", {"index": 0})))
    with pytest.raises(ApiError, match="is that our service"):
        list(client.stream("job_1"))


def test_a_job_that_nobody_knows(client: Client) -> None:
    with pytest.raises(ApiError, match="404"):
        list(client.stream("job_none"))


def test_patience_ends_and_is_renewed(service: FakeService) -> None:
    with Client("http://fake", KEY, retry_for=0.3, transport=service.transport()) as client:
        client.submit("Once")
        # Each break costs a pause, all together more than the patience; but something came.
        service.next_answers.extend(sent(token(n, str(n)), RESET) for n in range(10))
        assert len(texts(list(client.stream("job_1")))) >= 10
        service.next_answers.extend([sent(b": nothing\n\n")] * 50)
        with pytest.raises(ServiceUnreachable, match="ended a stream before its job"):
            list(client.stream("job_1"))
        service.next_answers.clear()
        service.next_answers.extend([RESET] * 50)
        with pytest.raises(ServiceUnreachable, match="broke off"):
            list(client.stream("job_1"))


def test_something_else_at_the_address() -> None:
    def hello(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>")

    transport = httpx.MockTransport(hello)
    with (
        Client("http://fake", KEY, retry_for=0.1, transport=transport) as client,
        pytest.raises(ServiceUnreachable, match="text/event-stream"),
    ):
        list(client.stream("job_1"))


def test_a_reader_who_has_seen_enough_leaves_nothing_open(
    client: Client, service: FakeService, done: bytes
) -> None:
    parts = Events([token(1, "a"), token(2, "b"), done])
    service.next_answers.append((200, {}, parts))
    events = client.stream("job_1")
    assert (next(events), parts.closed) == (TokenEvent(0, "a"), False)
    events.close()  # type: ignore[attr-defined]
    assert parts.closed
