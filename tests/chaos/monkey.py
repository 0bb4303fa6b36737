"""The seeded monkey: which faults come when is known before it begins; then it does them, some at
the same time. What happens to a worker happens while it has work, if it soon has any."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from tests.chaos.load import Load
from tests.chaos.network import Network, Trouble
from tests.chaos.stack import Member, Stack

_MANY = 150  # jobs of a flood, more than may wait
_HOURS = 3600
_PATIENCE = 8.0  # seconds until a worker has work; a killed one is back before


class Kind(StrEnum):
    KILL = "kill"  # SIGKILL; it is started again at once
    DRAIN = "drain"  # SIGTERM, likewise
    STOP = "stop"  # SIGSTOP, and later SIGCONT
    NETWORK = "network"
    CLOCK = "clock"  # SIGKILL; the next one's wall clock is hours away
    REDIS_KILL = "redis-kill"  # SIGKILL, and later a start
    REDIS_STOP = "redis-stop"
    FLOOD = "flood"
    CANCEL = "cancel"  # half of what runs


class Fault(NamedTuple):
    at: float  # seconds from the beginning
    kind: Kind
    role: str = ""
    number: int = 0  # of the process in its role
    seconds: float = 0.0
    trouble: Trouble | None = None

    def __str__(self) -> str:
        target = f" {self.role}-{self.number}" if self.role else ""
        how = f" {self.trouble}" if self.trouble else ""
        return f"{self.at:6.1f} s {self.kind}{target}{how} {self.seconds:.1f} s"


class _Card(NamedTuple):
    kind: Kind
    role: str = ""
    seconds: tuple[float, float] = (0.0, 0.0)
    trouble: Trouble | None = None


def _deck(lease: float) -> list[_Card]:
    """One of each, and more of what happens more often. No stop is so long that the watchdog of
    hung engines takes it for one."""
    longer_than_lease = (lease + 1, lease + 4)
    network = partial(_Card, Kind.NETWORK)
    return [
        *[_Card(Kind.KILL, "worker")] * 4,
        *[_Card(Kind.KILL, "api")] * 2,
        _Card(Kind.KILL, "callbacks"),
        _Card(Kind.DRAIN, "worker"),
        _Card(Kind.STOP, "worker", longer_than_lease),
        _Card(Kind.STOP, "api", (1, 4)),
        network("worker", trouble=Trouble.CUT),
        network("api", trouble=Trouble.CUT),
        network("worker", (2, lease + 2), Trouble.AWAY),
        network("worker", (3, 6), Trouble.SLOW),
        network("worker", longer_than_lease, Trouble.SILENT),
        network("api", (1, 4), Trouble.SILENT),
        network("callbacks", (1, 4), Trouble.AWAY),
        network("worker", (1, 4), Trouble.DEAF),
        network("api", (1, 4), Trouble.DEAF),
        _Card(Kind.CLOCK, "worker"),
        _Card(Kind.REDIS_KILL, seconds=(0.1, 2)),
        _Card(Kind.REDIS_STOP, seconds=(0.5, 3)),
        _Card(Kind.FLOOD),
        _Card(Kind.CANCEL),
    ]


_COUNTS = {"worker": 3, "api": 2, "callbacks": 2}


def plan(seed: int, *, faults: int, seconds: float, lease: float) -> list[Fault]:
    """Each deck of faults is dealt before the next, so that none is missing for long."""
    rng = random.Random(seed)
    cards: list[_Card] = []
    while len(cards) < faults:
        deck = _deck(lease)
        rng.shuffle(deck)
        cards += deck
    pause = seconds / faults
    return [
        Fault(
            round(pause * (place + rng.random()), 1),
            card.kind,
            card.role,
            rng.randrange(_COUNTS[card.role]) if card.role else 0,
            round(rng.uniform(*card.seconds), 1),
            card.trouble,
        )
        for place, card in enumerate(cards[:faults])
    ]


class Monkey:
    """Does what was planned. One thing at a time happens to a process, and to Redis."""

    def __init__(
        self, stack: Stack, network: Network, load: Load, say: Callable[[str], None]
    ) -> None:
        self.done: Counter[str] = Counter()  # faults by kind
        self._stack = stack
        self._network = network
        self._load = load
        self._say = say

    def run(self, faults: list[Fault]) -> None:
        """Returns when all are over. Raises what one of them raised."""
        began = time.monotonic()
        with ThreadPoolExecutor(len(faults)) as hands:
            futures = []
            for fault in faults:
                time.sleep(max(0.0, began + fault.at - time.monotonic()))
                futures.append(hands.submit(self._do, fault))
            wait(futures)
        for future in futures:
            future.result()

    def _do(self, fault: Fault) -> None:
        if fault.role:
            member = self._stack.of(fault.role)[fault.number]
            with member.busy:
                if fault.role == "worker":
                    self._wait_for_work(member)
                self._say(str(fault))
                self._harm(member, fault)
        else:
            self._say(str(fault))
            match fault.kind:
                case Kind.FLOOD:
                    self._load.flood(_MANY, seed=round(fault.at * 10))
                case Kind.CANCEL:
                    self._load.cancel_some(0.5, seed=round(fault.at * 10))
                case _:
                    self._harm_redis(fault)
        self.done[fault.trouble or fault.kind] += 1

    def _wait_for_work(self, member: Member) -> None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and not self._stack.holds_work(member):
            time.sleep(0.002)

    def _harm(self, member: Member, fault: Fault) -> None:
        match fault.kind:
            case Kind.KILL:
                self._stack.kill(member)
            case Kind.DRAIN:
                member.signal(signal.SIGTERM)
            case Kind.STOP:
                with _stopped(member.signal):
                    time.sleep(fault.seconds)
            case Kind.CLOCK:
                hours = random.Random(fault.at).choice([-30, -2, 5, 100])
                member.wrong_clock = self._stack.clocks.environment(hours * _HOURS)
                self._stack.kill(member)
            case Kind.NETWORK:
                assert fault.trouble
                self._network.spoil(member.link, fault.trouble, fault.seconds)

    def _harm_redis(self, fault: Fault) -> None:
        with self._stack.redis_busy:
            redis = self._stack.redis_server
            if fault.kind is Kind.REDIS_KILL:
                redis.kill()
                time.sleep(fault.seconds)
                redis.start()
            elif redis.process:
                with _stopped(redis.process.send_signal):
                    time.sleep(fault.seconds)


@contextmanager
def _stopped(send: Callable[[signal.Signals], object]) -> Iterator[None]:
    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


class Progress:
    """Prints lines from many threads, with the time."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        with self._lock:
            print(f"[{time.monotonic() - self._began:6.1f}] {line}", flush=True)  # noqa: T201
