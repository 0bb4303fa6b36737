"""Runs a command that dies with its parent: `python -I -S tether.py PARENT_PID COMMAND…`.

A file of its own, run without our package, because it starts in a few milliseconds, and because
the alternative, `preexec_fn`, may deadlock in a process that has threads. Linux only: elsewhere the
command runs untethered.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Becomes `command`. The kernel kills it when the *thread* that started us ends; exec keeps
    that order. SIGKILL, so that nothing can outlive the parent by draining or hanging."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call above
            sys.exit(1)
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
