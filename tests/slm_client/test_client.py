from __future__ import annotations

import time
from datetime import UTC

import httpx
import pytest

from slm_client import (
    ApiError,
    BadInput,
    Client,
    Job,
    JobFailed,
    JobTimeout,
    QueuePosition,
    ServiceUnreachable,
)
from slm_client.redis_server import free_port
from tests.slm_client.fake_http import Answer
from tests.slm_client.fake_service import AUTHORISED, KEY, FakeService, problem

OTHER = f"slm_{'b' * 10}_{'x' * 43}"

REFUSED = httpx.ConnectError("refused")
RESET = httpx.ReadError("reset")
BUSY = problem(503, "store_unavailable", "Redis does not answer")
FULL = problem(503, "queue_full", "too much waits")
NOT_READY = problem(503, "not_ready", "no worker is alive")
LIMITED = problem(429, "rate_limited", "later")


def test_submit_sends_what_was_given_and_nothing_else(client: Client, service: FakeService) -> None:
    job = client.submit("Once", max_tokens=5, top_k=None, metadata={"a": "b"})
    assert (job.status, job.ended, job.text, job.metadata) == ("queued", False, "", {"a": "b"})
    sent = {"prompt": "Once", "max_tokens": 5, "top_k": None, "metadata": {"a": "b"}}
    assert service.requests == [("POST", "/jobs", sent)]
    client.submit(template="animal", variables={"animal": "fox"}, priority=2)
    assert service.requests[1][2] == {
        "template": "animal",
        "variables": {"animal": "fox"},
        "priority": 2,
    }


