"""A training run: steps, evaluations, checkpoints and states, until its end or a signal.

Into its folder go the best checkpoint so far, the newest one as `last/`, and the `state/`.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from slm_core import save_checkpoint
from slm_core.checkpoint import CONFIG, WEIGHTS
from slm_core.tokenizer import Tokenizer
from training.batches import Batches, Position
from training.evaluator import Evaluator, Measured
from training.learner import Learner
from training.machine import Machine
from training.optim import learning_rate_fraction
from training.progress import Evaluation, Progress
from training.ranks import Ranks
from training.recipe import Recipe
from training.run import LAST, STATE, Run
from training.start import Start
from training.state import State, StateError, save_state
from training.stopping import Interrupted, Stop
from training.tokens import split_documents

_MEMORY = 0.98  # of the running mean of the training loss, per step; less at the start


class Diverged(Exception):
    """The loss or its gradient became infinite or NaN."""


@dataclass
class Standing:
    """How far a run is.

    Attributes:
        step: optimizer steps made.
        seconds: since it began, without those between a stop and going on.
        train_loss: a running mean over the last steps.
        evaluated: the last step that was evaluated.
        best_loss: the least validation loss, and `best_step`, where it was.
        epoch: of the next window, which is `window` of it.
    """

    step: int = 0
    seconds: float = 0.0
    train_loss: float | None = None
    evaluated: int = -1
    best_loss: float | None = None
    best_step: int = 0
    epoch: int = 0
    window: int = 0


class Trainer:
    """Everything that a run computes. `start` is that of `run`.

    Raises ValueError where recipe, data and state do not fit together.
    """

    def __init__(
        self,
        run: Run,
        start: Start,
        machine: Machine,
        ranks: Ranks,
        stop: Stop,
        progress: Progress,
    ) -> None:
        recipe, data, state = run.recipe, run.data, run.state
        if recipe.batch < recipe.accumulate * ranks.world:
            raise ValueError(
                f"a batch of {recipe.batch} cannot be cut into {recipe.accumulate} micro-batches "
                f"for each of {ranks.world} ranks"
            )
        self._run, self._recipe, self._start = run, recipe, start
        self._machine, self._ranks, self._stop, self._progress = machine, ranks, stop, progress
        self.at = Standing(**state.facts["standing"]) if state else Standing()
        if not state and not recipe.init_from:
            self.at.evaluated = 0  # random weights need no measuring
        time_ = start.config.context_length
        self._step_tokens = recipe.batch * time_
        self.total_steps = _total_steps(recipe, len(data.train) / self._step_tokens)
        self._evaluator = Evaluator(
            recipe,
            start,
            machine,
            split_documents(data.val),
            tokens_at_once=self._step_tokens // recipe.accumulate // ranks.world,
        )
        self._learner = Learner(recipe, start.model, start.vocabulary, machine, ranks)
        if state:
            self._learner.load(state.tensors, state.facts["learner"])
        self._batches = Batches(
            data.train,
            start.vocabulary.encode,
            eos=Tokenizer().eos_id,
            batch=recipe.batch,
            time=time_,
            seed=recipe.seed,
            position=Position(self.at.epoch, self.at.window),
        )
        self._saved = (self.at.step, self.at.evaluated) if state else None
        self._stopping = False
        self._began = math.nan
        self._meter = _Meter()

    @property
    def finished(self) -> bool:
        return self._done(self.at.step) >= 1.0

    def run(self) -> bool:
        """To the end, or until a signal: then False. Either way the state is saved.

        Raises Diverged, StateError and RankLost; then the last saved state holds.
        """
        self._began = time.monotonic() - self.at.seconds
        while True:
            if self._evaluation_is_due():
                self._evaluate()
                self._save()
            if self._stopping or self.finished:
                self._save()
                return not self._stopping
            self._step()
            if self.at.step % self._recipe.save_every == 0 and not self._evaluation_is_due():
                self._save()

    def summary(self) -> dict[str, Any]:
        """Of a run that is over: the best checkpoint, measured on all validation documents.

        Raises Interrupted, if a signal comes meanwhile, and CheckpointError.
        """
        measured = self._evaluator.measure_all(self._run.out, self._stop.check)
        return {"step": self.at.best_step, "seconds": round(self.at.seconds, 1), **measured}

    def _done(self, steps: float) -> float:
        """How much of the run `steps` are, or the time that they took."""
        minutes = self._recipe.minutes
        of_steps = steps / self.total_steps if self.total_steps else 0.0
        of_time = self.at.seconds / 60 / minutes if minutes else 0.0
        return min(1.0, max(of_steps, of_time))

    def _step(self) -> None:
        at, ranks = self.at, self._ranks
        begun = time.monotonic()
        # All chance in a step hangs on its number alone: a state need not hold generators.
        self._machine.seed(_drawn(self._recipe.seed, at.step, ranks.rank))
        rate = learning_rate_fraction(self._done(at.step + 0.5), self._recipe)
        values = self._learner.step(self._batches.next(), rate, at.step + 1)
        loss, norm = self._agree(values)
        if not math.isfinite(loss) or not (math.isfinite(norm) or self._learner.may_overflow):
            raise Diverged(f"the loss or its gradient became infinite or NaN at step {at.step + 1}")
        memory = min(_MEMORY, (1 + at.step) / (10 + at.step))
        mean = loss if at.train_loss is None else at.train_loss
        at.train_loss = memory * mean + (1 - memory) * loss
        at.step += 1
        at.epoch, at.window = self._batches.position
        self._meter.add(self._step_tokens, time.monotonic() - begun)
        self._progress.step(self._done(at.step), at.step, at.train_loss, self._meter.rate)

    def _agree(self, values: torch.Tensor) -> list[float]:
        """`values`, summed over the ranks, which all take the leader's clock and any signal."""
        clock = time.monotonic() - self._began if self._ranks.leads else 0.0
        signalled = float(self._stop.signal is not None)
        *values_, stop, self.at.seconds = self._ranks.agree(values, signalled, clock)
        self._stopping = stop > 0
        return values_

    def _evaluation_is_due(self) -> bool:
        if self.at.step == self.at.evaluated:
            return False
        return self.finished or self.at.step % self._recipe.eval_every == 0

    def _evaluate(self) -> None:
        """Only the leader does; the others wait. A signal puts it off until after going on."""
        evaluated = True
        if self._ranks.leads:
            try:
                with self._learner.evaluated() as model:
                    measured = self._evaluator.measure(model, self._stop.check)
            except Interrupted:
                evaluated = False
            else:
                self._report(measured)
        self._agree(torch.zeros(0, device=self._machine.device))
        if evaluated:
            self.at.evaluated = self.at.step

    def _report(self, measured: Measured) -> None:
        at = self.at
        if not math.isfinite(measured.loss):
            raise Diverged(f"the validation loss became infinite or NaN at step {at.step}")
        best = at.best_loss is None or measured.loss < at.best_loss
        if best:
            at.best_loss, at.best_step = measured.loss, at.step
        self._save_checkpoint(measured, best=best)
        rate = learning_rate_fraction(self._done(at.step), self._recipe) * self._recipe.main_lr
        evaluation = Evaluation(
            step=at.step,
            tokens=at.step * self._step_tokens,
            seconds=round(time.monotonic() - self._began, 1),
            train_loss=None if at.train_loss is None else round(at.train_loss, 4),
            val_loss=round(measured.loss, 4),
            learning_rate=float(f"{rate:.4g}"),
            tokens_per_second=round(self._meter.rate),
            also={name: round(loss, 4) for name, loss in measured.also.items()},
        )
        self._progress.evaluation(evaluation, measured.samples, best=best)
        self._meter = _Meter(warm=at.step > 0)

    def _save_checkpoint(self, measured: Measured, *, best: bool) -> None:
        out = self._run.out
        try:
            save_checkpoint(measured.model, out / LAST, dtype=torch.bfloat16)
            for name in (WEIGHTS, CONFIG) if best else ():
                partial = out / f".{name}.partial"
                shutil.copyfile(out / LAST / name, partial)
                partial.replace(out / name)
        except (OSError, SafetensorError) as error:
            raise StateError(f"cannot save a checkpoint in {out}: {error}") from None

    def _save(self) -> None:
        now = (self.at.step, self.at.evaluated)
        if not self._ranks.leads or self._saved == now:
            return
        tensors = {**self._start.tensors(), **self._learner.tensors()}
        facts = {
            **self._run.identity,
            "config": self._start.config.to_dict(),
            "standing": asdict(self.at),
            "learner": self._learner.facts(),
        }
        save_state(self._run.out / STATE, State(self.at.step, tensors, facts))
        self._saved = now


class _Meter:
    """Tokens a second over steps, but for the first of a run, which compiles."""

    def __init__(self, *, warm: bool = False) -> None:
        self._warm = warm
        self._tokens, self._seconds = 0, 0.0

    def add(self, tokens: int, seconds: float) -> None:
        if self._warm:
            self._tokens += tokens
            self._seconds += seconds
        self._warm = True

    @property
    def rate(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0


def _total_steps(recipe: Recipe, steps_per_epoch: float) -> int | None:
    """How many steps a run has, unless only its time is known."""
    limits = [recipe.steps] if recipe.steps else []
    if recipe.epochs:
        limits.append(max(1, int(recipe.epochs * steps_per_epoch)))
    return min(limits) if limits else None


def _drawn(*key: int) -> int:
    """A number in [0, 2**63) that `key` alone decides."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
