"""Sends the text of streamed jobs while they run, in a thread beside the one that decodes.

The decoding thread only puts tokens into a queue; text, JSON and Redis are this thread's, and at
most a quarter of its time, so that however many streams or slow a Redis cost decoding little.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from slm_core import Completion, Tokenizer
from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import Piece, Work
from slm_jobs.store import JobStore
from worker.background import Background
from worker.job_log import log_job
from worker.output_text import OutputText

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.05  # between two events of a job
_RETRY_SECONDS = 0.5  # after Redis did not answer
_REST = 3  # times as long as the sending took

_Token = tuple["JobStream", int, int, int]  # (stream, output, how many tokens it has, the last)


class JobStream:
    """One attempt's part of a job's stream. Methods are safe for threads.

    A redelivered job goes on where the stream ends: same fingerprint, same text.
    """

    def __init__(
        self,
        work: Work,
        store: JobStore,
        fingerprint: Callable[[], str],
        tokenizer: Tokenizer,
        on_token: Callable[[_Token], None],
    ) -> None:
        spec = work.spec
        count = len(spec.prompts) * spec.n
        self.work = work
        self.sent_at: float | None = None  # the last time that something was sent
        self.sent_pieces = 0  # then; each becomes an event
        self._outputs = [OutputText(i, spec.stop, tokenizer) for i in range(count)]
        self._store = store
        self._fingerprint = fingerprint
        self._on_token = on_token
        self._lock = threading.Lock()
        self._in_step = work.attempt == 1  # whether we know what the stream holds
        self._over = False  # sends nothing more by itself

    def take(self, output: int, count: int, token: int) -> None:
        """For the decoding thread: token number `count` of `output`."""
        self._on_token((self, output, count, token))

    def read(self, output: int, count: int, token: int) -> None:
        """Turns a token into text, which waits to be sent."""
        if self._over:  # `finish` may hold the lock for as long as Redis takes
            return
        with self._lock:
            self._outputs[output].push(count, token)

    def flush(self) -> None:
        """Sends what is certain. Raises StoreUnavailable; then it stays, to be sent later."""
        with self._lock:
            if self._over or not any(output.count for output in self._outputs):
                return
            if not self._in_step:
                self._append([])
            pieces = [piece for output in self._outputs if (piece := output.piece())]
            if pieces and not self._over:
                self._append(pieces)
                self.sent_at, self.sent_pieces = time.monotonic(), len(pieces)

    def finish(self, completions: Sequence[Completion]) -> None:
        """Sends what the stream lacks of the final texts.

        Raises StoreUnavailable; then it may be called again.
        """
        with self._lock:
            self._over = True
            if not self._in_step:
                self._append([])
            outputs = list(zip(self._outputs, completions, strict=True))
            mark = ""
            if any(output.sent > len(c.token_ids) for output, c in outputs):
                # cancelled before it came to where a lost attempt had been: start the stream anew
                mark = "/cut"
                self._append([], mark)
            for _ in range(2):  # again where the stream was ahead because a reply was lost
                if pieces := [piece for output, c in outputs if (piece := output.rest(c))]:
                    self._append(pieces, mark)

    def give_up(self) -> None:
        self._over = True

    def _append(self, pieces: Sequence[Piece], mark: str = "") -> None:
        counts = self._store.append(self.work, self._fingerprint() + mark, pieces)
        if counts is None:  # stale: somebody else has the job
            self._over = True
            return
        self._in_step = True
        for output in self._outputs:
            output.confirm(counts.get(output.index, 0))


class Streamer(Background):
    """The thread that sends every open stream's text, at most 20 pieces of each a second.

    A job's first token is sent at once, the rest in rounds.
    """

    def __init__(self, store: JobStore, fingerprint: Callable[[str], str]) -> None:
        super().__init__("streamer")
        self._store = store
        self._fingerprint = fingerprint  # of a model's engine
        self._tokenizer = Tokenizer()
        self._tokens: deque[_Token] = deque()
        self._streams: dict[JobStream, None] = {}
        self._lock = threading.Lock()  # of the streams
        self._wake = threading.Event()
        self._next_round = 0.0
        self._retry_at = 0.0

    def stop(self, timeout: float) -> None:
        self._stopped.set()
        self._wake.set()
        super().stop(timeout)

    @contextmanager
    def open(self, work: Work) -> Iterator[JobStream | None]:
        """The job's stream while it runs here; None if it has none."""
        if not work.spec.stream:
            yield None
            return
        stream = JobStream(
            work,
            self._store,
            lambda: self._fingerprint(work.model),
            self._tokenizer,
            self._take,
        )
        with self._lock:
            self._streams[stream] = None
        self._wake.set()
        try:
            yield stream
        finally:
            stream.give_up()
            with self._lock:
                del self._streams[stream]

    def _take(self, token: _Token) -> None:
        self._tokens.append(token)
        if token[2] == 1:
            self._wake.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.wait(self._pause())
            self._wake.clear()
            try:
                self._read()
                self._send()
            except Exception:  # a dead thread would silence every stream
                log.exception("streaming failed")

    def _read(self) -> None:
        while self._tokens:
            stream, output, count, token = self._tokens.popleft()
            stream.read(output, count, token)

    def _pause(self) -> float | None:
        """Seconds until the next round; None while no stream is open."""
        with self._lock:
            if not self._streams:
                return None
        return max(0.0, self._next_round - time.monotonic())

    def _send(self) -> None:
        began = time.monotonic()
        if began < self._retry_at:
            return
        everyone = began >= self._next_round
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            sent_at, pause = stream.sent_at, INTERVAL_SECONDS * stream.sent_pieces
            due = sent_at is None or (everyone and began - sent_at >= pause)
            if due and not self._flush(stream):
                break
        if everyone:
            spent = time.monotonic() - began
            self._next_round = max(
                self._retry_at, time.monotonic() + max(INTERVAL_SECONDS, _REST * spent)
            )

    def _flush(self, stream: JobStream) -> bool:
        """False if Redis does not answer."""
        try:
            stream.flush()
        except StoreUnavailable as error:
            log.warning("cannot send text, will try again: %s", error)
            self._retry_at = self._next_round = time.monotonic() + _RETRY_SECONDS
            return False
        except Exception:  # a mistake of ours must not silence the other streams
            log_job(log, logging.ERROR, stream.work, "its stream failed", exc_info=True)
            stream.give_up()
        return True
