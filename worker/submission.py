"""Work on its way through an engine: who decodes it settles the future that its owner waits for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError

from slm_core import Completion, SamplingParams
from slm_core.engine import Prompt

ENDING_SECONDS = 5.0  # that work may take to end when it is told to; a step takes far less

Request = tuple[Prompt, SamplingParams]
OnToken = Callable[[int, int, int], None]  # (request, how many tokens it has, the last of them)


class HandedBack(Exception):
    """The batcher stopped before this work ended; it belongs back in the queue."""


class EngineLost(Exception):
    """The process must end, as its engine cannot go on; this work may be why."""


class EngineFault(Exception):
    """The engine cannot run this work, not even alone, or cannot be loaded."""


class Submission:
    """Requests that run as one. Its owner may wait for `future`, and call `end` and `drop`.

    `future` settles once: with the completions, in order, or with what `Engine.add` raises for a
    bad request, EngineFault, EngineLost, or HandedBack.
    """

    def __init__(
        self,
        model: str,
        requests: Sequence[Request],
        *,
        priority: int = 0,
        on_token: OnToken | None = None,
        notify: Callable[[Submission], None],
    ) -> None:
        self.model = model
        self.requests = requests
        self.priority = priority
        self.on_token = on_token
        self.future: Future[list[Completion]] = Future()
        self.ending = False
        self.taken = False  # by its lane
        self.submitted_at = time.monotonic()
        self.first_at: float | None = None  # when some output had its first token, or ended
        self.first_token_at: float | None = None
        self.last_at = self.submitted_at  # when the last output ended
        self.sequences: list[int] = []  # in the engine; may name some that have ended
        self._completions: dict[int, Completion] = {}
        self._notify = notify

    @property
    def begun(self) -> bool:
        return self.first_at is not None

    def end(self) -> None:
        """Ends what still runs at the next step: those completions are `cancelled`, with the text
        they have."""
        self.ending = True
        self._notify(self)

    def drop(self) -> None:
        """Cancels the future, and frees the sequences at the next step."""
        if self.future.cancel():
            self._notify(self)

    def restart(self) -> None:
        self.sequences.clear()
        self._completions.clear()

    def complete(self, request: int, completion: Completion) -> None:
        self._completions[request] = completion
        if len(self._completions) == len(self.requests):
            self.settle([self._completions[i] for i in range(len(self.requests))])

    def settle(self, outcome: list[Completion] | Exception) -> None:
        with contextlib.suppress(InvalidStateError):  # its owner dropped it
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
