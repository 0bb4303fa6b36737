"""How long a run is, in steps or by a clock, and which rates it has on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from slm_core import GPT, Tokenizer
from tests.training.runs import STORIES, TOY, log, train, write_data
from training.batches import Batches, Position
from training.evaluator import Check, Evaluator, Measured
from training.learner import Learner
from training.machine import choose_machine
from training.progress import Progress
from training.ranks import Ranks
from training.run import begin, go_on
from training.start import start_of
from training.stopping import Stop
from training.tokens import DataFolder
from training.trainer import Trainer

SETTINGS = {
    "preset": "tiny",
    "context": 16,
    "width": 32,
    "batch": 4,
    "compile": False,
    "precision": "fp32",
    "device": "cpu",
    "eval_documents": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("text") / "data", STORIES * 40, STORIES)


class Clock:
    """Seconds that pass as a machine would need them: 40 for the first step of a process, 1 for
    every other, 30 for an evaluation. `rates` are those of all steps."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.rates, self._cold = 1000.0, list[float](), True
        step, measure = Learner.step, Evaluator.measure

        def timed_step(
            learner: Learner, rows: NDArray[np.int64], rate: float, number: int
        ) -> Tensor:
            self.now += 40 if self._cold else 1
            self._cold = False
            self.rates.append(rate)
            return step(learner, rows, rate, number)

        def timed_measure(evaluator: Evaluator, model: GPT, check: Check) -> Measured:
            self.now += 30
            return measure(evaluator, model, check)

        patch.setattr(Learner, "step", timed_step)
        patch.setattr(Evaluator, "measure", timed_measure)

    def run(self, data: Path, out: Path, *, stop_after: int | None = None, **given: Any) -> Trainer:
        """A run, or the rest of one, in a process of its own."""
        self._cold = True
        self.now += 5000  # a pause
        run = (go_on if out.exists() else begin)(out, data, None, {**SETTINGS, **given})
        out.mkdir(exist_ok=True)
        stop, ranks = Stop(), Ranks()
        progress = Progress(out, Console(quiet=True))
        machine, start = choose_machine(run.recipe, ranks), start_of(run)
        trainer = Trainer(run, start, machine, ranks, stop, progress, clock=lambda: self.now)
        told = progress.step

        def tell(done: float, step: int, loss: float, rate: float) -> None:
            told(done, step, loss, rate)
            if step == stop_after:
                stop.signal = 15

        progress.step = tell  # type: ignore[method-assign]
        trainer.run()
        return trainer


def test_rates_follow_the_time_of_steps_and_the_clock_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    trainer = clock.run(data, tmp_path / "run", minutes=5.0, warmup=0.1, eval_every=50)
    # 300 s: 40 for the first step, 30 for each evaluation, at 50, 100 and 150, the rest for steps.
    assert trainer.at.step == 1 + 300 - 40 - 30 * 3
    assert trainer.at.seconds == pytest.approx(300 + 30)  # the last evaluation comes on top
    rates = clock.rates
    peak = rates.index(max(rates))
    assert 5 < peak < 30  # not over after the first step, which took 13 % of the time
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) > 0.95
    assert rates[-1] < 0.03
    assert log(tmp_path / "run")[-1]["learning_rate"] == 0


def test_a_run_by_the_clock_goes_on_as_if_it_had_never_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    clock.run(data, tmp_path / "run", minutes=5.0, eval_every=60, stop_after=40)
    before = clock.rates.copy()
    assert len(before) == 41  # a signal is heard within the next step
    trainer = clock.run(data, tmp_path / "run", minutes=5.0)
    after = clock.rates[41:]
    # The first step of the second process compiles again; its time is no progress, either.
    assert after[0] == pytest.approx(before[-1], abs=0.01)
    assert after[0] - after[1] < 0.2 * after[0]
    assert after == sorted(after, reverse=True)
    assert after[-1] < 0.03
    assert trainer.at.seconds == pytest.approx(300 + 30)


def test_an_epoch_is_every_window_once(data: Path, tmp_path: Path) -> None:
    result = train(f"{TOY} --epochs 2 --eval-every 1000", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    tokens = DataFolder.open(data).train
    batches = Batches(
        tokens,
        lambda ids, _: ids.astype(np.int64),
        eos=Tokenizer().eos_id,
        batch=4,
        time=16,
        seed=1,
        position=Position(0, 0),
    )
    assert batches.windows * 16 > 1.2 * len(tokens)  # windows that begin with a story overlap
    steps = 2 * batches.windows // 4
    assert log(tmp_path / "run")[-1]["step"] == steps
    epochs = f"{4 * steps / batches.windows:.3g} epochs"
    assert f"{steps} steps, {steps * 64:,} tokens, {epochs}" in " ".join(result.output.split())
