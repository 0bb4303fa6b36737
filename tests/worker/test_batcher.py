from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from slm_core import SamplingParams
from slm_core.errors import PromptTooLong
from tests.worker.fakes import FakeEngine
from worker.batcher import Completions, ContinuousBatcher, EngineFault, HandedBack, Request


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def batcher(engine: FakeEngine) -> Iterator[ContinuousBatcher]:
    batcher = ContinuousBatcher(engine)
    batcher.start()
    yield batcher
    batcher.stop()


def request(prompt: str, seed: int = 0, max_tokens: int = 5) -> Request:
    return prompt, SamplingParams(max_tokens=max_tokens, seed=seed)


def texts(future: Completions) -> list[str]:
    return [completion.text for completion in future.result(timeout=10)]


def until(condition: object, timeout: float = 5.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.002)


def test_many_threads_share_one_engine_thread(
    batcher: ContinuousBatcher, engine: FakeEngine
) -> None:
    results: dict[int, list[str]] = {}

    def work(i: int) -> None:
        results[i] = texts(batcher.submit([request(f"p{i}", i, 1 + i % 7)]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [f"p{i}#{i}"] for i in range(64)}
    assert len(engine.threads) == 1
    assert engine.largest > 1


def test_a_group_settles_once_in_the_order_asked(batcher: ContinuousBatcher) -> None:
    requests = [request("slow", 1, 9), request("fast", 2, 1), request("middling", 3, 4)]
    assert texts(batcher.submit(requests)) == ["slow#1", "fast#2", "middling#3"]


def test_a_refused_request_fails_its_group_only(batcher: ContinuousBatcher) -> None:
    mate = batcher.submit([request("mate", max_tokens=50)])
    bad = batcher.submit([request("good"), request("long")])
    with pytest.raises(PromptTooLong):
        bad.result(timeout=10)
    assert texts(mate) == ["mate#0"]


def test_a_fault_takes_no_batch_mates_along(batcher: ContinuousBatcher, engine: FakeEngine) -> None:
    mates = [batcher.submit([request(f"mate{i}", i, 30)]) for i in range(5)]
    until(lambda: engine.steps > 2)
    bad = batcher.submit([request("boom")])
    with pytest.raises(EngineFault, match="device says no"):
        bad.result(timeout=10)
    assert [texts(mate) for mate in mates] == [[f"mate{i}#{i}"] for i in range(5)]
    assert texts(batcher.submit([request("after")])) == ["after#0"]


def test_cancelling_frees_the_engine(batcher: ContinuousBatcher, engine: FakeEngine) -> None:
    held = batcher.submit([request("hold"), request("hold")])
    until(lambda: len(engine.live) == 2)
    assert held.cancel()
    until(lambda: not engine.live)
    with pytest.raises(CancelledError):
        held.result(timeout=1)
    assert texts(batcher.submit([request("next")])) == ["next#0"]


def test_stopping_hands_back_what_runs_and_what_waits(
    batcher: ContinuousBatcher, engine: FakeEngine
) -> None:
    running = batcher.submit([request("hold")])
    until(lambda: engine.steps > 0)
    batcher.stop()
    late = batcher.submit([request("late")])
    for future in (running, late):
        with pytest.raises(HandedBack):
            future.result(timeout=1)
    assert not engine.has_work


def test_no_future_is_left_unsettled_when_stopping_amid_submissions(engine: FakeEngine) -> None:
    batcher = ContinuousBatcher(engine)
    batcher.start()
    futures: list[Completions] = []

    def submit() -> None:
        futures.extend(batcher.submit([request(f"p{i}")]) for i in range(300))

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.01)
    batcher.stop()
    for thread in threads:
        thread.join()
    outcomes = [future.exception(timeout=5) for future in futures]
    assert len(outcomes) == 1200
    assert all(o is None or isinstance(o, HandedBack) for o in outcomes)


def test_an_idle_batcher_does_not_spin(batcher: ContinuousBatcher, engine: FakeEngine) -> None:
    assert texts(batcher.submit([request("one", max_tokens=3)])) == ["one#0"]
    steps = engine.steps
    time.sleep(0.05)
    assert engine.steps == steps == 3
