"""A thread beside the one that decodes."""

from __future__ import annotations

import threading


class Background:
    """Runs `_run` in a daemon thread, from `start` until `stop`, which sets `_stopped`."""

    def __init__(self, name: str) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Waits for its end, for `timeout` seconds at most."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        raise NotImplementedError
