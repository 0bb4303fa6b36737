"""One attempt, over real sockets: what is sent, what comes of each answer, and where it may go."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpcore
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from slm_client.redis_server import free_port
from slm_jobs.callback_schemas import DueDelivery, Outcome
from slm_jobs.lookups import Resolve, resolve
from slm_jobs.settings import Settings
from tests.slm_jobs.hostile_urls import HOSTILE
from tests.worker.callback_receiver import (
    SECRET,
    Answer,
    Receiver,
    Request,
    due_delivery,
    hangs,
    receiving,
    resets,
    says,
    sequence,
    status,
)
from tests.worker.name_server import name_server
from worker.callbacks import delivery
from worker.callbacks.delivery import Sender

SCHEDULE = (0.0, 5.0, 300.0)
OTHER_SECRET = "whsec_" + "b3RoZXI" * 8
PEM = Path(__file__).with_name("hooks.pem")


def sender(
    *,
    timeout: float = 5.0,
    connect: float = 5.0,
    resolve: Resolve = resolve,
    tls: ssl.SSLContext | None = None,
) -> Sender:
    settings = Settings(
        callback_schedule_seconds=SCHEDULE,
        callback_timeout_seconds=timeout,
        callback_connect_timeout_seconds=connect,
    )
    return Sender(settings, resolver=lambda _key: resolve, tls=tls or usual_tls())


@cache
def usual_tls() -> ssl.SSLContext:
    return httpcore.default_ssl_context()  # takes a while


def answers(*addresses: str | Sequence[str] | OSError) -> Resolve:
    """A name server that says something else each time; the last for ever."""
    left = list(addresses)

    async def resolve(host: str, port: int) -> list[str]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, OSError):
            raise answer
        return [answer] if isinstance(answer, str) else list(answer)

    return resolve


def attempt(answer: Answer, *, timeout: float = 5.0, **changes: object) -> Outcome:
    return attempts(answer, timeout=timeout, **changes)[0]


def attempts(
    answer: Answer, *, timeout: float = 5.0, **changes: object
) -> tuple[Outcome, Receiver]:
    async def run() -> tuple[Outcome, Receiver]:
        async with receiving(answer) as receiver:
            outcome = await sender(timeout=timeout).attempt(due_delivery(receiver.url, **changes))
            return outcome, receiver

    return asyncio.run(run())


def test_what_is_sent() -> None:
    due = due_delivery("", secrets=(OTHER_SECRET, SECRET))
    before = datetime.now(UTC)
    outcome, receiver = attempts(status(204), secrets=(OTHER_SECRET, SECRET))
    [request] = receiver.requests

    assert (outcome.delivery_id, outcome.claim) == (due.id, 1)
    assert (outcome.delivered, outcome.next) == (True, None)
    assert (outcome.attempt.status, outcome.attempt.error) == (204, None)
    assert before <= outcome.attempt.at <= datetime.now(UTC)
    assert request.line == "POST /hook?token=hidden HTTP/1.1"
    assert request.body == due.payload
    headers = dict(request.headers)
    signatures = headers.pop("webhook-signature")
    assert re.fullmatch(r"v1,[A-Za-z0-9+/]{43}= v1,[A-Za-z0-9+/]{43}=", signatures)
    assert headers.pop("webhook-timestamp") == str(int(outcome.attempt.at.timestamp()))
    assert headers == {
        "host": f"127.0.0.1:{receiver.port}",
        "content-type": "application/json",
        "content-length": str(len(due.payload)),
        "user-agent": f"slm-jobs/{version('slm-jobs')}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
        "webhook-id": due.id,
    }
    for secret in (SECRET, OTHER_SECRET):
        verified = Webhook(secret).verify(request.body, request.headers)
        assert verified["data"] == {"text": "Füchse 🦊"}
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "bm9uZQ==").verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(request.body + b" ", request.headers)


def test_an_attempt_is_signed_anew_and_says_the_same() -> None:
    async def run() -> list[Request]:
        async with receiving(status(500)) as receiver:
            for tries in range(2):
                await sender().attempt(due_delivery(receiver.url, tries=tries))
            assert receiver.connections == 2  # none is kept for others
            return receiver.requests

    first, second = asyncio.run(run())
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


CHUNKED = "HTTP/1.1 500 Error\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "code", "error"),
    [
        (status(200), 200, None),
        (status(299), 299, None),
        (says("HTTP/1.0 200 OK\r\n\r\nfine"), 200, None),
        (says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\n\r\n"), 202, None),
        (says("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut"), 200, None),
        (status(301, "location: http://127.0.0.1:1/"), 301, "http_301"),
        (status(307, "location: http://127.0.0.1:1/"), 307, "http_307"),
        (
            says("HTTP/1.1 101 Upgrade\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
            None,
            "bad_response",
        ),
        (status(404), 404, "http_404"),
        (status(500), 500, "http_500"),
        (says(CHUNKED + "zz\r\nnonsense"), 500, "http_500"),
        (resets, None, "connection_lost"),
        (says(""), None, "connection_lost"),
        (says("HTTP/1.1 200 O"), None, "connection_lost"),
        (says("SSH-2.0-OpenSSH_9.9\r\n\r\n"), None, "bad_response"),
        (says("HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n"), None, "bad_response"),
        (says(b"\x00" * 200_000), None, "bad_response"),
    ],
)
def test_only_2xx_is_success(answer: Answer, code: int | None, error: str | None) -> None:
    outcome, receiver = attempts(answer)
    assert (outcome.attempt.status, outcome.attempt.error) == (code, error)
    assert outcome.delivered is (error is None)
    assert (outcome.next is None) is (error is None)
    assert receiver.connections == 1  # redirects are not followed


def test_a_receiver_that_hangs() -> None:
    outcome = attempt(hangs, timeout=0.2)
    assert (outcome.attempt.status, outcome.attempt.error) == (None, "timeout")
    assert outcome.attempt.duration_ms >= 200


def test_a_receiver_that_drips_its_head() -> None:
    async def drips(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.01)

    assert attempt(drips, timeout=0.3).attempt.error == "timeout"


@pytest.mark.parametrize(
    ("code", "timeout", "body_seconds"), [(200, 60, 0.2), (500, 60, 0.2), (200, 1.5, 2.0)]
)
def test_a_slow_body_makes_no_difference(
    code: int, timeout: float, body_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {code} OK\r\n\r\nthe beginning".encode())
        await writer.drain()
        await asyncio.Event().wait()

    monkeypatch.setattr(delivery, "_BODY_SECONDS", body_seconds)
    outcome = attempt(slow, timeout=timeout)
    assert outcome.delivered is (code == 200)
    assert (outcome.attempt.status, outcome.attempt.response) == (code, "the beginning")


def test_an_endless_body() -> None:
    async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 No\r\n\r\n")
        while True:
            writer.write("ü".encode() * 8_192)
            await writer.drain()

    outcome = attempt(endless)
    assert outcome.attempt.error == "http_400"
    assert outcome.attempt.response == "ü" * 512


def test_no_more_of_a_body_is_read_than_16_kib() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1_000
            yield "ü".encode() * 500

    answer = httpcore.Response(400, content=endless())
    assert asyncio.run(delivery._beginning(answer)) == "ü" * 512
    assert read == 17_000


def test_a_response_need_not_be_text() -> None:
    response = attempt(says(b"HTTP/1.1 400 No\r\n\r\n\xff\x00ok")).attempt.response
    assert response == "\ufffd\x00ok"


def test_the_schedule_and_its_end() -> None:
    for tries, pause in ((0, 5.0), (1, 300.0)):
        times = {attempt(status(500), tries=tries).next for _ in range(5)}
        assert len(times) > 1
        assert all(time is not None and pause <= time <= pause * 1.1 for time in times)
    last = attempt(status(500), tries=2)
    assert (last.next, last.delivered) == (None, False)
    assert attempt(status(500), tries=40).next is None  # of a schedule that was longer


def test_gone_is_gone() -> None:
    outcome = attempt(status(410))
    assert (outcome.next, outcome.delivered, outcome.attempt.error) == (None, False, "http_410")


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("0", 5, 5.5),
        ("120", 120, 132),
        (" 120 ", 120, 132),
        ("9" * 5_000, 86_400, 95_040),
        ("-5", 5, 5.5),
        ("1.5", 5, 5.5),
        ("soon", 5, 5.5),
        ("", 5, 5.5),
        ("²", 5, 5.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 5, 5.5),
        ("Wed, 21 Oct 2999 07:28:00 GMT", 86_400, 95_040),
        ("Wed, 21 Oct 2999 07:28:00 -0000", 86_400, 95_040),
        ("Wed, 99 Oct 2999 07:28:00 GMT", 5, 5.5),
    ],
)
def test_retry_after(code: int, value: str, least: float, most: float) -> None:
    outcome = attempt(says(f"HTTP/1.1 {code} Later\r\nRetry-After: {value}\r\n\r\n"))
    assert outcome.next is not None
    assert least <= outcome.next <= most


def test_retry_after_a_date() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    pause = attempt(status(503, f"Retry-After: {at}")).next
    assert pause is not None
    assert 60 < pause < 99.5


def test_retry_after_counts_for_busy_receivers_only_and_adds_no_attempt() -> None:
    assert (attempt(status(500, "Retry-After: 120")).next or 0) <= 5.5
    assert attempt(status(503, "Retry-After: 120"), tries=2).next is None


def test_every_error_is_documented() -> None:
    documented = (delivery.__doc__ or "").split("API:")[1]
    source = Path(delivery.__file__).read_text()
    codes = set(re.findall(r'"([a-z]+_[a-z]+|timeout)" (?:if|else)|_Answer\("(\w+)"', source))
    for code in {either for pair in codes for either in pair if either} | delivery.UNREACHABLE:
        assert f"    {code} " in documented


def test_what_cannot_be_read_is_our_own_mistake() -> None:
    outcome, receiver = attempts(status(200), payload=None)
    assert (outcome.attempt.error, outcome.delivered) == ("internal_error", False)
    assert outcome.next is not None  # it may be an older process that cannot
    assert receiver.connections == 0


def test_nothing_is_sent_for_a_revoked_key() -> None:
    outcome, receiver = attempts(status(200), revoked=True)
    assert (outcome.attempt.error, outcome.delivered) == ("key_revoked", False)
    assert outcome.next is None
    assert receiver.connections == 0


def test_what_cannot_be_sent_is_our_own_mistake(caplog: pytest.LogCaptureFixture) -> None:
    outcome = attempt(status(200), secrets=("whsec_",))
    assert outcome.attempt.error == "internal_error"
    assert outcome.next is not None
    assert "EmptyWebhookSecretError" in caplog.text


# Where it may go


def send(due: DueDelivery, **options: object) -> Outcome:
    return asyncio.run(sender(**options).attempt(due))  # type: ignore[arg-type]


def test_what_may_not_be_called_is_refused_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", pytest.fail)

    async def resolve(host: str, port: int) -> list[str]:
        raise AssertionError("a name was looked up")

    async def run() -> None:
        tested = sender(resolve=resolve)
        for url, _ in HOSTILE:
            outcome = await tested.attempt(due_delivery(url, allowed=()))
            assert outcome.attempt.error == "address_refused", url
            assert outcome.next is not None

    asyncio.run(run())


def test_a_name_that_leads_inside_is_refused() -> None:
    async def run() -> None:
        async with receiving(status(200)) as receiver:
            url = f"https://hooks.example.com:{receiver.port}/"
            due = due_delivery(url, allowed=("10.0.0.0/8", f"other.example.com:{receiver.port}"))
            outcome = await sender(resolve=answers("127.0.0.1")).attempt(due)
            assert outcome.attempt.error == "address_refused"
            assert receiver.connections == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["93.184.215.14", "127.0.0.1"],
        [*["93.184.215.14"] * 20, "127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
    ],
)
def test_every_address_must_be_public(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", pytest.fail)
    due = due_delivery("https://hooks.example.com/", allowed=())
    assert send(due, resolve=answers(addresses)).attempt.error == "address_refused"


def test_a_name_that_changes_meanwhile_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the second answer would lead to whatever listens here."""
    public, connected = "93.184.215.14", []
    connect = asyncio.BaseEventLoop.create_connection

    async def run() -> None:
        async with (
            name_server(public, "127.0.0.1") as names,
            receiving(status(200), tls=presenting([])) as receiver,
        ):

            async def create_connection(
                loop: asyncio.BaseEventLoop, factory: Any, host: str, port: int, **options: Any
            ) -> Any:
                """Whatever is called is the receiver."""
                connected.append(host)
                return await connect(loop, factory, "127.0.0.1", receiver.port, **options)

            monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", create_connection)
            tested = sender(resolve=names.resolve, tls=trusting())
            due = due_delivery("https://hooks.example.com/", allowed=())
            assert (await tested.attempt(due)).delivered
            assert names.asked == ["hooks.example.com"]
            assert (await tested.attempt(due)).attempt.error == "address_refused"
            assert names.asked == ["hooks.example.com"] * 2
            assert receiver.connections == 1
            assert connected == [public]

    asyncio.run(run())


