"""What is generated: prompts of token ids, and how many new tokens each gets. Knows no engine."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

TEMPERATURE, TOP_K = 0.8, 40
BATCH = 64  # sequences decoded at once
END_OF_TEXT = 50256  # never in a prompt, and never an end


@dataclass(frozen=True)
class Workload:
    name: str
    prompts: list[list[int]]
    lengths: list[int]

    @property
    def tokens(self) -> int:
        """New tokens that were asked for; nothing else counts."""
        return sum(self.lengths)

    @property
    def attended(self) -> float:
        """Mean number of positions that a new token attends to."""
        rows = zip(self.prompts, self.lengths, strict=True)
        return sum(new * (len(prompt) + new / 2) for prompt, new in rows) / self.tokens

    def first(self, rows: int) -> Workload:
        return Workload(self.name, self.prompts[:rows], self.lengths[:rows])


def random_prompts(count: int, shortest: int = 4, longest: int = 64) -> list[list[int]]:
    rng = random.Random(0)
    return [
        [rng.randrange(END_OF_TEXT) for _ in range(rng.randint(shortest, longest))]
        for _ in range(count)
    ]


def uniform(tokens: int = 200, count: int = BATCH) -> Workload:
    """As many prompts as slots, all of the same new length."""
    return Workload("uniform", random_prompts(count), [tokens] * count)


def ragged(tokens: int = 200) -> Workload:
    """Four times as many prompts, with geometric lengths from a tenth to 1.5 times `tokens`."""
    rng = random.Random(1)
    shortest, longest, scale = tokens // 10, tokens * 3 // 2, tokens * 0.35
    lengths = [
        min(longest, shortest + int(-scale * math.log(1 - rng.random()))) for _ in range(4 * BATCH)
    ]
    return Workload("ragged", random_prompts(4 * BATCH), lengths)


def single(tokens: int = 200) -> Workload:
    """One sequence alone."""
    return Workload("single", random_prompts(1, shortest=32, longest=32), [tokens])


WORKLOADS = {"uniform": uniform, "ragged": ragged, "single": single}
