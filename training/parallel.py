"""A map over several processes whose results come in order. Knows nothing of what is mapped."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2  # items per process that are read before their turn


def usable_processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(function: Callable[[T], R], items: Iterable[T], *, processes: int) -> Iterator[R]:
    """`map`, in `processes` processes, or here if that is 1: the results are the same.

    `function` is pickled with every item, so it should be small. A few items are held at a time.
    Raises BrokenProcessPool if a process died, of too little memory most likely.
    """
    if processes == 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(
        processes,
        # A fork would copy the threads' locks of a progress bar.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C ends them through their parent
    )
    running: deque[Future[R]] = deque()
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > _AHEAD * processes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