def test_few_of_many_addresses_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = []

    async def create_connection(
        loop: object, factory: object, host: str, *_: Any, **__: Any
    ) -> Any:
        connected.append(host)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", create_connection)
    many = [f"93.184.215.{number}" for number in range(1, 200)]
    due = due_delivery("https://hooks.example.com/", allowed=())
    assert send(due, resolve=answers(many)).attempt.error == "connect_failed"
    assert connected == many[:4]


def test_the_connection_goes_to_the_checked_address_under_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        pytest.fail("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def run() -> None:
        async with receiving(status(200)) as receiver:
            due = due_delivery(f"http://receiver:{receiver.port}/", allowed=("receiver",))
            outcome = await sender(resolve=answers("127.0.0.1", OSError("again"))).attempt(due)
            assert outcome.delivered
            assert receiver.requests[0].headers["host"] == f"receiver:{receiver.port}"

    asyncio.run(run())


def test_ipv6_hosts_stand_in_brackets() -> None:
    async def run() -> None:
        try:
            async with receiving(status(200), host="::1") as receiver:
                due = due_delivery(f"http://[::1]:{receiver.port}/", allowed=("::1",))
                assert (await sender().attempt(due)).delivered
                assert receiver.requests[0].headers["host"] == f"[::1]:{receiver.port}"
        except OSError:
            pytest.skip("no IPv6 here")

    asyncio.run(run())


def test_the_next_address_is_tried() -> None:
    async def run() -> None:
        async with receiving(status(200)) as receiver:
            due = due_delivery(f"http://receiver:{receiver.port}/", allowed=("receiver",))
            found = answers(["127.0.0.2", "127.0.0.1"])
            assert (await sender(resolve=found).attempt(due)).delivered

    asyncio.run(run())


def test_nobody_there() -> None:
    outcome = send(due_delivery(f"http://127.0.0.1:{free_port()}/"))
    assert outcome.attempt.error == "connect_failed"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ([], "address_refused"),  # as if it had a private one
        (socket.gaierror(socket.EAI_NONAME, "no"), "address_refused"),
        (socket.gaierror(socket.EAI_AGAIN, "no"), "dns_failed"),
    ],
)
def test_no_such_name(answer: list[str] | OSError, error: str) -> None:
    due = due_delivery("https://hooks.example.com/", allowed=())
    assert send(due, resolve=answers(answer)).attempt.error == error


