"""What one check found. Knows no checks."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum
from subprocess import CompletedProcess


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, but worse than it could, or not for long
    FAULT = "fault"  # it does not work


@dataclass(frozen=True)
class Finding:
    """`says` is a sentence about what there is; `mend` one about what to do, if anything."""

    check: str
    level: Level
    says: str
    mend: str = ""


def ok(check: str, says: str) -> Finding:
    return Finding(check, Level.OK, _line(says))


def warning(check: str, says: str, mend: str = "") -> Finding:
    return Finding(check, Level.WARNING, _line(says), _line(mend))


def fault(check: str, says: str, mend: str = "") -> Finding:
    return Finding(check, Level.FAULT, _line(says), _line(mend))


def ending(done: CompletedProcess[str]) -> str:
    """Why a process failed: what killed it, or the last that it said."""
    if done.returncode < 0:
        return f"the process was killed by {signal.Signals(-done.returncode).name}"
    return last_line(done.stderr)


def last_line(text: str) -> str:
    """Of what a process printed: where Python says what went wrong."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def _line(text: str) -> str:
    """One line, without what a terminal would obey: some of it comes from other programs."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
