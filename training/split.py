"""Training or validation: the side of a document depends on its words and a seed alone.

So the same document is on the same side whatever the files are, and no copy of it on the other.
"""

from __future__ import annotations

import re
import unicodedata
from hashlib import blake2b
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

SHINGLE = 8  # words
_WORD = re.compile(r"\w+")
_ODD = 0x9E3779B97F4A7C15
_POWERS = np.array([pow(_ODD, i, 1 << 64) for i in range(SHINGLE)], np.uint64)


def normalise(text: str) -> str:
    """What makes two texts the same: their words, without case and punctuation, a space between.

    A text without words stays as it is.
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) or text.strip()


def digest(normalised: str) -> int:
    """A number of 64 bits for each normalised text.

    Two texts out of a hundred million share one with probability 0.0003.
    """
    return int.from_bytes(blake2b(normalised.encode(), digest_size=8).digest())


def is_validation(digest_: int, *, fraction: float, seed: int) -> bool:
    """True for about `fraction` of all digests, independently for every seed."""
    drawn = blake2b(digest_.to_bytes(8), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(drawn) < fraction * 2.0**64


class Shingler:
    """Turns normalised texts into shingles. Remembers words: use one for a limited text."""

    def __init__(self) -> None:
        self._numbers = _WordNumbers()

    def __call__(self, normalised: str) -> NDArray[np.uint64]:
        """A number for every 8 words in a row, each once, sorted; for fewer, one for them all.

        It is a polynomial modulo 2^64 of the words' numbers, so their order matters.
        """
        words = np.array([self._numbers[word] for word in normalised.split()], np.uint64)
        sums: NDArray[np.uint64] = np.convolve(words, _POWERS[: len(words)], "valid")
        sums.sort()
        each: NDArray[np.uint64] = sums[np.diff(sums, prepend=~sums[0]) != 0]
        return each


class _WordNumbers(dict[str, int]):
    def __missing__(self, word: str) -> int:
        number = self[word] = crc32(word.encode()) + 1
        return number
