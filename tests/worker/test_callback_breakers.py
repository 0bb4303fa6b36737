"""When a receiver is left alone, and when it is tried again."""

from __future__ import annotations

import logging

import pytest

from worker.callbacks import breakers
from worker.callbacks.breakers import FAILURES, FIRST_PROBE_SECONDS, Breakers

LANE = "k receiver:443"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_breaker_opens_after_failures_in_a_row() -> None:
    found = Breakers(Clock())
    for _ in range(FAILURES - 1):
        found.note(LANE, reached=False)
    found.note(LANE, reached=True)
    for _ in range(FAILURES - 1):
        found.note(LANE, reached=False)
    assert found.limits() == {}
    assert found.next_probe() is None

    found.note(LANE, reached=False)
    assert found.limits() == {LANE: 0}
    assert found.next_probe() == FIRST_PROBE_SECONDS


def test_one_probe_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    found = Breakers(clock)
    for _ in range(FAILURES + 7):  # others were on their way when it opened
        found.note(LANE, reached=False)
        clock.now += FIRST_PROBE_SECONDS / 10
    clock.now += FIRST_PROBE_SECONDS / 10
    assert found.limits() == {LANE: 0}
    clock.now += FIRST_PROBE_SECONDS / 5
    assert found.next_probe() is None
    assert found.limits() == {LANE: 1}

    pauses: list[float | None] = []
    for _ in range(7):
        found.note(LANE, reached=False)
        assert found.limits() == {LANE: 0}
        pauses.append(found.next_probe())
        clock.now += pauses[-1] or 0
    assert pauses == pytest.approx([2, 4, 8, 16, 30, 30, 30])
    found.note(LANE, reached=True)
    assert found.limits() == {}
    assert [record.getMessage() for record in caplog.records] == [
        "receiver:443 cannot be reached; one attempt at a time, less and less",
        "receiver:443 answers again",
    ]


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakers, "_MOST", 10)
    found = Breakers(Clock())
    for number in range(30):
        for _ in range(FAILURES):
            found.note(f"k {number}:443", reached=False)
    assert list(found.limits()) == [f"k {number}:443" for number in range(20, 30)]
