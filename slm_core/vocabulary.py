"""GPT-2's vocabulary and merges as Hugging Face's files spell them."""

from __future__ import annotations

import math
from itertools import pairwise

from slm_core.tokenizer import END_OF_TEXT, Tokenizer


def vocabulary() -> dict[str, int]:
    """Ids of GPT-2's tokens, in which a printable character stands for each byte."""
    tokenizer = Tokenizer()
    tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.eos_id)]
    # The first 256 are single bytes: 188 that print, and 68 that are written as U+0100 and on.
    alphabet = {b: chr(b if i < 188 else 68 + i) for i, [b] in enumerate(tokens[:256])}
    ids = {"".join(map(alphabet.__getitem__, token)): i for i, token in enumerate(tokens)}
    return {**ids, END_OF_TEXT: tokenizer.eos_id}


def merges(ids: dict[str, int]) -> list[str]:
    """GPT-2's merges, in order: the two parts that lower ranks make of each token."""
    pairs = []
    for token in list(ids)[256:-1]:
        parts = list(token)
        while len(parts) > 2:
            ranks = [ids.get(a + b, math.inf) for a, b in pairwise(parts)]
            i = ranks.index(min(ranks))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        pairs.append(" ".join(parts))
    return pairs
