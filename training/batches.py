"""The order of the training text: which tokens make up which batch.

Every epoch puts the documents into a new order, one after the other, and cuts that row of tokens
into windows, which come in a random order too. All of it depends on the seed and the epoch alone,
so a position of two numbers is the whole state, and no epoch's text is ever laid out in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.tokens import document_ends

Encode = Callable[[NDArray[np.uint16], np.random.Generator], NDArray[np.int64]]


class Position(NamedTuple):
    """The next window, counted from the epoch's first."""

    epoch: int
    window: int


class Batches:
    """Batches of windows of `tokens`, a text whose documents end with `eos`.

    `encode` gives the ids to train on, from a generator that depends on the position alone. A
    batch that an epoch's last windows do not fill goes on with the next epoch's first.

    Raises ValueError where the text does not fill a window.

    Attributes:
        windows: how many the first epoch has; others have nearly as many.
    """

    def __init__(
        self,
        tokens: NDArray[np.uint16],
        encode: Encode,
        *,
        eos: int,
        batch: int,
        time: int,
        seed: int,
        position: Position,
    ) -> None:
        if len(tokens) <= time:
            raise ValueError(
                f"the training text has {len(tokens)} tokens, but a window takes {time + 1}: "
                "give more text or a smaller context"
            )
        self._tokens = tokens
        self._encode = encode
        self._batch, self._time, self._seed = batch, time, seed
        ends = document_ends(tokens, eos)
        self._documents = np.concatenate([[0], ends[:-1]])  # where they begin in `tokens`
        self._lengths = ends - self._documents
        self._window = position.window
        self._start_epoch(0)
        self.windows = len(self._starts)
        if position.epoch:
            self._start_epoch(position.epoch)

    @property
    def position(self) -> Position:
        return Position(self._epoch, self._window)

    def next(self) -> NDArray[np.int64]:
        """The next batch, [batch, time + 1]: every token but the last predicts its neighbour."""
        rng = np.random.default_rng((self._seed, self._epoch, 1 + self._window))
        rows: list[NDArray[np.uint16]] = []
        while (missing := self._batch - sum(map(len, rows))) > 0:
            if self._window == len(self._starts):
                self._window = 0
                self._start_epoch(self._epoch + 1)
            starts = self._starts[self._window : self._window + missing]
            rows.append(self._windows(starts))
            self._window += len(starts)
        return self._encode(np.concatenate(rows), rng)

    def _start_epoch(self, epoch: int) -> None:
        rng = np.random.default_rng((self._seed, epoch, 0))
        order = rng.permutation(len(self._lengths))
        self._epoch = epoch
        self._sources = self._documents[order]
        self._begins = np.concatenate([[0], np.cumsum(self._lengths[order])])
        self._starts = rng.permutation(window_starts(self._begins, self._time))

    def _windows(self, starts: NDArray[np.int64]) -> NDArray[np.uint16]:
        """The tokens [len(starts), time + 1] at `starts`, places in the epoch's row of tokens."""
        places = starts[:, None] + np.arange(self._time + 1)
        document = np.searchsorted(self._begins, places, side="right") - 1
        index = self._sources[document] + places - self._begins[document]
        windows: NDArray[np.uint16] = self._tokens[index]
        return windows


def window_starts(begins: NDArray[np.int64], time: int) -> NDArray[np.int64]:
    """Where windows of `time` + 1 tokens start, given where documents begin and the last one ends.

    A window starts with a document, as every prompt does: one that a window cuts opens the next
    window too. A document longer than a window goes on in the next one where it was cut.
    """
    starts = []
    at = 0
    while at + time < begins[-1]:
        starts.append(at)
        begin = int(begins[np.searchsorted(begins, at + time, side="right") - 1])
        at = begin if begin > at else at + time
    return np.asarray(starts, np.int64)
