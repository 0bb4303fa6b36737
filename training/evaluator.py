"""What is measured of a model in training: its loss on unseen documents, and samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm_core import GPT, Engine, load_checkpoint
from slm_core.tokenizer import Tokenizer
from training.documents import load as load_documents
from training.machine import Machine
from training.metrics import perplexity
from training.recipe import Recipe
from training.samples import Sample, Sampling, beginnings, generate
from training.start import Start
from training.validation import Validation, spread

_SAMPLES = 3
_SAMPLE_TOKENS = 120

Check = Callable[[], None]


@dataclass(frozen=True)
class Measured:
    """Losses in nats per token: on the validation text, and `also` on others by their names.
    `model` is the plain model that was measured, on the CPU."""

    loss: float
    also: dict[str, float]
    samples: list[Sample]
    model: GPT


class Evaluator:
    """The same documents, prompts and seeds for every evaluation of a run.

    Each method's `check` is called now and then, and may end it with an exception. Raises
    ValueError where a text or a prompt does not fit.
    """

    def __init__(
        self,
        recipe: Recipe,
        start: Start,
        machine: Machine,
        documents: Sequence[NDArray[np.uint16]],
        *,
        tokens_at_once: int,
    ) -> None:
        self._start, self._machine, self._seed = start, machine, recipe.seed
        self._tokens_at_once = tokens_at_once
        self._all = documents
        self._some = self._lay_out(spread(documents, recipe.eval_documents))
        self._elsewhere = {
            name: self._lay_out(spread(load_documents(Path(name)), recipe.eval_documents))
            for name in recipe.also_evaluate
        }
        context = start.config.context_length
        self._prompts = [Tokenizer().encode(prompt) for prompt in recipe.prompts]
        if any(not 0 < len(prompt) < context for prompt in self._prompts):
            raise ValueError(f"prompts: each must have 1 to {context - 1} tokens")
        if not self._prompts:
            self._prompts, _ = beginnings(
                documents, _SAMPLES, context_length=context, seed=recipe.seed
            )

    def measure(self, model: GPT, check: Check) -> Measured:
        """Of a compact model in evaluation mode, in the precision of training."""
        with self._machine.autocast():
            loss = self._some.loss(model, check)
            also = {name: text.loss(model, check) for name, text in self._elsewhere.items()}
        full = self._start.vocabulary.expand(model, self._start.config)
        samples = self._draw(full) if math.isfinite(loss) else []
        check()
        return Measured(loss, also, samples, full)

    def measure_all(self, checkpoint: Path, check: Check) -> dict[str, Any]:
        """Of a checkpoint over the same vocabulary, on all documents, in fp32.

        Raises CheckpointError.
        """
        whole = self._lay_out(self._all)
        model = GPT(self._start.vocabulary.config(self._start.config)).eval()
        self._start.vocabulary.shrink(load_checkpoint(checkpoint), model)
        loss = whole.loss(model.to(self._machine.device), check)
        return {
            "val_loss": loss,
            "perplexity": perplexity(loss),
            "val_documents": whole.documents,
            "val_tokens": whole.tokens,
        }

    def _lay_out(self, documents: Sequence[NDArray[np.uint16]]) -> Validation:
        return Validation(
            documents,
            self._start.vocabulary,
            context_length=self._start.config.context_length,
            tokens_at_once=self._tokens_at_once,
            device=self._machine.device,
        )

    def _draw(self, model: GPT) -> list[Sample]:
        engine = Engine(model, device="cpu", precision="fp32", slots=len(self._prompts))
        sampling = Sampling(max_tokens=_SAMPLE_TOKENS, seed=self._seed)
        return generate(engine, self._prompts, len(self._prompts), sampling)
