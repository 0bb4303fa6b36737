"""One process under supervision: its log, how it ended, how to end it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TETHER = str(Path(__file__).with_name("tether.py"))
_TAIL_LINES = 15
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Part:
    """How to run a process. `env` is added to ours; `grace` is the seconds from SIGTERM to SIGKILL;
    what comes after it in the order of starting waits for `ready`, or, if it runs just `once`, for
    its successful end."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    grace: float = 10.0
    ready: Callable[[], bool] | None = None
    once: bool = False
    pass_fds: Sequence[int] = ()


class Child:
    """The process of a part, and its successors. Only the supervisor's thread may call it, except
    for `pid`."""

    def __init__(self, part: Part, log_dir: Path, cwd: Path) -> None:
        self.part = part
        self.name = part.name
        self.log = log_dir / f"{part.name}.log"
        self.restart_at: float | None = None  # monotonic; None: not waiting for a restart
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._quick_deaths = 0
        if self.log.exists():  # keep one earlier run
            self.log.replace(self.log.with_suffix(".log.1"))

    @property
    def pid(self) -> int | None:
        """None if it does not live."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Raises OSError if its log cannot be written or no process can be made."""
        self.restart_at = None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _TETHER, str(os.getpid()), *self.part.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                env={**os.environ, **self.part.env},
                pass_fds=self.part.pass_fds,
                start_new_session=True,  # the terminal's Ctrl-C is ours to pass on, in order
            )
        self._started_at = time.monotonic()

    def is_ready(self) -> bool:
        if self.part.once:
            return self._process is not None and self._process.poll() == 0
        return self.part.ready is None or self.part.ready()

    def died(self) -> bool:
        """Whether it was started and does not live, though it should."""
        code = self._process.poll() if self._process else None
        return code is not None and not (self.part.once and code == 0)

    def count_death(self, settled: float) -> int:
        """How often it has died in a row without living for `settled` seconds in between."""
        lived = time.monotonic() - self._started_at
        self._quick_deaths = 1 if lived >= settled else self._quick_deaths + 1
        return self._quick_deaths

    def terminate(self) -> None:
        if self._process:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL, to whatever it started too."""
        if pid := self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def ending(self) -> str:
        """Such as `was killed by SIGKILL`."""
        code = self._process.returncode if self._process else None
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def obituary(self) -> str:
        return f"it {self.ending()}.\n{self.log_tail()}"

    def log_tail(self) -> str:
        """The log's last lines, under its name."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]
        except OSError:
            lines = []
        return "\n".join([f"Last lines of {self.log}:", *(f"  {line}" for line in lines)])
