"""How many batches and files are taken at once, and in which threads: ones of their own, so that
slow ones hold up nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Self, TypeVar
from weakref import WeakValueDictionary

import anyio
from anyio import to_thread
from starlette.requests import ClientDisconnect, Request

from api.batches.body import Body
from api.problems import Problem

_MOST = 16
_MOST_OF_KEY = 2
_MOST_WORKING = 3  # Python runs one thread at a time: each more slows every other request
_WAIT_SECONDS = 30.0

T = TypeVar("T")


class Uploads:
    """Room for `most` uploads whose bodies come in, and as many works on what is here already;
    `most_of_key` each of one key. More wait, their bodies unread.

    All have threads, but only `working` of them read and check rows at a time.
    """

    def __init__(
        self,
        most: int = _MOST,
        *,
        most_of_key: int = _MOST_OF_KEY,
        working: int = _MOST_WORKING,
        wait_seconds: float = _WAIT_SECONDS,
    ) -> None:
        self._coming = _Places(most, most_of_key, wait_seconds)
        self._here = _Places(most, most_of_key, wait_seconds)
        self._threads = anyio.CapacityLimiter(2 * most)
        self._working = threading.Semaphore(working)
        self._wait_seconds = wait_seconds

    async def receive(
        self, request: Request, key: str, work: Callable[[Turn, Iterator[bytes]], T]
    ) -> T:
        """What `work` makes of the body, in a thread. Raises Problem `too_many_uploads`, and what
        `Body` raises."""
        async with self._coming.place(key):
            return await self._run(lambda turn: work(turn, turn.fetched(Body(request))))

    async def run(self, key: str, work: Callable[[Turn], T]) -> T:
        """What `work` makes of what is here, in a thread. Raises Problem `too_many_uploads`."""
        async with self._here.place(key):
            return await self._run(work)

    async def _run(self, work: Callable[[Turn], T]) -> T:
        turn = Turn(self._working, self._wait_seconds)

        def run() -> T:
            with turn:
                return work(turn)

        try:
            return await to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._threads)
        finally:
            turn.is_given_up = True  # the thread may still run


class Turn:
    """A thread's leave to work, which it gives up while it waits for something."""

    def __init__(self, working: threading.Semaphore, wait_seconds: float) -> None:
        self.is_given_up = False  # nobody waits for what the thread makes any more
        self._working = working
        self._wait_seconds = wait_seconds
        self._mine = False

    def __enter__(self) -> Self:
        """Raises Problem `too_many_uploads`."""
        if not self._working.acquire(timeout=self._wait_seconds):
            raise Problem("too_many_uploads", "Others are read and checked; this one had no turn.")
        self._mine = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._mine:
            self._mine = False
            self._working.release()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Others may work meanwhile. After an exception the turn is over.

        Raises Problem `too_many_uploads`, and ClientDisconnect.
        """
        self._check_wanted()
        self.__exit__(None, None, None)
        yield
        self._check_wanted()
        self.__enter__()

    def fetched(self, pieces: Iterable[T]) -> Iterator[T]:
        """The pieces, one by one; others may work while one is fetched. Raises what `paused`
        raises."""
        found = iter(pieces)
        while True:
            with self.paused():
                piece = next(found, None)
            if piece is None:
                return
            yield piece

    def _check_wanted(self) -> None:
        if self.is_given_up:
            raise ClientDisconnect


class _Places:
    """For `most` at once, of each key `most_of_key`."""

    def __init__(self, most: int, most_of_key: int, wait_seconds: float) -> None:
        self._most = most
        self._most_of_key = most_of_key
        self._wait_seconds = wait_seconds
        self._room = asyncio.Semaphore(most)
        # Of keys that have some, or wait: who does holds the semaphore.
        self._of_key: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def place(self, key: str) -> AsyncIterator[None]:
        """Raises Problem `too_many_uploads`."""
        of_key = self._of_key.setdefault(key, asyncio.Semaphore(self._most_of_key))
        async with (
            self._entered(of_key, f"Of this key {self._most_of_key}"),
            self._entered(self._room, f"{self._most}"),
        ):
            yield

    @asynccontextmanager
    async def _entered(self, room: asyncio.Semaphore, many: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._wait_seconds):
                await room.acquire()
        except TimeoutError:
            detail = f"{many} uploads are coming in already, which is as many as may."
            raise Problem("too_many_uploads", detail) from None
        try:
            yield
        finally:
            room.release()
