"""`client.callbacks`, and how callbacks are asked for."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
import pytest

from slm_client import ApiError, Attempt, Client, ServiceUnreachable
from tests.slm_client.fake_service import FakeService, problem

RESET = httpx.ReadError("reset")


def test_a_job_asks_for_callbacks(client: Client, service: FakeService) -> None:
    asked = {"callback_url": "https://example.org/hook", "callback_outputs": True}
    events = ["running", "succeeded"]
    client.submit(
        "Once",
        callback_url="https://example.org/hook",
        callback_events=events,
        callback_outputs=True,
    )
    assert service.requests[0][2] == {"prompt": "Once", **asked, "callback_events": events}


def test_a_batch_asks_for_callbacks(client: Client, service: FakeService) -> None:
    hook = "https://example.org/hook?a=b&c"
    client.batches.create(b"Once\n", format="txt", callback_url=hook, callback_events=["progress"])
    assert service.seen[0].query == {"callback_url": hook, "callback_events": "progress"}
    client.batches.create_rows(["Once"], callback_url=hook, callback_events=None)
    assert service.seen[1].body == {"rows": ["Once"], "callback_url": hook}


def test_a_refused_address(client: Client, service: FakeService) -> None:
    detail = "Write an https URL."
    service.next_answers.append(problem(422, "callback_url_refused", detail, reason="x"))
    with pytest.raises(
        ApiError, match=r"^422 callback_url_refused: Write an https URL\.$"
    ) as error:
        client.submit("Once", callback_url="http://example.org")
    assert (error.value.code, error.value.problem["reason"]) == ("callback_url_refused", "x")


def test_callbacks_of_a_job_and_of_a_batch(client: Client, service: FakeService) -> None:
    refused = {"status": 500, "error": "http_500", "response": "no\nway"}
    service.callbacks.put("job_1", "running", "delivered", {"status": 204})
    service.callbacks.put("job_1", "succeeded", "pending", {"error": "timeout"}, refused)
    service.callbacks.put("batch_1", "completed", "pending")
    running, succeeded = client.callbacks.of("job_1")
    assert (running.id, running.type, running.of) == ("job_1-running", "job.running", "job_1")
    assert (running.status, running.next_attempt_at) == ("delivered", None)
    assert (succeeded.status, succeeded.url) == ("pending", "https://example.org/hook")
    assert succeeded.created_at == datetime(2026, 11, 21, 12, 0, 0, 500_000, UTC)
    assert succeeded.next_attempt_at == datetime(2026, 11, 21, 12, 5, tzinfo=UTC)
    timeout, failed = succeeded.attempts
    assert (timeout.error, timeout.status, timeout.response) == ("timeout", None, "")
    at = datetime(2026, 11, 21, 12, 0, 2, tzinfo=UTC)
    assert failed == Attempt(at, 1200, 500, "http_500", "no\nway")
    assert succeeded.raw["attempts"][1]["error"] == "http_500"
    (completed,) = client.callbacks.of("batch_1")
    assert completed.attempts == ()
    assert client.callbacks.of("job_2") == []
    with pytest.raises(ApiError, match="404 job_not_found"):
        client.callbacks.of("nobody/../batch_1")
    assert service.seen[-1].path == "/jobs/nobody%2F..%2Fbatch_1/callbacks"


def test_replay(client: Client, service: FakeService) -> None:
    service.callbacks.put("batch_1", "running", "delivered", {"status": 200})
    service.callbacks.put("batch_1", "completed", "failed", {"error": "http_410", "status": 410})
    assert client.callbacks.replay("batch_1") == 2
    assert {delivery.status for delivery in client.callbacks.of("batch_1")} == {"pending"}
    with pytest.raises(ApiError, match="409 nothing_to_replay"):
        client.callbacks.replay("batch_1")


def test_those_that_were_given_up(client: Client, service: FakeService) -> None:
    for number in range(1, 6):
        service.callbacks.put(f"job_{number}", "failed", "failed")
    service.callbacks.put("job_6", "failed", "delivered")
    assert [delivery.of for delivery in client.callbacks.failed()] == [
        f"job_{number}" for number in (5, 4, 3, 2, 1)
    ]
    assert [delivery.of for delivery in client.callbacks.failed(limit=3)] == [
        f"job_{number}" for number in (5, 4, 3)
    ]


def test_secrets(client: Client, service: FakeService) -> None:
    (first,) = client.callbacks.secrets()
    assert (first.secret, first.expires_at) == (f"whsec_{'1' * 32}", None)
    assert "whsec" not in repr(first)  # it may end in a log
    current, before = client.callbacks.rotate_secret()
    assert service.seen[-1].body == {"overlap_seconds": 86_400}
    assert (current.secret, current.expires_at) == (f"whsec_{'2' * 32}", None)
    assert before.secret == first.secret
    assert before.expires_at == datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert len(client.callbacks.rotate_secret(overlap_seconds=0)) == 1


def test_a_rotation_whose_answer_is_lost_is_not_repeated(
    client: Client, service: FakeService
) -> None:
    service.next_answers.append("lose")
    with pytest.raises(ServiceUnreachable):
        client.callbacks.rotate_secret()
    assert len(client.callbacks.secrets()) == 2
    service.next_answers.append(RESET)
    assert len(client.callbacks.secrets()) == 2
