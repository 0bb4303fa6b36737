"""One optimizer step: what it does to a model, and all that it must remember for the next one.

Knows nothing of files, of evaluation or of how long a run is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slm_core import GPT
from training.machine import Machine, compiling
from training.optim import build_optimizers, set_learning_rate
from training.ranks import Ranks
from training.recipe import Recipe
from training.vocabulary import CompactVocabulary
from training.weights import WeightAverage, freeze


class Learner:
    """`model` over a compact `vocabulary`, with its optimizers and the average of its weights.

    Raises ValueError where the recipe freezes what is not there, or everything.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: GPT,
        vocabulary: CompactVocabulary,
        machine: Machine,
        ranks: Ranks,
    ) -> None:
        self.model = model.to(machine.device).train()
        freeze(self.model, recipe.freeze)
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizers = build_optimizers(self.model, recipe)
        self._average = WeightAverage(self.model, recipe.ema) if recipe.ema else None
        self._loss = torch.compile(vocabulary.loss) if recipe.compile else vocabulary.loss
        self._scaler = torch.amp.GradScaler(
            machine.device.type, enabled=machine.precision == "fp16"
        )
        self._recipe, self._machine, self._ranks = recipe, machine, ranks

    def step(self, rows: NDArray[np.int64], rate: float, number: int) -> Tensor:
        """Learns a batch of all ranks, [batch, time + 1], as step `number`, from 1, at `rate` times
        the peak rates.

        Returns [this rank's part of the mean loss, of the gradient's norm]: the sums over ranks are
        those of the whole batch. In fp16 a gradient that is not finite changes nothing but the
        scale, which may have been too high. In other precisions it ends the run anyway, so nothing
        here waits for the device. Raises CompilerFailed.
        """
        set_learning_rate(self._optimizers, rate)
        loss = torch.zeros((), device=self._machine.device)
        for part, share in self._ranks.share(rows, self._recipe.accumulate):
            both = torch.from_numpy(part).to(self._machine.device)
            ids, targets = both[:, :-1].contiguous(), both[:, 1:].contiguous()
            with compiling():
                with self._machine.autocast():
                    mean = self._loss(self.model, ids, targets)
                self._scaler.scale(mean * share).backward()  # type: ignore[no-untyped-call]
            loss += mean.detach() * share
        self._ranks.sum_gradients(self._trained)
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._recipe.clip or math.inf)
        # One answer for all: GradScaler.step would ask for each optimizer's own gradients, and one
        # whose own are finite would take in what clipping by an infinite norm has made of them.
        if not self._scaler.is_enabled() or norm.isfinite():
            for optimizer in self._optimizers:
                optimizer.step()
            if self._average:
                self._average.update(self.model, number)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._scaler.update()
        return torch.stack([loss, norm / self._ranks.world])

    @property
    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite is nothing but a scale that was too high."""
        return self._scaler.is_enabled() and self._scaler.get_scale() >= 1.0

    @contextmanager
    def evaluated(self) -> Iterator[GPT]:
        """The model to measure and save, in evaluation mode: the average where there is one."""
        if self._average:
            yield self._average.model
            return
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the next steps depend on. They are the learner's own, no copies."""
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if self._average:
            weights = self._average.model.state_dict()
            tensors |= {f"average.{name}": t for name, t in weights.items()}
        for i, optimizer in enumerate(self._optimizers):
            for parameter, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{parameter}.{key}": t for key, t in state.items()}
        return tensors

    def facts(self) -> dict[str, Any]:
        """The same of what is no tensor, as JSON."""
        return {"scaler": self._scaler.state_dict()}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """The inverse of `tensors` and `facts`. Raises ValueError where they do not fit."""
        try:
            self.model.load_state_dict(_within(tensors, "model."))
            if self._average:
                self._average.model.load_state_dict(_within(tensors, "average."))
            for i, optimizer in enumerate(self._optimizers):
                state: dict[int, dict[str, Tensor]] = {}
                for name, tensor in _within(tensors, f"optimizer.{i}.").items():
                    parameter, key = name.split(".")
                    state.setdefault(int(parameter), {})[key] = tensor.clone()
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": state, "param_groups": groups})
            if self._scaler.is_enabled() and facts["scaler"]:
                self._scaler.load_state_dict(facts["scaler"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"the state does not fit this run: {error}") from None


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
