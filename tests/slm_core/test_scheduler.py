"""No slot lost or shared, whatever comes and goes in whatever order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slm_core import SamplingParams
from slm_core.scheduler import Scheduler, Sequence

SLOTS = 4
BUDGET = 64


def padded(length: int) -> int:
    return -(-length // 16) * 16


class Slots(RuleBasedStateMachine):
    """`rows` is the truth: the tensor rows that an engine would hold, moved as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Sequence | None] = [None] * SLOTS
        self.arrived: list[Sequence] = []
        self.ended: list[Sequence] = []
        self.now = 0.0

    @initialize(reserved=st.integers(0, SLOTS + 1))
    def start(self, reserved: int) -> None:
        self.scheduler = Scheduler(
            SLOTS, prefill_tokens=BUDGET, prompt_cost=padded, reserved=reserved
        )
        self.reserved = min(reserved, SLOTS - 1)

    @rule(
        length=st.integers(1, 100),
        priority=st.integers(-1, 2),
        patience=st.none() | st.integers(0, 5),
    )
    def add(self, length: int, priority: int, patience: int | None) -> None:
        deadline = None if patience is None else self.now + patience
        ids = [0] * length
        sequence = Sequence(len(self.arrived), ids, SamplingParams(), priority, deadline)
        self.arrived.append(sequence)
        self.scheduler.add(sequence)

    @rule()
    def admit(self) -> None:
        free = SLOTS - len(self.scheduler.live)
        waiting = self.scheduler.waiting
        assert waiting == sorted(waiting, key=lambda s: (-s.priority, s.id))
        admitted = self.scheduler.admit()
        for slot, sequence in enumerate(admitted, SLOTS - free):
            assert self.rows[slot] is None
            self.rows[slot] = sequence
        assert {s.id for s in admitted} == {s.id for s in waiting[: len(admitted)]}
        lengths = [len(s.prompt_ids) for s in admitted]
        assert lengths == sorted(lengths)
        assert sum(map(padded, lengths)) <= BUDGET or len(admitted) == 1
        if any(s.priority < 0 for s in admitted):
            assert len(self.scheduler.live) <= SLOTS - self.reserved
        taken = self.reserved if waiting and waiting[0].priority < 0 else 0
        assert bool(admitted) == bool(free > taken and waiting)

    @precondition(lambda self: self.scheduler.live)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        for sequence in data.draw(st.lists(st.sampled_from(self.scheduler.live), unique=True)):
            sequence.finish_reason = sequence.finish_reason or "stop"

    @rule(sequence_id=st.integers(0, 30))
    def cancel(self, sequence_id: int) -> None:
        """Whether it waits, runs, has ended, or never was."""
        self.scheduler.end(sequence_id, "cancelled")
        here = [s for s in self.arrived if s.id == sequence_id and s not in self.ended]
        assert all(s.finish_reason for s in here)

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.scheduler.expire(self.now)
        for sequence in self.arrived:
            late = sequence.deadline is not None and sequence.deadline <= self.now
            assert sequence.finish_reason or sequence in self.ended or not late

    @rule()
    def release(self) -> None:
        finished, moves = self.scheduler.release()
        self.ended += finished
        self.rows = [None if s and s.finish_reason else s for s in self.rows]
        for source, target in moves:
            assert self.rows[target] is None
            self.rows[target], self.rows[source] = self.rows[source], None
        assert all(s in self.ended for s in self.arrived if s.finish_reason)

    @precondition(lambda self: len(self.arrived) > 10)
    @rule()
    def clear(self) -> None:
        self.scheduler.clear()
        self.ended = list(self.arrived)
        self.rows = [None] * SLOTS

    @invariant()
    def slots_are_dense_and_true(self) -> None:
        live = self.scheduler.live
        assert self.rows[: len(live)] == live
        assert not any(self.rows[len(live) :])

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        held = [s.id for s in (*self.scheduler.live, *self.scheduler.waiting, *self.ended)]
        dropped = [s.id for s in self.arrived if s.finish_reason and s.id not in held]
        assert sorted(held + dropped) == [s.id for s in self.arrived]
        assert len(self.scheduler) == len(self.arrived) - len(self.ended)


def test_who_may_not_be_admitted_yet_blocks_nobody() -> None:
    scheduler = Scheduler(4, prefill_tokens=1024, prompt_cost=padded, reserved=1)

    def add(first: int, count: int, priority: int) -> None:
        for sequence_id in range(first, first + count):
            scheduler.add(Sequence(sequence_id, [0], SamplingParams(), priority))

    add(0, 5, priority=-1)
    assert [s.id for s in scheduler.admit()] == [0, 1, 2]
    assert scheduler.admit() == []  # two wait, and a slot is free
    add(5, 2, priority=0)
    assert [s.id for s in scheduler.admit()] == [5]
    scheduler.end(0, "cancelled")
    scheduler.release()
    assert [s.id for s in scheduler.admit()] == [6]  # before 3, which is older
    for sequence_id in (1, 5):
        scheduler.end(sequence_id, "cancelled")
    scheduler.release()
    assert [s.id for s in scheduler.admit()] == [3]
    assert scheduler.admit() == []


TestSlots = Slots.TestCase
TestSlots.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, derandomize=True
)
