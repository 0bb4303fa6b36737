"""What a run begins with: a shape, a vocabulary and weights; from a recipe, or a saved state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from slm_core import GPT, GPTConfig, load_checkpoint
from training.recipe import Recipe
from training.run import Run
from training.vocabulary import CompactVocabulary, distinct_types
from training.weights import initialise

_KEEP = "vocabulary.keep"


@dataclass(frozen=True)
class Start:
    """`model` is over `vocabulary`, `config` is of the plain model that it stands for; `keep` are
    the types that the vocabulary has although the text may not."""

    config: GPTConfig
    vocabulary: CompactVocabulary
    model: GPT
    keep: NDArray[np.int64]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a state must keep of it, beside the config."""
        return {_KEEP: torch.from_numpy(self.keep)}


def start_of(run: Run) -> Start:
    """What `run` begins with, or goes on with: then the weights are not those of its state yet.

    Raises CheckpointError and ValueError.
    """
    tokens = run.data.train
    if run.state is None:
        return _from_recipe(run.recipe, tokens)
    config = GPTConfig.from_dict(dict(run.state.facts["config"]))
    return _start(config, tokens, run.state.tensors[_KEEP].numpy())


def _from_recipe(recipe: Recipe, tokens: NDArray[np.uint16]) -> Start:
    """First weights, the same for the same seed, or those of a checkpoint."""
    torch.manual_seed(recipe.seed)
    given = load_checkpoint(recipe.init_from) if recipe.init_from else None
    config = recipe.config(given.config if given else None)
    keep = np.asarray([], np.int64)
    if recipe.vocabulary == "full":
        keep = np.arange(config.vocab_size)
    elif given:
        keep = distinct_types(given)
    start = _start(config, tokens, keep)
    if given:
        positions = given.wpe.weight[: config.context_length]
        given.wpe.weight = torch.nn.Parameter(positions)
        start.vocabulary.shrink(given, start.model)
    else:
        initialise(start.model)
    return start


def _start(config: GPTConfig, tokens: NDArray[np.uint16], keep: NDArray[np.int64]) -> Start:
    vocabulary = CompactVocabulary(tokens, config.vocab_size, keep)
    return Start(config, vocabulary, GPT(vocabulary.config(config)), keep)
