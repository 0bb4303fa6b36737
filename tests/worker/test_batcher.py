from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest
import torch

from slm_core import Engine, GPTConfig, SamplingParams
from slm_core.errors import PromptTooLong
from tests.slm_core.conftest import random_model
from tests.worker.fakes import FakeEngine
from worker.batcher import Completions, ContinuousBatcher, EngineFault, HandedBack, Request


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def batcher(engine: FakeEngine) -> Iterator[ContinuousBatcher]:
    batcher = ContinuousBatcher(lambda: engine)
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


def test_no_future_is_left_unsettled_when_stopping_amid_submissions(engine: FakeEngine) -> None:
    batcher = ContinuousBatcher(lambda: engine)
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


def test_new_work_waits_for_halves_not_for_all_suspects_one_by_one(
    batcher: ContinuousBatcher, engine: FakeEngine
) -> None:
    mates = [batcher.submit([request(f"m{i}", i, 40)]) for i in range(32)]
    until(lambda: len(engine.live) == 32)
    bad = batcher.submit([request("boom")])
    with pytest.raises(EngineFault):
        bad.result(timeout=10)
    faulted = engine.steps
    new = batcher.submit([request("new", max_tokens=1)])
    assert texts(new) == ["new#0"]
    assert engine.steps - faulted < 40 * 8  # a batch for each halving, not 32 runs alone
    assert [texts(mate) for mate in mates] == [[f"m{i}#{i}"] for i in range(32)]


def test_suspects_can_be_cancelled(batcher: ContinuousBatcher, engine: FakeEngine) -> None:
    held = batcher.submit([request("hold")])
    until(lambda: engine.live)
    bad = batcher.submit([request("boom")])
    until(lambda: len(engine.added) == 3)  # the fault was in both; the first half runs again
    assert held.cancel()
    with pytest.raises(EngineFault):
        bad.result(timeout=10)
    assert texts(batcher.submit([request("next")])) == ["next#0"]


def test_a_hung_or_dead_engine_is_noticed(
    batcher: ContinuousBatcher, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batcher.stalled_for() == 0.0
    assert texts(batcher.submit([request("one")])) == ["one#0"]
    until(lambda: batcher.stalled_for() == 0.0)
    resume = threading.Event()
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (resume.wait(10), step())[1])
    slow = batcher.submit([request("slow", max_tokens=1)])
    until(lambda: batcher.stalled_for() > 0.1)
    resume.set()
    assert texts(slow) == ["slow#0"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_thread_dies_its_work_is_handed_back(
    batcher: ContinuousBatcher, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise RuntimeError("reset failed, too")

    monkeypatch.setattr(engine, "reset", die)
    for prompt in ("boom", "later"):
        with pytest.raises(HandedBack):
            batcher.submit([request(prompt), request(prompt)]).result(timeout=5)
    assert batcher.stalled_for() == math.inf


def test_an_engine_that_does_not_load_is_an_error_at_start() -> None:
    def load() -> FakeEngine:
        raise RuntimeError("no such device")

    with pytest.raises(RuntimeError, match="no such device"):
        ContinuousBatcher(load).start()


def test_a_real_engine_survives_logits_that_are_not_numbers() -> None:
    """Positions from 20 on are broken, so that only longer work is to blame."""
    model = random_model(GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=64))
    expected = Engine(model, slots=8).generate("a", params := SamplingParams(max_tokens=5, seed=1))
    with torch.no_grad():
        model.wpe.weight[20] = torch.nan
    batcher = ContinuousBatcher(lambda: Engine(model, slots=8))
    batcher.start()
    long = SamplingParams(max_tokens=40, seed=1, ignore_eos=True)
    for _ in range(3):
        bad = [batcher.submit([("a", long)]) for _ in range(4)]
        good = [batcher.submit([("a", params)]) for _ in range(12)]
        for future in bad:
            with pytest.raises(EngineFault, match="not finite"):
                future.result(timeout=10)
        assert [future.result(timeout=10) for future in good] == [expected] * 12
    batcher.stop()
