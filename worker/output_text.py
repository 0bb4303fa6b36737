"""From an output's tokens to the pieces of its stream. Knows nothing of threads or Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from slm_core import Completion, Tokenizer
from slm_core.tokenizer import StreamDecoder
from slm_jobs.schemas import Piece


class OutputText:
    """The text of one output that its stream does not hold yet.

    A piece ends where a token ends, and holds nothing that a later token could change: no part of a
    character, nothing that may be the beginning of a stop string. So the text of the tokens that
    the stream holds never depends on where pieces were cut, and `rest` completes it to exactly the
    final text.
    """

    def __init__(self, index: int, stops: Sequence[str], tokenizer: Tokenizer) -> None:
        self.index = index
        self.count = 0  # tokens seen
        self.sent = 0  # tokens whose text the stream holds; may be ahead after a redelivery
        self._stops = stops
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._text = ""  # of tokens after those sent
        self._base = 0  # where in the output `_text` begins
        self._ends: deque[tuple[int, int]] = deque()  # tokens, and where in the output they end

    def push(self, count: int, token: int) -> None:
        """Takes token number `count`; one that was seen before is ignored."""
        if count != self.count + 1:
            return
        self.count = count
        self._text += self._decoder.push(token)
        if not self._decoder.pending:
            self._ends.append((count, self._base + len(self._text)))
            self._forget_sent()

    def confirm(self, sent: int) -> None:
        """The stream holds the text of the first `sent` tokens."""
        self.sent = sent
        self._forget_sent()

    def piece(self) -> Piece | None:
        """What is certain by now and not in the stream."""
        certain = self._base + self._certain()
        found = None
        for end in self._ends:
            if end[1] > certain:
                break
            found = end
        if found is None:
            return None
        tokens, end_of_text = found
        return Piece(self.index, self.sent, tokens, self._text[: end_of_text - self._base])

    def rest(self, completion: Completion) -> Piece | None:
        """What the stream lacks of the final text."""
        ids = completion.token_ids
        text = completion.text[len(self._tokenizer.decode(ids[: self.sent])) :]
        return Piece(self.index, self.sent, len(ids), text) if text else None

    def _forget_sent(self) -> None:
        while self._ends and self._ends[0][0] <= self.sent:
            _, end = self._ends.popleft()
            self._text = self._text[end - self._base :]
            self._base = end

    def _certain(self) -> int:
        """How much of `_text` no stop string can take away any more."""
        text, certain = self._text, len(self._text)
        for stop in self._stops:
            at = text.find(stop)
            if at < 0:
                longest = range(min(len(stop) - 1, len(text)), 0, -1)
                at = len(text) - next((n for n in longest if text.endswith(stop[:n])), 0)
            certain = min(certain, at)
        return certain