def test_names_are_looked_up_on_behalf_of_the_key() -> None:
    asked = []

    def resolver(key: str) -> Resolve:
        asked.append(key)
        return answers([])

    due = due_delivery("https://hooks.example.com/", allowed=(), lane="key1 hooks.example.com:443")
    tested = Sender(Settings(), resolver=resolver, tls=usual_tls())
    assert asyncio.run(tested.attempt(due)).attempt.error == "address_refused"
    assert asked == ["key1"]


def test_a_name_server_that_hangs() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    due = due_delivery("https://hooks.example.com/", allowed=())
    assert send(due, resolve=resolve, connect=0.1).attempt.error == "dns_failed"


def test_a_backlog_that_hangs() -> None:
    """It listens, and lets nobody in."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        outcome = send(due_delivery(url), connect=0.2)
    assert outcome.attempt.error == "connect_failed"
    assert 200 <= outcome.attempt.duration_ms < 4_000


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert attempt(status(200)).delivered


# TLS


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=PEM)


def presenting(names: list[str | None]) -> ssl.SSLContext:
    """A server's side; `names` gets what clients ask for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)

    def on_name(sock: object, name: str | None, context: object) -> None:
        names.append(name)

    context.sni_callback = on_name
    return context


def deliver_by_tls(
    host: str, tls: ssl.SSLContext | None
) -> tuple[Outcome, Receiver, list[str | None]]:
    names: list[str | None] = []

    async def run() -> tuple[Outcome, Receiver]:
        async with receiving(status(200), tls=presenting(names)) as receiver:
            due = due_delivery(f"https://{host}:{receiver.port}/", allowed=(host,))
            found = sender(resolve=answers("127.0.0.1"), tls=tls)
            return await found.attempt(due), receiver

    outcome, receiver = asyncio.run(run())
    return outcome, receiver, names


