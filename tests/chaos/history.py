"""All that ever happened to jobs and rows, read from Redis's append-only file: what a record shows
at last does not tell whether it ended twice, or when it ran again."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from slm_jobs import keys
from tests.chaos.stack import Death

_ENDS = {"succeeded", "failed", "cancelled", "expired"}


class Event(NamedTuple):
    at_ms: float
    what: str  # started, ended, or waits (again)
    worker: str


class History:
    """`lease_ms`: from the claim of a row to the end of its first lease."""

    def __init__(self, directory: Path, lease_ms: float) -> None:
        self.events: defaultdict[str, list[Event]] = defaultdict(list)  # by job or row
        self._lease_ms = lease_ms
        self._now = 0.0
        self._claimed = ("", "")  # the row that was claimed last, and its worker
        for command in _commands(directory):
            self._take(command)

    @property
    def ends(self) -> Counter[str]:
        """How often each job or row has ended."""
        ends = {work: sum(e.what == "ended" for e in es) for work, es in self.events.items()}
        return Counter(ends)

    def starts(self, work: str) -> int:
        return sum(event.what == "started" for event in self.events[work])

    @property
    def restarts(self) -> int:
        """How often work was started that had been started before."""
        return sum(max(0, self.starts(work) - 1) for work in self.events)

    def recoveries(self, death: Death) -> list[float]:
        """Of the work that a worker had when it died: seconds until it ran again, or had ended."""
        found = []
        for events in self.events.values():
            moves = [event for event in events if event.what != "waits"]  # which has no time
            before = [event for event in moves if event.at_ms <= death.at_ms]
            after = [event for event in moves if event.at_ms > death.at_ms]
            held = before and before[-1].what == "started"
            if held and f"-{death.pid}-" in before[-1].worker and after:
                found.append((after[0].at_ms - death.at_ms) / 1000)
        return found

    def _take(self, command: list[bytes]) -> None:
        name, key = command[0].upper(), command[1].decode() if len(command) > 1 else ""
        if name == b"HSET" and key.startswith(keys.JOB):
            self._take_job(key.removeprefix(keys.JOB), _pairs(command[2:]))
        elif name == b"HSET" and key.startswith(keys.LEASED):
            row, worker = command[2].decode(), command[3].decode().rpartition(" ")[2]
            work = f"{key.removeprefix(keys.LEASED)}:{row}"
            if worker == "-":
                self._add(work, "waits")
            self._claimed = (work, worker)
        elif name == b"ZADD" and key == keys.LEASES and command[3].decode() == self._claimed[0]:
            work, worker = self._claimed
            self._claimed = ("", "")
            self._now = float(command[2]) - self._lease_ms
            self._add(work, "started", worker)
        elif name == b"RPUSH" and key.startswith((keys.RESULTS, keys.FAILURES)):
            at_ms, row, _ = command[2].split(b" ", 2)
            self._now = float(at_ms)
            self._add(f"{key.rpartition(':')[2]}:{row.decode()}", "ended")

    def _take_job(self, job: str, changes: dict[str, str]) -> None:
        status = changes.get("status", "")
        for time in ("created_at", "started_at", "finished_at"):
            self._now = float(changes.get(time, self._now))
        if status == "running":
            self._add(job, "started", changes["worker"])
        elif status == "queued":
            self._add(job, "waits")
        elif status in _ENDS:
            self._add(job, "ended")

    def _add(self, work: str, what: str, worker: str = "") -> None:
        self.events[work].append(Event(self._now, what, worker))


def _pairs(parts: list[bytes]) -> dict[str, str]:
    """Names and values in turn; only what is short and text."""
    values = zip(parts[::2], parts[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in values if len(value) < 100}


def _commands(directory: Path) -> Iterator[list[bytes]]:
    """In order. Redis 7 has a folder of files, earlier ones have one."""
    files = sorted((directory / "appendonlydir").glob("*.incr.aof"), key=_number)
    for file in files or [directory / "appendonly.aof"]:
        with file.open("rb") as content:
            yield from itertools.takewhile(bool, iter(lambda c=content: _command(c), None))


def _number(file: Path) -> int:
    return int(file.name.split(".")[-3])


def _command(content: IO[bytes]) -> list[bytes]:
    """Nothing at the end, also where a killed server has broken off."""
    while (line := content.readline()).startswith(b"#"):  # Redis 7's notes of the time
        pass
    if not line.endswith(b"\n"):
        return []
    parts = []
    for _ in range(int(line[1:])):
        size = int(content.readline()[1:] or b"-1")
        part = content.read(size + 2)
        if size < 0 or len(part) < size + 2:
            return []
        parts.append(part[:-2])
    return parts
