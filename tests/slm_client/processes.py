"""The command, small processes for the supervisor's tests, and how to look at processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from typer.testing import CliRunner, Result

from slm_client.child import Part
from slm_client.cli import app

STANDINS = Path(__file__).with_name("standins")
SLM = [sys.executable, "-c", "from slm_client.cli import app; app()"]
REPOSITORY = Path(__file__).parents[2]


def slm(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(app, arguments, input=stdin)


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-u", "-c", code]


def sleeper(name: str, *, grace: float = 10.0) -> Part:
    """Runs until SIGTERM."""
    return Part(name, python("import time; time.sleep(600)"), grace=grace)


def stubborn(name: str, *, grace: float) -> Part:
    """Ignores SIGTERM."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on'); time.sleep(600)"
    return Part(name, python(code), grace=grace)


def lives(pid: int) -> bool:
    """Zombies do not: in a container, nobody may collect them."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def eventually(check: Callable[[], object], seconds: float = 10.0) -> None:
    """Fails unless `check()` becomes true in time."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