def test_the_key_is_the_argument_or_the_environments(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = service.transport()
    monkeypatch.setenv("SLM_API_KEY", f" {KEY}\n")
    assert Client("http://fake", transport=transport).models()
    monkeypatch.setenv("SLM_API_KEY", OTHER)
    assert Client("http://fake", KEY, transport=transport).models()
    with pytest.raises(ApiError, match=r"401 unauthorised: .*key slm_bbbbbbbbbb_… is wrong") as e:
        Client("http://fake", transport=transport).models()
    assert "xxx" not in str(e.value)
    with pytest.raises(ApiError, match="401") as e:
        Client("http://fake", "my-other-secret", transport=transport).models()
    assert "my-other" not in str(e.value)
    monkeypatch.setenv("SLM_API_KEY", "")
    with pytest.raises(ApiError, match=r"401 .* No API key was sent: set SLM_API_KEY"):
        Client("http://fake", transport=transport).models()
    assert Client("http://fake", transport=transport).ready()


@pytest.mark.parametrize("key", ["two words", "kéy", "a\nb"])
def test_what_can_be_no_key_is_refused(key: str) -> None:
    with pytest.raises(BadInput, match="white space or odd"):
        Client("http://fake", key)


def test_what_only_an_admin_may_do(service: FakeService) -> None:
    service.tokens = {KEY: "user"}
    with (
        Client("http://fake", KEY, transport=service.transport()) as client,
        pytest.raises(ApiError, match=r"403 forbidden: this key is no admin's\. Another"),
    ):
        client.keys.list()


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


def test_waiting_is_one_request(client: Client, service: FakeService) -> None:
    service.seconds = 1.2
    began = time.monotonic()
    assert client.wait(client.submit("Once").id).succeeded
    assert 1.2 <= time.monotonic() - began < 2
    assert service.count("GET") == 1
    assert service.seen[-1].query == {"wait": "30"}


def test_generate_waits_where_it_submits(client: Client, service: FakeService) -> None:
    service.seconds = 0.3
    assert client.generate("Once").succeeded
    assert service.requests == [("POST", "/jobs", {"prompt": "Once"})]
    service.seconds = 1.5
    assert client.generate("Once", wait_for=2.9).succeeded  # 2 s there, then no whole second
    with pytest.raises(JobTimeout, match=r"still running after 1\.2 s"):
        client.generate("Once", wait_for=1.2)


def test_wait_gives_up(client: Client, service: FakeService) -> None:
    service.seconds = 60
    job = client.submit("Once")
    began = time.monotonic()
    with pytest.raises(JobTimeout, match=r"still running after 1\.3 s"):
        client.wait(job.id, timeout=1.3)
    assert 1.3 <= time.monotonic() - began < 2
    assert service.count("GET") <= 6


def test_waiting_where_the_service_does_not(client: Client, service: FakeService) -> None:
    """It asks ever less often, and not in a loop as fast as it can."""
    service.seconds = 60
    job = client.submit("Once")
    running = service.answer("GET", f"/jobs/{job.id}", None, AUTHORISED)
    service.next_answers.extend([running] * 99)
    with pytest.raises(JobTimeout):
        client.wait(job.id, timeout=0.5)
    assert 3 <= service.count("GET") <= 8


def test_cancel_and_delete(client: Client, service: FakeService) -> None:
    service.seconds = 60
    job = client.submit("Once")
    with pytest.raises(ApiError, match="409 job_not_ended"):
        client.delete(job.id)
    for _ in range(2):
        assert client.cancel(job.id).status == "cancelled"
    service.next_answers.append("lose")  # it was deleted, but nobody said so
    client.delete(job.id)
    with pytest.raises(ApiError, match="404"):
        client.get(job.id)
    with pytest.raises(ApiError, match="404"):
        client.delete(job.id)


def test_an_id_cannot_lead_elsewhere(client: Client, service: FakeService) -> None:
    with pytest.raises(ApiError, match="404"):
        client.delete("../admin/keys?x")
    assert service.seen[-1].path == "/jobs/..%2Fadmin%2Fkeys%3Fx"


def test_jobs_are_listed_over_pages(client: Client, service: FakeService) -> None:
    for prompt in ("a", "FAIL b", "c", "d", "FAIL e"):
        client.submit(prompt)
    assert [job.id for job in client.jobs()] == [f"job_{n}" for n in (5, 4, 3, 2, 1)]
    assert [job.id for job in client.jobs(status="succeeded")] == ["job_4", "job_3", "job_1"]
    before = service.count("GET")
    assert [job.id for job in client.jobs(limit=3)] == ["job_5", "job_4", "job_3"]
    assert service.count("GET") == before + 2
    assert next(client.jobs()).id == "job_5"  # no more pages than are read
    assert service.count("GET") == before + 3


def test_queued_jobs_tell_their_place(client: Client, service: FakeService) -> None:
    service.seconds = 60
    jobs = [client.submit("Once", priority=1) for _ in range(9)]
    job = client.get(jobs[-1].id)
    assert job.queue == QueuePosition(ahead=3, estimated_wait_seconds=2.5)
    assert (job.priority, job.attempt) == (1, 0)
    assert client.queue()[0]["waiting"] == 1200


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


def test_a_lost_answer_makes_no_second_job(client: Client, service: FakeService) -> None:
    service.next_answers.extend(["lose", RESET, (502, {}, None)])
    job = client.submit("Once")
    assert (job.id, service.count("POST"), len(service.jobs)) == ("job_1", 4, 1)
    assert len({request.headers["idempotency-key"] for request in service.seen}) == 1
    assert client.submit("Once").id == "job_2"  # the same again is another job


def test_a_lost_key_is_not_made_again(client: Client, service: FakeService) -> None:
    service.next_answers.append("lose")
    with pytest.raises(ServiceUnreachable, match="broke off"):
        client.keys.create("mine")
    assert len(service.keys) == 1


@pytest.mark.parametrize("trouble", [BUSY, (503, {}, None), (502, {}, None), (504, {}, None)])
def test_a_key_that_may_have_been_made_is_not_made_again(
    client: Client, service: FakeService, trouble: Answer
) -> None:
    service.next_answers.append(trouble)
    with pytest.raises(ApiError, match=str(trouble[0])):
        client.keys.create("mine")
    assert service.count("POST") == 1


@pytest.mark.parametrize("trouble", [REFUSED, LIMITED, FULL, NOT_READY])
def test_a_key_that_was_not_made_is_asked_for_again(
    client: Client, service: FakeService, trouble: Answer | Exception
) -> None:
    service.next_answers.append(trouble)
    client.keys.create("mine")
    assert (service.count("POST"), len(service.keys)) == (2, 1)


@pytest.mark.parametrize("trouble", [BUSY, RESET, (504, {}, None)])
def test_what_may_have_been_deleted_is_not_missed(
    client: Client, service: FakeService, trouble: Answer | Exception
) -> None:
    service.next_answers.append(trouble)
    client.delete("job_1")
    assert service.count("DELETE") == 2


def test_what_was_not_deleted_is_missed(client: Client, service: FakeService) -> None:
    service.next_answers.append(LIMITED)
    with pytest.raises(ApiError, match="404 not_found"):
        client.delete("job_1")


def test_keys(client: Client, service: FakeService) -> None:
    made = client.keys.create("mine", requests_per_minute=None, callback_hosts=["a.example"])
    assert service.requests[-1] == (
        "POST",
        "/admin/keys",
        {"name": "mine", "requests_per_minute": None, "callback_hosts": ["a.example"]},
    )
    assert made["token"].startswith("slm_")
    (listed,) = client.keys.list()
    assert (listed["name"], listed["requests_per_minute"]) == ("mine", None)
    assert "token" not in listed
    assert client.keys.rotate(made["id"])["token"] != made["token"]
    client.keys.revoke(made["id"])
    assert client.keys.list()[0]["revoked_at"]


def test_retry_after_is_obeyed(client: Client, service: FakeService) -> None:
    service.next_answers.append(problem(429, "rate_limited", "later", {"Retry-After": "1"}))
    began = time.monotonic()
    client.submit("Once")
    assert time.monotonic() - began >= 1


def test_patience_ends(service: FakeService) -> None:
    with Client("http://fake", KEY, retry_for=0.3, transport=service.transport()) as client:
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
    with service.served() as url, Client(url + "/", KEY) as client:
        assert client.ready()
        assert [model["name"] for model in client.models()] == ["tiny"]
        assert client.generate("Once").succeeded
        service.is_ready = False
        assert not client.ready()


def test_fields_of_a_later_version_do_no_harm(service: FakeService) -> None:
    with Client("http://fake", KEY, transport=service.transport()) as client:
        document = {**client.submit("Once").raw, "mood": "good"}
    assert Job.from_json(document).raw["mood"] == "good"
