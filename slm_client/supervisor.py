"""Keeps processes running: starts them in order, restarts what dies, stops them in reverse order.
One that runs just once must succeed before the next ones start.

Knows no Redis, no api, no worker: see `stack.py`. One thread starts, watches and stops everything,
because the kernel ties a child's life to the thread that started it (see `tether.py`). So an
exception in the caller's thread, such as Ctrl-C, never leaves a child half started.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from slm_client.child import Child, Part
from slm_client.errors import StartError

_TICK = 0.05  # seconds between looks at the children
_READY_TICK = 0.2  # seconds between looks at the whole's readiness
_LONGEST_PAUSE = 8.0  # seconds before a restart
MAX_QUICK_DEATHS = 5


class _StopAsked(Exception):
    pass


class Supervisor:
    """Runs `stages` of parts; each stage starts after the last one is ready, and stops before it.

    `ready` says whether the whole works. `on_event` gets a line for people at every change, from
    another thread. Until everything is ready, a part that ends is an error: nothing has ever
    worked, so a restart would not help. Later it is restarted after `pause` seconds, doubling; the
    fifth death without `settled` seconds of life in between is an error.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[Part]],
        *,
        log_dir: Path,
        cwd: Path,
        ready: Callable[[], bool],
        on_event: Callable[[str], None],
        start_timeout: float = 180.0,
        pause: float = 0.5,
        settled: float = 30.0,
    ) -> None:
        self._stages = [[Child(part, log_dir, cwd) for part in stage] for stage in stages]
        self._ready = ready
        self._on_event = on_event
        self._start_timeout = start_timeout
        self._pause = pause
        self._settled = settled
        self._error: Exception | None = None
        self._stop_asked = threading.Event()
        self._kill_asked = threading.Event()
        self._start_over = threading.Event()  # everything is ready, or has ended
        self._ended = threading.Event()
        # A daemon: if the caller forgets us, the process can end, and the tethers do the rest.
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Returns when everything is ready. Raises StartError, with the last log lines."""
        self._thread.start()
        self._start_over.wait()
        if self._ended.is_set():
            self.wait()

    def wait(self) -> None:
        """Blocks until `stop` was called elsewhere. Raises StartError if a part cannot be kept
        running; everything else has then been stopped."""
        self._ended.wait()
        if self._error:
            raise self._error

    def stop(self) -> None:
        """SIGTERM to one stage after the other, SIGKILL after a part's grace. Safe to repeat.

        A KeyboardInterrupt meanwhile kills everything at once, and is raised again.
        """
        if self._thread.ident is None:
            return
        try:
            self._stop_asked.set()
            self._ended.wait()
        except KeyboardInterrupt:
            self._kill_asked.set()
            self._ended.wait()
            raise

    def pids(self) -> dict[str, int]:
        """The processes that live now, by name."""
        return {child.name: child.pid for child in self._children() if child.pid}

    def _children(self) -> list[Child]:
        return [child for stage in self._stages for child in stage]

    def _run(self) -> None:
        try:
            self._bring_up()
            self._start_over.set()
            while not self._stop_asked.wait(_TICK):
                for child in self._children():
                    self._look_after(child)
        except _StopAsked:
            pass
        except Exception as error:  # raised again in the caller's thread
            self._error = error
        finally:
            self._bring_down()
            self._ended.set()
            self._start_over.set()

    def _bring_up(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        for stage in self._stages:
            for child in stage:
                self._on_event(f"starting {child.name}")
                child.start()
            for child in stage:
                self._until(child.is_ready, deadline, _TICK)
        self._on_event("waiting until everything is ready")
        self._until(self._ready, deadline, _READY_TICK)

    def _until(self, check: Callable[[], bool], deadline: float, tick: float) -> None:
        while True:
            good = check()
            for child in self._children():  # afterwards: somebody else's server may have answered
                if child.died():
                    failure = "failed" if child.part.once else "did not start"
                    raise StartError(f"{child.name} {failure}: {child.obituary()}")
            if good:
                return
            if time.monotonic() > deadline:
                logs = "\n".join(child.log_tail() for child in self._children())
                raise StartError(f"not ready after {self._start_timeout:g} s.\n{logs}")
            if self._stop_asked.wait(tick):
                raise _StopAsked

    def _look_after(self, child: Child) -> None:
        if child.restart_at is not None:
            if time.monotonic() >= child.restart_at:
                child.start()
                self._on_event(f"restarted {child.name}")
        elif child.died():
            quick = child.count_death(self._settled)
            if quick >= MAX_QUICK_DEATHS:
                raise StartError(f"{child.name} died {quick} times in a row: {child.obituary()}")
            pause = min(self._pause * 2 ** (quick - 1), _LONGEST_PAUSE)
            child.restart_at = time.monotonic() + pause
            self._on_event(f"{child.name} {child.ending()}; restarting it in {pause:g} s")

    def _bring_down(self) -> None:
        for stage in reversed(self._stages):
            if living := [child for child in stage if child.pid]:
                self._on_event(f"stopping {', '.join(child.name for child in living)}")
            self._stop_all(living)

    def _stop_all(self, children: Sequence[Child]) -> None:
        for child in children:
            child.terminate()
        asked = time.monotonic()
        patient = list(children)
        while living := [child for child in children if child.pid]:
            waited = time.monotonic() - asked
            for child in living:
                over = self._kill_asked.is_set() or waited > child.part.grace
                if over and child in patient:
                    patient.remove(child)
                    self._on_event(f"killing {child.name}")
                    child.kill()
            time.sleep(_TICK)
