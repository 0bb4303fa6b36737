"""celery -A benchmarks.device worker

The worker's application on a simulated device: a decode step takes as long as the benchmark says,
while the processor sleeps, and its tokens are those of stories. All else is the worker as it is:
claims, leases, tokenizer, scheduler and the loop around the steps.

`$SIMULATED_DEVICE` is a folder with a file `step`, in which all devices read how many seconds a
step takes, even while they run. Each tells in a file `<pid>` what it has done.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import slm_core.engine
from slm_core import SamplingParams, Tokenizer

STORIES = Path(__file__).parents[1] / "examples" / "tinystories" / "stories.txt"
_VARIABLE = "SIMULATED_DEVICE"


class Told(NamedTuple):
    """What a device has done since it started, at a time of `time.monotonic`, in seconds."""

    at: float
    steps: float
    tokens: float
    prompts: float


class Board:
    """Numbers in a file that several processes see at once."""

    def __init__(self, path: Path, count: int) -> None:
        path.touch()
        os.truncate(path, 8 * count)
        with path.open("r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")

    def write(self, numbers: Sequence[float]) -> None:
        for place, number in enumerate(numbers):
            self._numbers[place] = number

    def read(self) -> tuple[float, ...]:
        """Numbers of one `write`, or again those before."""
        while (seen := tuple(self._numbers)) != tuple(self._numbers):
            pass
        return seen


def step_board(folder: Path) -> Board:
    return Board(folder / "step", 1)


def told_board(folder: Path, pid: int) -> Board:
    return Board(folder / str(pid), len(Told._fields))


class SimulatedBackend:
    """`slm_core.backend.Backend` without arithmetic. A sequence goes on from a place in the stories
    that only its seed and prompt decide, and ends where that story does."""

    name = "simulated"
    computed_tokens = 0  # it computes nothing

    def __init__(self, folder: Path) -> None:
        self.computed_tokens = 0
        tokenizer = Tokenizer()
        self._text: list[int] = []
        for story in STORIES.read_text("utf-8").split("<|endoftext|>"):
            self._text += [*tokenizer.encode(story.strip()), tokenizer.eos_id]
        self._places: list[int] = []  # in the text, by slot
        self._step = step_board(folder)
        self._board = told_board(folder, os.getpid())
        self._told = Told(time.monotonic(), 0, 0, 0)

    def prompt_cost(self, length: int) -> int:
        return length

    def step(self, running: int, admitted: Sequence[tuple[list[int], SamplingParams]]) -> list[int]:
        until = time.monotonic() + self._step.read()[0]
        del self._places[running:]
        self._places += [self._start(ids, params) for ids, params in admitted]
        self.computed_tokens += running + sum(len(ids) for ids, _ in admitted)
        tokens = [self._text[place] for place in self._places]
        self._places = [(place + 1) % len(self._text) for place in self._places]
        time.sleep(max(0.0, until - time.monotonic()))
        _, steps, before, prompts = self._told
        self._told = Told(
            time.monotonic(), steps + 1, before + len(tokens), prompts + len(admitted)
        )
        self._board.write(self._told)
        return tokens

    def _start(self, ids: list[int], params: SamplingParams) -> int:
        return ((params.seed or 0) * 2_654_435_761 + sum(ids)) % len(self._text)

    def move(self, source: int, target: int) -> None:
        self._places[target] = self._places[source]

    def logits(self, ids: list[int]) -> NoReturn:  # noqa: ARG002
        raise RuntimeError("a simulated device computes nothing")

    def reset(self) -> None:
        self._places.clear()


def _open(*_: Any, **__: Any) -> tuple[SimulatedBackend, str]:
    return SimulatedBackend(Path(os.environ[_VARIABLE])), "fp32"


if _VARIABLE in os.environ:  # in a worker; else somebody reads what a device tells
    vars(slm_core.engine)["open_backend"] = _open
    from worker.app import app as app
