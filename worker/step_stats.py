"""What a lane's steps come to. The thread that decodes writes it, at about a microsecond a step;
others may read it.

All tokens of a step come at once, so they are counted at once: a histogram that took them one by
one would cost the thread more than it tells.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

# Seconds. A step of one sequence takes half a millisecond, one without a KV cache may take seconds.
STEP_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05),
    *(0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
_RATE_SECONDS = 10.0  # of computing, over which the rate is averaged


class Histogram:
    """How many values lie up to each bound, and above the last one, of which `weight` are alike."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds  # ascending
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, weight: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += weight
        self.total += value * weight


class StepStats:
    """Times are seconds of `time.monotonic`."""

    def __init__(self) -> None:
        self.tokens_per_second = 0.0  # of time spent in steps
        self.generated_tokens = 0
        self.inter_token = Histogram(STEP_BUCKETS)  # from a sequence's token to its next
        self.prefill_steps = Histogram(STEP_BUCKETS)  # steps that also took prompts in
        self.decode_steps = Histogram(STEP_BUCKETS)
        self._ended = -math.inf  # the step before
        self._recent = (0.0, 0.0)  # tokens and seconds, fading

    def note(self, began: float, ended: float, tokens: int, first: int, *, prefill: bool) -> None:
        """A step that gave `tokens`, of which `first` have none before them in their sequence.

        The others' wait began when the step before ended, whatever else the thread did since.
        """
        seconds = ended - began
        fading = math.exp(-seconds / _RATE_SECONDS)
        self._recent = (self._recent[0] * fading + tokens, self._recent[1] * fading + seconds)
        self.tokens_per_second = self._recent[0] / max(self._recent[1], 1e-9)
        self.generated_tokens += tokens
        (self.prefill_steps if prefill else self.decode_steps).observe(seconds)
        if tokens > first:
            self.inter_token.observe(ended - self._ended, tokens - first)
        self._ended = ended
