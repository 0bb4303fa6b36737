from __future__ import annotations

import time
from datetime import UTC

import httpx
import pytest

from slm_client import ApiError, Client, Job, JobFailed, JobTimeout, ServiceUnreachable
from slm_client.redis_server import free_port
from tests.slm_client.fake_service import FakeService, problem

REFUSED = httpx.ConnectError("refused")
RESET = httpx.ReadError("reset")
BUSY = problem(503, "redis_unavailable", "Redis does not answer")


def test_submit_sends_what_was_given_and_nothing_else(client: Client, service: FakeService) -> None:
    job = client.submit("Once", max_tokens=5, top_k=None, metadata={"a": "b"})
    assert (job.status, job.ended, job.text, job.metadata) == ("queued", False, "", {"a": "b"})
    sent = {"prompt": "Once", "max_tokens": 5, "top_k": None, "metadata": {"a": "b"}}
    assert service.requests == [("POST", "/jobs", sent)]


def test_generate_waits_for_the_text(client: Client, service: FakeService) -> None:
    service.seconds = 0.05
    job = client.generate("Once")
    assert job.succeeded
    assert job.text == " and so on."
    assert job.usage is not None
    assert job.usage.total_tokens == 7
    assert job.finished_at is not None
    assert job.finished_at.tzinfo == UTC


@pytest.mark.parametrize(
    ("prompt", "status", "message"),
    [
        ("FAIL", "failed", "the engine broke"),
        ("EXPIRE", "expired", "the job is expired"),
        ("CANCEL", "cancelled", "the job is cancelled"),
    ],
)
def test_generate_raises_when_the_job_does_not_succeed(
    client: Client, prompt: str, status: str, message: str
) -> None:
    with pytest.raises(JobFailed, match=message) as caught:
        client.generate(prompt)
    assert caught.value.job.status == status
    assert client.get(caught.value.job.id).status == status  # get and wait do not raise


def test_wait_gives_up_but_asks_ever_less_often(client: Client, service: FakeService) -> None:
    service.seconds = 60
    job = client.submit("Once")
    with pytest.raises(JobTimeout, match=r"still running after 0\.5 s"):
        client.wait(job.id, timeout=0.5)
    assert 4 <= service.count("GET") <= 10


def test_errors_carry_the_problem(client: Client) -> None:
    with pytest.raises(ApiError, match="422 prompt_too_long: the prompt is too long") as caught:
        client.submit("REJECT")
    assert (caught.value.status, caught.value.code) == (422, "prompt_too_long")
    with pytest.raises(ApiError, match="404"):
        client.get("job_nobody_knows")


@pytest.mark.parametrize("status", [200, 301, 404, 500])
@pytest.mark.parametrize("body", ["<html>", "[]", '{"hello": 1}', "null"])
def test_something_else_at_the_address_is_said_so(status: int, body: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=body))
    with Client("http://fake", transport=transport) as client:
        for call in (lambda: client.get("x"), client.models, lambda: client.submit("x")):
            with pytest.raises(ApiError, match="is that our service"):
                call()


@pytest.mark.parametrize("trouble", [REFUSED, RESET, BUSY, (502, {}, None)])
def test_reading_is_retried(client: Client, service: FakeService, trouble: object) -> None:
    job = client.submit("Once")
    service.next_answers.extend([trouble, trouble])  # type: ignore[list-item]
    assert client.get(job.id).id == job.id


@pytest.mark.parametrize("trouble", [REFUSED, BUSY])
def test_a_job_that_was_not_taken_is_sent_again(
    client: Client, service: FakeService, trouble: object
) -> None:
    service.next_answers.append(trouble)  # type: ignore[arg-type]
    client.submit("Once")
    assert (service.count("POST"), len(service.jobs)) == (2, 1)


def test_a_job_that_may_have_been_taken_is_not_sent_again(
    client: Client, service: FakeService
) -> None:
    service.next_answers.append("lose")
    with pytest.raises(ServiceUnreachable, match="broke off"):
        client.submit("Once")
    assert len(service.jobs) == 1


def test_retry_after_is_obeyed(client: Client, service: FakeService) -> None:
    service.next_answers.append(problem(503, "busy", "later", {"Retry-After": "1"}))
    began = time.monotonic()
    client.submit("Once")
    assert time.monotonic() - began >= 1


def test_patience_ends(service: FakeService) -> None:
    with Client("http://fake", retry_for=0.3, transport=service.transport()) as client:
        service.next_answers.extend([BUSY] * 50)
        with pytest.raises(ApiError, match="Redis does not answer"):
            client.models()
        service.next_answers.clear()
        service.next_answers.append(problem(429, "limited", "later", {"Retry-After": "3600"}))
        with pytest.raises(ApiError, match="limited"):  # and not an hour later
            client.models()


def test_nobody_at_the_address() -> None:
    with Client(f"http://127.0.0.1:{free_port()}", retry_for=0.1) as client:
        assert client.ready() is False
        with pytest.raises(ServiceUnreachable, match="nothing answers at http://127"):
            client.models()
        with pytest.raises(ServiceUnreachable, match="is `slm up` running"):
            client.submit("Once")


@pytest.mark.parametrize("url", ["localhost:8000", "", "http://[::1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ServiceUnreachable, match="is no address"):
        Client(url)


def test_over_a_real_connection_and_past_proxies(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with service.served() as url, Client(url + "/") as client:
        assert client.ready()
        assert [model["name"] for model in client.models()] == ["tiny"]
        assert client.generate("Once").succeeded
        service.is_ready = False
        assert not client.ready()


def test_fields_of_a_later_version_do_no_harm(service: FakeService) -> None:
    with Client("http://fake", transport=service.transport()) as client:
        document = {**client.submit("Once").raw, "queue_position": 3}
    job = Job.from_json(document)
    assert job.raw["queue_position"] == 3
