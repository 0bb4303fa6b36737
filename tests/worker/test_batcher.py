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
from worker.batcher import ContinuousBatcher
from worker.submission import EngineFault, EngineLost, HandedBack, Request, Submission

MODEL = "m"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def batcher(engine: FakeEngine) -> Iterator[ContinuousBatcher]:
    batcher = ContinuousBatcher({MODEL: lambda: engine})
    batcher.start()
    yield batcher
    batcher.stop()


def request(prompt: str, seed: int = 0, max_tokens: int = 5) -> Request:
    return prompt, SamplingParams(max_tokens=max_tokens, seed=seed)


def texts(submission: Submission) -> list[str]:
    return [completion.text for completion in submission.future.result(timeout=10)]


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
        results[i] = texts(batcher.submit(MODEL, [request(f"p{i}", i, 1 + i % 7)]))

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
    assert texts(batcher.submit(MODEL, requests)) == ["slow#1", "fast#2", "middling#3"]


def test_a_refused_request_fails_its_group_only(batcher: ContinuousBatcher) -> None:
    mate = batcher.submit(MODEL, [request("mate", max_tokens=50)])
    bad = batcher.submit(MODEL, [request("good"), request("long")])
    with pytest.raises(PromptTooLong):
        bad.future.result(timeout=10)
    assert texts(mate) == ["mate#0"]


def test_a_fault_takes_no_batch_mates_along(batcher: ContinuousBatcher, engine: FakeEngine) -> None:
    mates = [batcher.submit(MODEL, [request(f"mate{i}", i, 30)]) for i in range(5)]
    until(lambda: engine.steps > 2)
    bad = batcher.submit(MODEL, [request("boom")])
    with pytest.raises(EngineFault, match="device says no"):
        bad.future.result(timeout=10)
    assert [texts(mate) for mate in mates] == [[f"mate{i}#{i}"] for i in range(5)]
    assert texts(batcher.submit(MODEL, [request("after")])) == ["after#0"]


def test_dropping_frees_the_engine(batcher: ContinuousBatcher, engine: FakeEngine) -> None:
    held = batcher.submit(MODEL, [request("hold"), request("hold")])
    until(lambda: len(engine.live) == 2)
    held.drop()
    until(lambda: not engine.live)
    with pytest.raises(CancelledError):
        held.future.result(timeout=1)
    assert texts(batcher.submit(MODEL, [request("next")])) == ["next#0"]


def test_stopping_hands_back_what_runs_and_what_waits(
    batcher: ContinuousBatcher, engine: FakeEngine
) -> None:
    running = batcher.submit(MODEL, [request("hold")])
    until(lambda: engine.steps > 0)
    batcher.stop()
    late = batcher.submit(MODEL, [request("late")])
    for submission in (running, late):
        with pytest.raises(HandedBack):
            submission.future.result(timeout=1)


def test_no_future_is_left_unsettled_when_stopping_amid_submissions(engine: FakeEngine) -> None:
    batcher = ContinuousBatcher({MODEL: lambda: engine})
    batcher.start()
    submissions: list[Submission] = []

    def submit() -> None:
        submissions.extend(batcher.submit(MODEL, [request(f"p{i}")]) for i in range(300))

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.01)
    batcher.stop()
    for thread in threads:
        thread.join()
    outcomes = [submission.future.exception(timeout=5) for submission in submissions]
    assert len(outcomes) == 1200
    assert all(o is None or isinstance(o, HandedBack) for o in outcomes)


def test_an_idle_batcher_does_not_spin(batcher: ContinuousBatcher, engine: FakeEngine) -> None:
    assert texts(batcher.submit(MODEL, [request("one", max_tokens=3)])) == ["one#0"]
    steps = engine.steps
    time.sleep(0.05)
    assert engine.steps == steps == 3


def test_new_work_waits_for_halves_not_for_all_suspects_one_by_one(
    batcher: ContinuousBatcher, engine: FakeEngine
) -> None:
    mates = [batcher.submit(MODEL, [request(f"m{i}", i, 40)]) for i in range(32)]
    until(lambda: len(engine.live) == 32)
    bad = batcher.submit(MODEL, [request("boom")])
    with pytest.raises(EngineFault):
        bad.future.result(timeout=10)
    faulted = engine.steps
    new = batcher.submit(MODEL, [request("new", max_tokens=1)])
    assert texts(new) == ["new#0"]
    assert engine.steps - faulted < 40 * 8  # a batch for each halving, not 32 runs alone
    assert [texts(mate) for mate in mates] == [[f"m{i}#{i}"] for i in range(32)]


