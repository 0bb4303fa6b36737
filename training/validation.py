"""The loss of a model that is being trained, over documents that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slm_core import GPT
from training.vocabulary import CompactVocabulary

_NO_TOKEN = -100
_FEWEST = 1024  # tokens at once, however small the batches of training are


class Validation:
    """Whole documents, laid out once for many measurements of `CompactVocabulary.total_loss`.

    As `metrics.text_loss` without a stride: each document stands alone from position 0, cut to the
    context; every token but the first is predicted, its end-of-text too. Documents of about the
    same length run together, `tokens_at_once` at most if they fit.

    Raises ValueError where nothing is to be predicted.
    """

    def __init__(
        self,
        documents: Sequence[NDArray[np.uint16]],
        vocabulary: CompactVocabulary,
        *,
        context_length: int,
        tokens_at_once: int,
        device: torch.device,
    ) -> None:
        self._vocabulary = vocabulary
        cut = [vocabulary.encode(d[: context_length + 1]) for d in documents if len(d) > 1]
        if not cut:
            raise ValueError("the validation text has no document of two tokens or more")
        cut.sort(key=len, reverse=True)
        self.documents = len(cut)
        self.tokens = sum(len(document) - 1 for document in cut)
        self._batches: list[tuple[Tensor, Tensor]] = []
        while cut:
            rows = max(1, max(tokens_at_once, _FEWEST) // len(cut[0]))
            self._batches.append(_padded(cut[:rows], device))
            cut = cut[rows:]

    @torch.no_grad()
    def loss(self, model: GPT, check: Callable[[], None]) -> float:
        """Mean loss of `model`, a compact one in evaluation mode, in nats per token.

        `check` is called between batches, and may end this with an exception.
        """
        total = torch.zeros((), dtype=torch.float64, device=self._batches[0][0].device)
        for ids, targets in self._batches:
            check()
            total += self._vocabulary.total_loss(model, ids, targets).double()
        return total.item() / self.tokens


def spread(documents: Sequence[NDArray[np.uint16]], count: int) -> Sequence[NDArray[np.uint16]]:
    """`count` documents evenly spread over all, or all for 0."""
    if not count or count >= len(documents):
        return documents
    return [documents[math.floor(i * len(documents) / count)] for i in range(count)]


def _padded(documents: Sequence[NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, targets), each [documents, longest]; what pads them is predicted by nothing."""
    shape = (len(documents), max(map(len, documents)) - 1)
    ids = torch.zeros(shape, dtype=torch.int64)
    targets = torch.full(shape, _NO_TOKEN)
    for row, document in enumerate(documents):
        ids[row, : len(document) - 1] = torch.from_numpy(document[:-1])
        targets[row, : len(document) - 1] = torch.from_numpy(document[1:])
    return ids.to(device), targets.to(device)
