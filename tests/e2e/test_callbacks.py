"""Callbacks through real processes: signed, repeated until they are taken, never lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from slm_client import ApiError, Client, Delivery
from slm_client.redis_server import free_port
from slm_client.stack import Stack, StackOptions
from tests.e2e.service import Service, until

pytestmark = pytest.mark.timeout(240)

EXAMPLE = Path(__file__).parents[2] / "examples" / "webhook_receiver.py"
SHORT: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 5}
LONG: dict[str, Any] = {"max_tokens": 450, "n": 8, "ignore_eos": True}
ANSWER_SECONDS = 2  # that a receiver may take
LAPSED_AFTER = ANSWER_SECONDS + 90  # seconds; then others deliver what a dead process had claimed


class Callback(NamedTuple):
    """As it came."""

    body: bytes
    headers: dict[str, str]  # by lower-case names

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> Any:
        return json.loads(self.body)

    def check(self, secret: str) -> None:
        """Raises WebhookVerificationError."""
        Webhook(secret).verify(self.body, self.headers)


class Inbox:
    """A receiver that answers what the test says, and keeps what came."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/hook?from=slm"
        self.status = 200
        self.answers = threading.Event()  # else it hangs
        self.answers.set()
        self.taken: list[Callback] = []  # answered with 2xx
        self.refused: list[Callback] = []

    def ids(self) -> list[str]:
        return [callback.id for callback in self.taken]

    def of(self, work_id: str, count: int = 1, timeout: float = 60.0) -> list[Callback]:
        """Those of a job or batch, once they are so many."""

        def found() -> list[Callback]:
            return [one for one in self.taken if one.id.startswith(work_id)]

        until(lambda: len(found()) >= count, f"{count} callbacks of {work_id} come", timeout)
        return found()

    @contextmanager
    def open(self) -> Iterator[None]:
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                taken = inbox.answers.is_set() and inbox.status < 300
                (inbox.taken if taken else inbox.refused).append(Callback(body, headers))
                if not inbox.answers.wait(60):
                    return
                self.send_response(inbox.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            self.answers.set()
            server.shutdown()
            thread.join()
            server.server_close()


class House(Service):
    """A service with a callback process that tries again soon."""

    callbacks: subprocess.Popen[bytes]

    def start(self, workers: int = 1) -> None:
        pauses = ",".join(["0", "0.2", "0.5", *["1"] * 60])
        self.env["SLM_CALLBACK_SCHEDULE_SECONDS"] = pauses
        self.env["SLM_CALLBACK_TIMEOUT_SECONDS"] = str(ANSWER_SECONDS)
        super().start(workers)
        self.callbacks = self.start_callbacks()

    def kill_callbacks(self) -> None:
        self.callbacks.send_signal(signal.SIGKILL)
        self.callbacks.wait()

    def secret(self) -> str:
        return self.client.callbacks.secrets()[0].secret


@pytest.fixture(scope="module")
def house(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    manifest = folder / "models.toml"
    manifest.write_text(f'[tiny]\ncheckpoint = "{checkpoint}"\n')
    with House(folder, manifest) as house:
        house.start()
        yield house


@pytest.fixture
def client(house: House) -> Client:
    return house.client


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    inbox = Inbox()
    with inbox.open():
        yield inbox


def settled(client: Client, work_id: str, status: str = "delivered") -> list[Delivery]:
    """Its callbacks, once they all stand so: a receiver has one before the service knows."""

    def stand() -> bool:
        return {delivery.status for delivery in client.callbacks.of(work_id)} == {status}

    until(stand, f"the callbacks of {work_id} are {status}")
    return client.callbacks.of(work_id)


def test_a_job_is_told(house: House, client: Client, inbox: Inbox) -> None:
    job = client.submit(**SHORT, callback_url=inbox.url, metadata={"order": "17"})
    (callback,) = inbox.of(job.id)
    callback.check(house.secret())
    with pytest.raises(WebhookVerificationError):
        callback.check("whsec_" + "A" * 44)
    assert callback.id == f"{job.id}-succeeded"
    assert callback.headers["content-type"] == "application/json"
    assert callback.headers["user-agent"].startswith("slm-jobs/")
    assert callback.headers["host"] == f"127.0.0.1:{inbox.port}"
    event, ended = callback.event, client.get(job.id)
    assert event.keys() == {"type", "timestamp", "data"}
    assert event["type"] == "job.succeeded"
    assert ended.finished_at
    assert datetime.fromisoformat(event["timestamp"]) == ended.finished_at
    data = event["data"]
    assert (data["id"], data["status"], data["model"]) == (job.id, "succeeded", "tiny")
    assert (data["usage"]["completion_tokens"], data["metadata"]) == (5, {"order": "17"})
    assert "outputs" not in data
    told = httpx.get(data["url"], headers=house.headers, trust_env=False)
    assert told.json()["id"] == job.id
    (delivery,) = settled(client, job.id)
    assert (delivery.id, delivery.type, delivery.url) == (callback.id, "job.succeeded", inbox.url)
    assert [attempt.status for attempt in delivery.attempts] == [200]


def test_a_job_is_told_of_what_was_asked_for(client: Client, inbox: Inbox) -> None:
    told = {"callback_url": inbox.url, "callback_events": ["running", "succeeded", "cancelled"]}
    job = client.generate(**SHORT, **told, callback_outputs=True)
    first, last = sorted(inbox.of(job.id, 2), key=lambda callback: callback.event["timestamp"])
    assert [first.event["type"], last.event["type"]] == ["job.running", "job.succeeded"]
    assert first.event["data"]["status"] == "running"
    assert not first.event["data"].get("outputs")  # yet
    assert [output["text"] for output in last.event["data"]["outputs"]] == [job.text]
    job = client.submit("Once upon", max_tokens=400, n=64, ignore_eos=True, **told)
    until(lambda: client.get(job.id).status == "running", "it runs")
    client.cancel(job.id)
    assert f"{job.id}-cancelled" in [one.id for one in inbox.of(job.id, 2)]


def test_a_batch_is_told(house: House, client: Client, inbox: Inbox) -> None:
    rows = [f"The fox number {number}" for number in range(40)]
    batch = client.batches.create_rows(
        rows,
        max_tokens=5,
        name="foxes",
        callback_url=inbox.url,
        callback_events=["running", "progress", "completed"],
    )
    ended = client.batches.wait(batch.id, timeout=60)
    deliveries = settled(client, batch.id)
    callbacks = inbox.of(batch.id, len(deliveries))
    for callback in callbacks:
        callback.check(house.secret())
    assert sorted(inbox.ids()) == sorted(delivery.id for delivery in deliveries)
    kinds = [delivery.type for delivery in deliveries]
    assert (kinds[0], kinds[-1]) == ("batch.running", "batch.completed")
    assert 2 <= kinds.count("batch.progress") <= 10
    (completed,) = [one.event for one in callbacks if one.event["type"] == "batch.completed"]
    data = completed["data"]
    assert (data["id"], data["status"], data["name"]) == (batch.id, "completed", "foxes")
    assert data["counts"]["succeeded"] == 40
    assert data["usage"]["completion_tokens"] == ended.usage.completion_tokens
    told = httpx.get(data["url"], headers=house.headers, trust_env=False)
    assert told.json()["counts"] == data["counts"]


def test_a_batch_from_a_file_is_told(client: Client, inbox: Inbox) -> None:
    told = ["completed", "cancelled"]  # both, of a query
    batch = client.batches.create(
        b"Once\nTwice\n",
        format="txt",
        max_tokens=5,
        callback_url=inbox.url,
        callback_events=told,
    )
    (callback,) = inbox.of(batch.id)
    assert callback.event["type"] == "batch.completed"


def test_a_receiver_that_is_down_gets_it_later(client: Client) -> None:
    inbox = Inbox()
    job = client.generate(**SHORT, callback_url=inbox.url)
    until(lambda: client.callbacks.of(job.id)[0].attempts, "it was tried in vain")
    with inbox.open():
        inbox.status = 500
        until(lambda: inbox.refused, "it was tried again")
        inbox.status = 204
        (callback,) = inbox.of(job.id)
        (delivery,) = settled(client, job.id)
    *failed, last = delivery.attempts
    assert {"connect_failed", "http_500"} <= {attempt.error for attempt in failed}
    assert (last.status, last.error) == (204, None)
    assert {one.id for one in inbox.refused} == {callback.id}
    assert {one.body for one in inbox.refused} == {callback.body}


def test_nothing_is_lost_whatever_dies(house: House, client: Client, inbox: Inbox) -> None:
    """Callbacks are due, and some are on their way, when the process and Redis are killed."""
    inbox.answers.clear()
    jobs = [client.submit(**SHORT, callback_url=inbox.url).id for _ in range(20)]
    until(lambda: inbox.refused, "the first are on their way")
    house.kill_callbacks()
    on_their_way = {one.id for one in inbox.refused}
    for job in jobs:
        assert client.wait(job).succeeded
    house.redis.kill()
    house.redis.start()
    until(client.ready, "the api has found Redis again")
    jobs += [client.submit(**SHORT, callback_url=inbox.url).id for _ in range(5)]
    inbox.answers.set()
    house.callbacks = house.start_callbacks()
    for job in jobs:
        callbacks = inbox.of(job, timeout=LAPSED_AFTER)
        assert {one.id for one in callbacks} == {f"{job}-succeeded"}
        settled(client, job)
    assert on_their_way <= set(inbox.ids())
    house.redis.kill()
    house.redis.start()
    until(client.ready, "the api has found Redis again")
    inbox.of(client.submit(**SHORT, callback_url=inbox.url).id)  # and it goes on by itself
    assert house.callbacks.poll() is None


def test_what_was_given_up_is_replayed(client: Client, inbox: Inbox) -> None:
    inbox.status = 410
    job = client.submit(**SHORT, callback_url=inbox.url)
    (delivery,) = settled(client, job.id, "failed")
    assert [attempt.status for attempt in delivery.attempts] == [410]
    assert next(client.callbacks.failed(limit=1)).id == delivery.id
    inbox.status = 200
    for count in (1, 2):  # given up, delivered
        assert client.callbacks.replay(job.id) == 1
        callbacks = inbox.of(job.id, count)
        settled(client, job.id)
    assert len({one.id for one in [*callbacks, *inbox.refused]}) == 1
    assert len({one.body for one in [*callbacks, *inbox.refused]}) == 1
    assert delivery.id not in [one.id for one in client.callbacks.failed()]


def test_a_secret_is_rotated(house: House, client: Client, inbox: Inbox) -> None:
    old = house.secret()
    new, before = client.callbacks.rotate_secret(overlap_seconds=3600)
    assert (before.secret, house.secret()) == (old, new.secret)
    (callback,) = inbox.of(client.submit(**SHORT, callback_url=inbox.url).id)
    callback.check(old)
    callback.check(new.secret)
    (newest,) = client.callbacks.rotate_secret(overlap_seconds=0)[:1]
    (callback,) = inbox.of(client.submit(**SHORT, callback_url=inbox.url).id)
    callback.check(newest.secret)
    with pytest.raises(WebhookVerificationError):
        callback.check(new.secret)


def test_other_keys_see_nothing(house: House, client: Client, inbox: Inbox) -> None:
    inbox.status = 410
    job = client.submit(**SHORT, callback_url=inbox.url)
    settled(client, job.id, "failed")
    token = client.keys.create("stranger")["token"]
    with Client(house.url, token) as stranger:
        with pytest.raises(ApiError, match="404 job_not_found"):
            stranger.callbacks.of(job.id)
        with pytest.raises(ApiError, match="404 job_not_found"):
            stranger.callbacks.replay(job.id)
        assert list(stranger.callbacks.failed()) == []
        assert stranger.callbacks.secrets() != client.callbacks.secrets()
        with pytest.raises(ApiError, match="422 callback_url_refused"):
            stranger.submit(**SHORT, callback_url=inbox.url)  # its key lists no hosts


def test_the_last_callbacks_go_out(
    checkpoint: Path, tmp_path: Path, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job still runs when `slm up` is stopped: it ends, and then it is told."""
    monkeypatch.setenv("SLM_DRAIN_SECONDS", "90")
    options = StackOptions(port=0, data_dir=tmp_path, model=checkpoint)
    with Stack(options) as stack, Client(stack.url, stack.api_key) as client:
        job = client.submit("Once", **LONG, callback_url=inbox.url)
        until(lambda: client.get(job.id).status == "running", "it runs")
    assert inbox.ids() == [f"{job.id}-succeeded"]


# The example


class Receiver:
    """`examples/webhook_receiver.py` as a process."""

    def __init__(self, folder: Path, secret: str) -> None:
        self._printed = folder / "receiver.log"
        env = {**os.environ, "SLM_CALLBACK_SECRET": secret, "PYTHONUNBUFFERED": "1"}
        with self._printed.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, EXAMPLE, "--port", "0"], env=env, stdout=out, stderr=out
            )
        until(lambda: "/\n" in self.text(), "the receiver listens")
        self.url = self.text().split()[-1]

    def text(self) -> str:
        return self._printed.read_text()

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        return httpx.post(self.url, content=body, headers=headers, trust_env=False).status_code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(10) == 0, self.text()


def signed(secret: str, body: bytes, age: float = 0, name: str = "job_1-done") -> dict[str, str]:
    """The headers with which the service would have sent it, `age` seconds ago."""
    moment = datetime.now(UTC) - timedelta(seconds=age)
    return {
        "webhook-id": name,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign(name, moment, body.decode()),
    }


@pytest.fixture
def receiver(house: House, tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(tmp_path, house.secret()) as receiver:
        yield receiver


def test_the_example_receives(house: House, client: Client, receiver: Receiver) -> None:
    url = receiver.url.replace("127.0.0.1", "localhost")
    job = client.submit(**SHORT, callback_url=url, callback_outputs=True)
    batch = client.batches.create_rows(["Once"], max_tokens=5, callback_url=url)
    settled(client, job.id)
    settled(client, batch.id)
    assert f"job.succeeded: {job.id} is succeeded; see {house.url}/jobs/{job.id}\n" in (
        receiver.text()
    )
    assert f"batch.completed: {batch.id} is completed; see {house.url}/batches/{batch.id}\n" in (
        receiver.text()
    )
    assert client.get(job.id).text in receiver.text()
    client.callbacks.replay(job.id)
    until(lambda: f"{job.id}-succeeded has come again\n" in receiver.text(), "it comes again")
    assert receiver.text().count(f"job.succeeded: {job.id}") == 1
    (delivery,) = settled(client, job.id)
    assert [attempt.status for attempt in delivery.attempts] == [200, 200]


def test_the_example_refuses(tmp_path: Path) -> None:
    secret = "whsec_" + "c2VjcmV0" * 5
    with Receiver(tmp_path, secret) as receiver:
        check_what_is_refused(receiver, secret)


def check_what_is_refused(receiver: Receiver, secret: str) -> None:
    data = {"id": "job_1", "status": "succeeded", "url": None}
    body = json.dumps({"type": "job.succeeded", "timestamp": "", "data": data}).encode()
    good = signed(secret, body)
    assert receiver.post(body, good) == 200
    assert receiver.post(body, good) == 200  # as the service repeats it: taken, and not handled
    assert receiver.text().count("job.succeeded: job_1") == 1
    assert "job_1-done has come again\n" in receiver.text()
    unsigned = {name: value for name, value in good.items() if name != "webhook-signature"}
    other = "whsec_" + "A" * 44
    refused: list[tuple[bytes, dict[str, str]]] = [
        (body.replace(b"succeeded", b"cancelled"), good),
        (body + b" ", good),
        (body, {**good, "webhook-id": "job_1-again"}),  # a replay in other clothes
        (body, {**good, "webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)}),
        (body, signed(secret, body, age=301, name="job_2-done")),
        (body, signed(secret, body, age=-310, name="job_3-done")),
        (body, signed(other, body, name="job_4-done")),
        (body, unsigned),
        (body, {}),
        (body, {**good, "webhook-signature": "v1"}),
        (body, {**good, "webhook-signature": "v1,###"}),
        (body, {**good, "webhook-signature": good["webhook-signature"].replace("v1,", "v2,")}),
        (body, {**good, "webhook-timestamp": "soon"}),
        (b"\xff", good),
        (b"no JSON", {**good, **signed(secret, b"no JSON", name="job_5-done")}),
    ]
    assert [receiver.post(*callback) for callback in refused] == [401] * len(refused)
    assert receiver.text().count("job.succeeded: ") == 1
    assert "Traceback" not in receiver.text()
    assert receiver.post(body, signed(secret, body, age=290, name="job_6-done")) == 200
    assert [announced(receiver, length) for length in ("99999999", "-1", None)] == [413, 413, 411]


def announced(receiver: Receiver, length: str | None) -> int:
    """The answer to so long a body, before any of it is sent."""
    connection = HTTPConnection(receiver.url.split("/")[2])
    connection.putrequest("POST", "/")
    if length:
        connection.putheader("content-length", length)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("secret", ["", "whsec_", "something else"])
def test_the_example_needs_a_secret(secret: str) -> None:
    command = [sys.executable, EXAMPLE, "--secret", secret]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "give it the secret of your API key, which `slm keys secret show` prints\n"
    )
