from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from slm_client import ApiError, Client, Row, ServiceUnreachable
from tests.slm_client.fake_service import AUTHORISED, KEY, FakeService, problem


@pytest.fixture
def slow(service: FakeService) -> FakeService:
    service.seconds = 0.2
    return service


def rows(count: int) -> list[Row]:
    return [Row(f"row-{number}", f"Story {number}") for number in range(count)]


def test_every_row_comes_once(client: Client, slow: FakeService) -> None:
    results = list(client.bulk(rows(24)))
    assert sorted(result.row.custom_id for result in results) == sorted(
        row.custom_id for row in rows(24)
    )
    assert all(result.error is None for result in results)
    assert next(result.line() for result in results if result.row == rows(5)[4]) == {
        "custom_id": "row-4",
        "prompt": "Story 4",
        "text": " and so on.",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }


def test_results_come_as_they_end(client: Client, slow: FakeService) -> None:
    began = time.monotonic()
    results = client.bulk(rows(32))  # 4 waves of 8 jobs
    next(results)
    assert time.monotonic() - began < 0.6
    assert len(list(results)) == 31


def test_plain_prompts_are_numbered(client: Client) -> None:
    lines = [result.line() for result in client.bulk(["Once", "Twice"])]
    assert [(line["custom_id"], line["prompt"]) for line in lines] == [
        ("1", "Once"),
        ("2", "Twice"),
    ]


def test_no_more_than_the_window_is_under_way(client: Client, slow: FakeService) -> None:
    taken = 0
    for _ in client.bulk(rows(9), window=3):
        taken += 1
        assert len(slow.jobs) <= taken + 2
    assert taken == 9


def test_failed_rows_do_not_stop_the_others(client: Client) -> None:
    prompts = ["fine", "REJECT", "FAIL", "EXPIRE", "fine too"]
    lines = {line["custom_id"]: line for line in (r.line() for r in client.bulk(prompts))}
    assert [("error" in lines[str(n)]) for n in range(1, 6)] == [False, True, True, True, False]
    error = {"code": "prompt_too_long", "message": "the prompt is too long"}
    assert lines["2"] == {"custom_id": "2", "prompt": "REJECT", "error": error}
    assert lines["3"]["error"] == {"code": "engine_error", "message": "the engine broke"}
    assert lines["4"]["error"]["code"] == "expired"


def test_seeds_count_up_by_row(client: Client, service: FakeService) -> None:
    list(client.bulk(rows(3), seed=7, max_tokens=5))
    assert [(job["body"]["seed"], job["body"]["max_tokens"]) for job in service.jobs.values()] == [
        (7, 5),
        (8, 5),
        (9, 5),
    ]


def test_without_a_seed_none_is_sent(client: Client, service: FakeService) -> None:
    list(client.bulk(rows(1), seed=None))
    assert service.jobs["job_1"]["body"]["seed"] is None


def test_polling_is_cheap(client: Client, service: FakeService) -> None:
    """8 running and 92 waiting jobs: little more than one request for each that ends."""
    service.seconds = 0.5
    results = client.bulk(rows(100), window=100)
    assert len([next(results) for _ in range(24)]) == 24
    assert service.count("GET") <= 24 * 1.3
    results.close()  # type: ignore[attr-defined]


def test_nobody_is_asked_often_while_nothing_ends(client: Client, service: FakeService) -> None:
    service.seconds = 3.5
    next(client.bulk(rows(20)))
    # After 1 and 2 more seconds the 8 running ones and the first waiting one; then the first.
    assert service.count("GET") <= 1 + 9 + 1 + 9 + 1


def test_a_slow_job_holds_up_nobody(client: Client, service: FakeService) -> None:
    def first_slow() -> Iterator[Row | str]:
        service.seconds = 30
        yield "slow"
        service.seconds = 0.01
        yield from rows(40)

    began = time.monotonic()
    results = client.bulk(first_slow(), window=5)
    ended = [next(results) for _ in range(12)]
    assert time.monotonic() - began < 8  # 3 times the window, each after a second
    assert "slow" not in [result.row.prompt for result in ended]
    results.close()  # type: ignore[attr-defined]


def test_a_service_that_does_not_wait_is_not_stormed(client: Client, service: FakeService) -> None:
    client.submit("Once")
    (job,) = service.jobs.values()
    job.update(start=time.monotonic() + 60, end=time.monotonic() + 61)
    waiting = service.view(job)
    results = client.bulk(["Twice"])
    service.next_answers.append((202, {}, waiting))
    service.next_answers.extend([(200, {}, waiting)] * 8)
    job.update(start=0.0, end=0.0)
    began = time.monotonic()
    assert next(results).error is None
    assert time.monotonic() - began >= 0.15


def test_short_jobs_are_not_slowed_down(client: Client, service: FakeService) -> None:
    began = time.monotonic()
    assert len(list(client.bulk(rows(200)))) == 200
    assert time.monotonic() - began < 2


def test_a_lost_answer_neither_loses_nor_doubles_a_row(
    client: Client, service: FakeService
) -> None:
    service.next_answers.extend(["lose", httpx.ReadError("reset")])
    assert [result.error for result in client.bulk(rows(2))] == [None, None]
    assert len(service.jobs) == 2


def test_a_job_that_the_service_forgot_is_a_failed_row(
    client: Client, service: FakeService
) -> None:
    service.next_answers.extend([service.answer("POST", "/jobs", {"prompt": "x"}, AUTHORISED)])
    service.jobs.clear()
    (result,) = client.bulk(["x"])
    assert result.line()["error"]["code"] == "not_found"


def test_trouble_with_the_service_ends_the_run(service: FakeService) -> None:
    with Client("http://fake", KEY, retry_for=0.1, transport=service.transport()) as client:
        service.next_answers.append(problem(401, "unauthorized", "which key?"))
        with pytest.raises(ApiError, match="unauthorized"):
            list(client.bulk(rows(2)))
        service.next_answers.extend([httpx.ConnectError("refused")] * 9)
        with pytest.raises(ServiceUnreachable):
            list(client.bulk(rows(2)))


def test_wrong_use_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="window"):
        list(client.bulk(["x"], window=0))
    with pytest.raises(ValueError, match="n must be 1"):
        list(client.bulk(["x"], n=2))
