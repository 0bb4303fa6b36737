"""Documents that are there already, exactly or nearly. Knows numbers only, not texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

NEAR = 0.6  # more than this part of the shorter document's shingles is also in the other
_ARRAYS = ("numbers", "offsets", "owners", "rare_offsets", "rare_owners", "documents", "starts")


class Seen:
    """Numbers seen so far, 8 bytes for each: sorted runs, merged when of about the same length."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of `numbers` [n] are new: neither seen before nor earlier among them."""
        new = np.zeros(len(numbers), np.bool_)
        new[np.unique(numbers, return_index=True)[1]] = True
        for run in self._runs:
            new &= _find(run, numbers) < 0
        self._runs.append(np.sort(numbers[new]))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")
        return new


class NearIndex:
    """Says whether a document is nearly one of some others, exactly as if compared with each.

    Two documents are near if they share more than 60 % of the shingles of the one with fewer. Then
    any 40 % of these have a shared one among them. So it is enough to look up the rarest 40 %,
    which few documents have: the prefix filter of Chaudhuri et al., "A Primitive Operator for
    Similarity Joins in Data Cleaning" (2006).
    """

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Use `build` or `load_index`."""
        self._arrays = arrays
        # documents: their shingles, one document after another, where `starts` says.
        self._documents, self._starts = arrays["documents"], arrays["starts"]
        # numbers: the shingles of all documents, each once. Those that have numbers[i] are
        # owners[offsets[i] : offsets[i + 1]]; those among whose rarest it is, the same with rare_.
        self._numbers = arrays["numbers"]
        self._offsets, self._owners = arrays["offsets"], arrays["owners"]
        self._rare_offsets, self._rare_owners = arrays["rare_offsets"], arrays["rare_owners"]

    @classmethod
    def build(cls, documents: Sequence[NDArray[np.uint64]]) -> Self:
        """From the shingles of each document, sorted, each once."""
        sizes = np.array([len(document) for document in documents], np.int64)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        values = np.concatenate([*documents, np.empty(0, np.uint64)])
        owners = np.repeat(np.arange(len(documents), dtype=np.int32), sizes)
        numbers, place, frequency = np.unique(values, return_inverse=True, return_counts=True)
        by_rarity = np.lexsort((values, frequency[place], owners))
        rank = np.arange(len(values)) - np.repeat(starts[:-1], sizes)
        rare = np.sort(by_rarity[rank < np.repeat(_prefix(sizes), sizes)])
        offsets, grouped = _postings(place, owners, len(numbers))
        rare_offsets, rare_grouped = _postings(place[rare], owners[rare], len(numbers))
        arrays = (numbers, offsets, grouped, rare_offsets, rare_grouped, values, starts)
        return cls(dict(zip(_ARRAYS, arrays, strict=True)))

    def save(self, folder: Path) -> None:
        for name, array in self._arrays.items():
            np.save(folder / f"{name}.npy", array)

    def is_near(self, shingles: NDArray[np.uint64]) -> bool:
        """Whether a document of these shingles, sorted, each once, is nearly one of ours."""
        found = _find(self._numbers, shingles)
        found = found[found >= 0]
        if not len(found):
            return False
        candidates = [_gather(self._rare_offsets, self._rare_owners, found)]
        # Ours may also be the longer one. Of the rarest of the document that is asked for, those
        # that none of ours has need no look.
        look = int(_prefix(np.array(len(shingles)))) - (len(shingles) - len(found))
        if look > 0:
            frequency = self._offsets[found + 1] - self._offsets[found]
            rarest = found[np.argsort(frequency, kind="stable")[:look]]
            candidates.append(_gather(self._offsets, self._owners, rarest))
        return any(self._shares(shingles, c) for c in np.unique(np.concatenate(candidates)))

    def _shares(self, shingles: NDArray[np.uint64], document: int) -> bool:
        ours = self._documents[self._starts[document] : self._starts[document + 1]]
        shared = np.count_nonzero(_find(ours, shingles) >= 0)
        return bool(shared > NEAR * min(len(shingles), len(ours)))


@lru_cache(maxsize=1)
def load_index(folder: Path) -> NearIndex:
    """What `NearIndex.save` put there, memory-mapped: processes that load it share it."""
    files = {name: folder / f"{name}.npy" for name in _ARRAYS}
    load = np.lib.format.open_memmap  # which never unpickles
    return NearIndex({name: np.asarray(load(file, mode="r")) for name, file in files.items()})


def _prefix(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many shingles of a document are so many that a shared one must be among them."""
    prefix: NDArray[np.int64] = sizes - np.floor(NEAR * sizes).astype(np.int64)
    return prefix


def _find(ordered: NDArray[np.uint64], numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each of `numbers` is in `ordered`, -1 if nowhere."""
    if not len(ordered):
        return np.full(len(numbers), -1)
    place = np.searchsorted(ordered, numbers)
    place[place == len(ordered)] = 0
    found: NDArray[np.int64] = np.where(ordered[place] == numbers, place, -1)
    return found


def _postings(
    place: NDArray[np.int64], owners: NDArray[np.int32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Owners by place, and where those of each of `count` places begin and end."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=count))])
    return offsets, owners[np.argsort(place, kind="stable")]


def _gather(
    offsets: NDArray[np.int64], owners: NDArray[np.int32], places: NDArray[np.int64]
) -> NDArray[np.int32]:
    """The owners at all of `places`, one after another."""
    begins, ends = offsets[places], offsets[places + 1]
    lengths = ends - begins
    skip = np.repeat(begins - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    gathered: NDArray[np.int32] = owners[np.arange(lengths.sum()) + skip]
    return gathered