def test_tls_is_asked_for_the_name_in_the_url() -> None:
    outcome, receiver, names = deliver_by_tls("hooks.example.com", trusting())
    assert outcome.delivered
    assert names == ["hooks.example.com"]
    assert receiver.requests[0].headers["host"] == f"hooks.example.com:{receiver.port}"


@pytest.mark.parametrize(
    ("host", "trusted"), [("hooks.example.com", False), ("other.example.com", True)]
)
def test_certificates_are_checked(host: str, trusted: bool) -> None:
    outcome, receiver, _ = deliver_by_tls(host, trusting() if trusted else None)
    assert outcome.attempt.error == "tls_failed"
    assert receiver.requests == []


def test_no_tls_there() -> None:
    async def run() -> Outcome:
        ended = asyncio.Event()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()
            writer.close()
            await writer.wait_closed()
            ended.set()

        async with await asyncio.start_server(connected, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            outcome = await sender().attempt(due_delivery(f"https://127.0.0.1:{port}/"))
            await ended.wait()
            return outcome

    assert asyncio.run(run()).attempt.error == "tls_failed"


def test_other_attempts_go_on_beside_one_that_hangs() -> None:
    async def run() -> None:
        released = threading.Event()

        def blocked() -> list[str]:
            released.wait(60)
            return []

        async def resolve(host: str, port: int) -> list[str]:
            if host == "slow.example.com":
                return await asyncio.to_thread(blocked)
            return [host]

        async with receiving(sequence(hangs, status(200))) as receiver:
            courier = sender(timeout=60, connect=60, resolve=resolve)
            slow_name = due_delivery("https://slow.example.com/", allowed=())
            waiting = [
                asyncio.create_task(courier.attempt(each))
                for each in (due_delivery(receiver.url), slow_name)
            ]
            while not receiver.requests:
                await asyncio.sleep(0.01)
            assert (await courier.attempt(due_delivery(receiver.url))).delivered
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            released.set()

    asyncio.run(run())