def test_suspects_can_be_dropped(batcher: ContinuousBatcher, engine: FakeEngine) -> None:
    held = batcher.submit(MODEL, [request("hold")])
    until(lambda: engine.live)
    bad = batcher.submit(MODEL, [request("boom")])
    until(lambda: len(engine.added) == 3)  # the fault was in both; the first half runs again
    held.drop()
    with pytest.raises(EngineFault):
        bad.future.result(timeout=10)
    assert texts(batcher.submit(MODEL, [request("next")])) == ["next#0"]


def test_a_hung_or_dead_engine_is_noticed(
    batcher: ContinuousBatcher, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batcher.stalled_for() == 0.0
    assert texts(batcher.submit(MODEL, [request("one")])) == ["one#0"]
    until(lambda: batcher.stalled_for() == 0.0)
    resume = threading.Event()
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (resume.wait(10), step())[1])
    slow = batcher.submit(MODEL, [request("slow", max_tokens=1)])
    until(lambda: batcher.stalled_for() > 0.1)
    resume.set()
    assert texts(slow) == ["slow#0"]


def test_where_no_reset_helps_the_engine_is_lost(
    batcher: ContinuousBatcher, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise RuntimeError("reset failed, too")

    monkeypatch.setattr(engine, "reset", die)
    for prompt, outcome in (("boom", EngineLost), ("later", HandedBack)):
        with pytest.raises(outcome):
            batcher.submit(MODEL, [request(prompt), request(prompt)]).future.result(timeout=5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_thread_dies_its_work_is_handed_back(
    batcher: ContinuousBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mistake of ours."""
    monkeypatch.setattr(batcher._lanes[MODEL], "step", lambda: 1 / 0)
    for prompt in ("a", "later"):
        with pytest.raises(HandedBack):
            batcher.submit(MODEL, [request(prompt), request(prompt)]).future.result(timeout=5)
    assert batcher.stalled_for() == math.inf


def test_an_engine_that_does_not_load_is_an_error_at_start() -> None:
    def load() -> FakeEngine:
        raise RuntimeError("no such device")

    with pytest.raises(RuntimeError, match="no such device"):
        ContinuousBatcher({MODEL: load}).start()


def test_a_real_engine_survives_logits_that_are_not_numbers() -> None:
    """Positions from 20 on are broken, so that only longer work is to blame."""
    model = random_model(GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=64))
    expected = Engine(model, slots=8).generate("a", params := SamplingParams(max_tokens=5, seed=1))
    with torch.no_grad():
        model.wpe.weight[20] = torch.nan
    batcher = ContinuousBatcher({MODEL: lambda: Engine(model, slots=8)})
    batcher.start()
    long = SamplingParams(max_tokens=40, seed=1, ignore_eos=True)
    for _ in range(3):
        bad = [batcher.submit(MODEL, [("a", long)]) for _ in range(4)]
        good = [batcher.submit(MODEL, [("a", params)]) for _ in range(12)]
        for submission in bad:
            with pytest.raises(EngineFault, match="not finite"):
                submission.future.result(timeout=10)
        assert [submission.future.result(timeout=10) for submission in good] == [expected] * 12
    batcher.stop()


def test_ending_keeps_the_partial_text(batcher: ContinuousBatcher, engine: FakeEngine) -> None:
    submission = batcher.submit(MODEL, [request("hold"), request("short", max_tokens=2)])
    until(lambda: engine.steps > 5)
    submission.end()
    held, short = submission.future.result(timeout=5)
    assert (held.finish_reason, short.finish_reason) == ("cancelled", "length")
    assert len(held.token_ids) > 5
    assert not engine.live
    submission.end()  # in vain
    assert texts(batcher.submit(MODEL, [request("next")])) == ["next#0"]


def test_what_ends_before_it_came_to_the_engine_ends_at_once(
    batcher: ContinuousBatcher, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume = threading.Event()
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (resume.wait(10), step())[1])
    batcher.submit(MODEL, [request("mate")])
    until(lambda: engine.added)
    late = batcher.submit(MODEL, [request("hold")])
    late.end()
    resume.set()
    [completion] = late.future.result(timeout=5)
    assert completion.finish_reason == "cancelled"
    assert len(completion.token_ids) == 1


def test_tokens_are_heard_of_and_again_after_a_fault(
    batcher: ContinuousBatcher, engine: FakeEngine
) -> None:
    heard: list[tuple[int, int, int]] = []
    two = [request("a", max_tokens=20), request("b", max_tokens=3)]
    streamed = batcher.submit(MODEL, two, on_token=lambda *token: heard.append(token))
    until(lambda: len(heard) > 8)
    bad = batcher.submit(MODEL, [request("boom")])
    assert texts(streamed) == ["a#0", "b#0"]
    with pytest.raises(EngineFault):
        bad.future.result(timeout=10)
    assert {(count, token) for output, count, token in heard if output == 0} == {
        (i, i) for i in range(1, 21)
    }
    assert [count for output, count, _ in heard if output == 1] == [1, 2, 3] * 2
    assert [count for output, count, _ in heard if output == 0].count(1) == 2


def test_priorities_reach_the_engine(batcher: ContinuousBatcher, engine: FakeEngine) -> None:
    texts(batcher.submit(MODEL, [request("a"), request("b")], priority=7))
    texts(batcher.submit(MODEL, [request("c")]))
    assert engine.priorities == [7, 7, 0]


class Several:
    """A batcher with the models `first` and `second`, on fakes, and `broken`, which never loads."""

    def __init__(self) -> None:
        self.first, self.second = FakeEngine(), FakeEngine(step_seconds=0.02)
        self.loaded: list[str] = []
        self.batcher = ContinuousBatcher(
            {
                "first": lambda: self._load("first", self.first),
                "second": lambda: self._load("second", self.second),
                "broken": lambda: self._load("broken", None),
            }
        )

    def _load(self, model: str, engine: FakeEngine | None) -> FakeEngine:
        self.loaded.append(model)
        if engine is None:
            raise OSError("no such checkpoint")
        return engine


@pytest.fixture
def several() -> Iterator[Several]:
    several = Several()
    several.batcher.start()
    yield several
    several.batcher.stop()


def test_the_first_model_is_loaded_at_the_start_the_others_on_first_use(several: Several) -> None:
    assert several.loaded == ["first"]
    for _ in range(2):
        assert texts(several.batcher.submit("second", [request("a")])) == ["a#0"]
    assert several.loaded == ["first", "second"]
    assert texts(several.batcher.submit("first", [request("a")])) == ["a#0"]
    assert several.first.threads == several.second.threads
    assert len(several.first.threads) == 1


def test_a_model_that_does_not_load_fails_its_work_and_no_other(several: Several) -> None:
    mate = several.batcher.submit("first", [request("mate", max_tokens=50)])
    for _ in range(3):
        bad = several.batcher.submit("broken", [request("a")])
        with pytest.raises(EngineFault, match="model broken cannot be loaded: no such checkpoint"):
            bad.future.result(timeout=5)
    assert several.loaded.count("broken") == 1  # not again for a while
    assert texts(mate) == ["mate#0"]


def test_a_fault_stays_with_its_model(several: Several) -> None:
    mates = [several.batcher.submit("second", [request(f"m{i}", i)]) for i in range(3)]
    bad = several.batcher.submit("first", [request("boom")])
    with pytest.raises(EngineFault, match="device says no"):
        bad.future.result(timeout=5)
    assert [texts(mate) for mate in mates] == [[f"m{i}#{i}"] for i in range(3)]
    assert len(several.second.added) == 3  # none of them had to run again


def test_a_slow_model_takes_its_share_of_time_not_of_steps(several: Several) -> None:
    held = [several.batcher.submit(model, [request("hold")]) for model in ("first", "second")]
    until(lambda: several.second.steps >= 3)
    steps = several.first.steps, several.second.steps
    until(lambda: several.second.steps >= steps[1] + 10)
    assert several.first.steps - steps[0] > 40  # about 180 at 1 ms against 20 ms
    for submission in held:
        submission.drop()


def test_loading_is_no_stall_and_the_rate_is_of_busy_time(several: Several) -> None:
    resume, stalled = threading.Event(), []

    def load() -> FakeEngine:
        stalled.append(batcher.stalled_for())
        resume.wait(10)
        stalled.append(batcher.stalled_for())
        return FakeEngine(step_seconds=0.01)

    batcher = ContinuousBatcher({"first": FakeEngine, "late": load})
    batcher.start()
    assert batcher.rates() == {}
    late = batcher.submit("late", [request("a", max_tokens=30), request("b", max_tokens=30)])
    until(lambda: stalled)
    time.sleep(0.1)
    resume.set()
    assert texts(late) == ["a#0", "b#0"]
    assert stalled == [0.0, 0.0]
    assert 40 < batcher.rates()["late"] < 200  # two tokens in each 10 ms
    assert batcher.rates().keys() == {"late"}
    batcher.stop()
