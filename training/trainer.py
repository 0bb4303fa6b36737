"""A training run: steps, evaluations, checkpoints and states, until its end or a signal.

Into its folder go the best checkpoint so far, the newest one as `last/`, and the `state/`.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
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
        trained: of these, those of steps (and of saving states between them), but for the first
            step of each process, which compiles.
        train_loss: a running mean over the last steps.
        evaluated: the last step that was evaluated.
        best_loss: the least validation loss, and `best_step`, where it was.
        epoch: of the next window, which is `window` of it.
    """

    step: int = 0
    seconds: float = 0.0
    trained: float = 0.0
    train_loss: float | None = None
    evaluated: int = -1
    best_loss: float | None = None
    best_step: int = 0
    epoch: int = 0
    window: int = 0


class Trainer:
    """Everything that a run computes. `start` is that of `run`, `clock` tells seconds.

    Raises ValueError where recipe, data and state do not fit together.

    Attributes:
        at: how far the run is.
        steps_per_epoch: how many take in every window once.
        total_steps: how many the run has; None where only its time is known.
    """

    def __init__(
        self,
        run: Run,
        start: Start,
        machine: Machine,
        ranks: Ranks,
        stop: Stop,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        recipe, data, state = run.recipe, run.data, run.state
        if recipe.batch < recipe.accumulate * ranks.world:
            raise ValueError(
                f"a batch of {recipe.batch} cannot be cut into {recipe.accumulate} micro-batches "
                f"for each of {ranks.world} ranks"
            )
        self._run, self._recipe, self._start = run, recipe, start
        self._machine, self._ranks, self._stop, self._progress = machine, ranks, stop, progress
        self._clock = clock
        self.at = Standing(**state.facts["standing"]) if state else Standing()
        if not state and not recipe.init_from:
            self.at.evaluated = 0  # random weights need no measuring
        self._step_tokens = recipe.batch * start.config.context_length
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
            time=start.config.context_length,
            seed=recipe.seed,
            position=Position(self.at.epoch, self.at.window),
        )
        self.steps_per_epoch = self._batches.windows / recipe.batch
        self.total_steps = _total_steps(recipe, self.steps_per_epoch)
        self._saved = (self.at.step, self.at.evaluated) if state else None
        self._stopping = False
        self._began = math.nan
        self._meter = _Meter()
        self._warm = False  # whether this process has made a step, which may take compiling

    @property
    def finished(self) -> bool:
        return self._done(self.at.step) >= 1.0

    @property
    def rate(self) -> float:
        """Of the next step, as a part of the peak rates."""
        return learning_rate_fraction(self._done(self.at.step + 0.5), self._recipe)

    def run(self) -> bool:
        """To the end, or until a signal: then False. Either way the state is saved.

        Raises Diverged, StateError, CompilerFailed and RankLost; then the last saved state holds.
        """
        self._began = self._clock() - self.at.seconds
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
        """How much of the run `steps` are, or the time that they took.

        Of time it is what was trained by what will have been, all other things like compiling and
        evaluations left out of both: of those a short run is full, and it would hardly warm up.
        """
        of_steps = steps / self.total_steps if self.total_steps else 0.0
        of_time = 0.0
        if self._recipe.minutes:
            left = 60 * self._recipe.minutes - self.at.seconds
            of_time = self.at.trained / (self.at.trained + left) if left > 0 else 1.0
        return min(1.0, max(of_steps, of_time))

    def _step(self) -> None:
        at, ranks = self.at, self._ranks
        began = at.seconds  # that all ranks agree on
        # All chance in a step hangs on its number alone: a state need not hold generators.
        self._machine.seed(_drawn(self._recipe.seed, at.step, ranks.rank))
        values = self._learner.step(self._batches.next(), self.rate, at.step + 1)
        loss, norm = self._agree(values)
        if not math.isfinite(loss) or not (math.isfinite(norm) or self._learner.may_overflow):
            raise Diverged(f"the loss or its gradient became infinite or NaN at step {at.step + 1}")
        memory = min(_MEMORY, (1 + at.step) / (10 + at.step))
        mean = loss if at.train_loss is None else at.train_loss
        at.train_loss = memory * mean + (1 - memory) * loss
        at.step += 1
        at.epoch, at.window = self._batches.position
        if self._warm:
            at.trained += at.seconds - began
            self._meter.add(self._step_tokens, at.seconds - began)
        self._warm = True
        self._progress.step(self._done(at.step), at.step, at.train_loss, self._meter.rate)

    def _agree(self, values: torch.Tensor) -> list[float]:
        """`values`, summed over the ranks, which all take the leader's clock and any signal."""
        clock = self._clock() - self._began if self._ranks.leads else 0.0
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
            seconds=round(self._clock() - self._began, 1),
            train_loss=None if at.train_loss is None else round(at.train_loss, 4),
            val_loss=round(measured.loss, 4),
            learning_rate=float(f"{rate:.4g}"),
            tokens_per_second=round(self._meter.rate),
            also={name: round(loss, 4) for name, loss in measured.also.items()},
        )
        self._progress.evaluation(evaluation, measured.samples, best=best)
        self._meter = _Meter()

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
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise Diverged(f"weights became infinite or NaN at step {self.at.step}")
        facts = {
            **self._run.identity,
            "config": self._start.config.to_dict(),
            "standing": asdict(self.at),
            "learner": self._learner.facts(),
        }
        save_state(self._run.out / STATE, State(self.at.step, tensors, facts))
        self._saved = now


class _Meter:
    """Tokens a second."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0, 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self._tokens += tokens
        self._seconds += seconds

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
