"""A contestant in a process of its own: it loads once, then runs what is asked over a pipe.

An idle contestant waits in `recv`, so that only one at a time uses the cores.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.peers import Contestant, Entry
from benchmarks.workloads import Workload

_TICKS = 0.05  # seconds: less cannot be told from the coarseness of CPU times


class ContestantError(Exception):
    """A contestant cannot be loaded, failed, or died."""


@dataclass(frozen=True)
class Run:
    """`workload` is what was run: less than was asked for where that would take too long.

    `elsewhere` is the CPU time that other processes took meanwhile.
    """

    workload: Workload
    seconds: float
    elsewhere: float
    rows: list[list[int]]

    @property
    def rate(self) -> float:
        """Useful tokens per second."""
        return self.workload.tokens / self.seconds

    @property
    def disturbed(self) -> bool:
        return self.elsewhere > max(_TICKS, 0.1 * self.seconds)


class Child:
    """The parent's end. Raises ContestantError."""

    def __init__(self, entry: Entry, weights: Path, threads: int) -> None:
        self._pipe, theirs = Pipe()
        serve = f"from benchmarks.contestant import serve; serve({theirs.fileno()})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", serve],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends
            stdout=sys.stderr,  # the last line of stdout is ours
            env=os.environ
            | {
                "OMP_NUM_THREADS": str(threads),
                "HF_HUB_OFFLINE": "1",
            },
        )
        theirs.close()
        try:
            self._ask(entry.load, weights, threads, entry.options)
        except ContestantError:
            self.close()
            raise

    def run(self, workload: Workload) -> Run:
        return self._ask("run", workload)

    def logits(self, prompts: list[list[int]]) -> list[np.ndarray]:
        """Logits [time, vocab] of each prompt."""
        return self._ask("logits", prompts)

    def choices(self, prompts: list[list[int]]) -> list[np.ndarray]:
        """The likeliest next token after every position of each prompt."""
        return self._ask("choices", prompts)

    def peak_memory(self) -> int:
        """Bytes, up to now."""
        return self._ask("peak_memory")

    def close(self) -> None:
        self._pipe.close()
        self.process.kill()
        self.process.communicate()

    def _ask(self, *request: Any) -> Any:
        try:
            self._pipe.send(request)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self.process.wait()
            raise ContestantError(f"its process ended with {self.process.returncode}") from None
        if isinstance(answer, ContestantError):
            raise answer
        return answer


class _Server:
    def __init__(self, contestant: Contestant) -> None:
        self._contestant = contestant

    def run(self, workload: Workload) -> Run:
        workload = self._contestant.prepare(workload)
        gc.collect()
        others = _cpu_seconds_of_others()
        started = time.perf_counter()
        rows = self._contestant.generate(workload)
        seconds = time.perf_counter() - started
        elsewhere = _cpu_seconds_of_others() - others
        if [len(row) for row in rows] != workload.lengths:
            raise RuntimeError("other lengths than asked for")
        return Run(workload, seconds, elsewhere, rows)

    def logits(self, prompts: list[list[int]]) -> list[np.ndarray]:
        return self._contestant.logits(prompts)

    def choices(self, prompts: list[list[int]]) -> list[np.ndarray]:
        return [self._contestant.logits([prompt])[0].argmax(-1) for prompt in prompts]

    def peak_memory(self) -> int:
        # not ru_maxrss, which a process takes over from the one that started it
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _cpu_seconds_of_others() -> float:
    total, own = psutil.cpu_times(), os.times()
    return sum(total) - total.idle - total.iowait - own.user - own.system


def serve(descriptor: int) -> None:
    """The child's end. Does not outlive its parent, also not in the middle of a run."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    pipe = Connection(descriptor)
    server: _Server | None = None
    while True:
        try:
            name, *arguments = pipe.recv()
        except EOFError:
            os._exit(0)  # libraries' threads may still run
        try:
            if server is None:
                module, _, load = name.partition(":")
                weights, threads, options = arguments
                contestant = getattr(import_module(module), load)(weights, threads, **options)
                server, answer = _Server(contestant), None
            else:
                answer = getattr(server, name)(*arguments)
        except Exception as error:
            answer = ContestantError(f"{type(error).__name__}: {error}")
        pipe.send(answer)
