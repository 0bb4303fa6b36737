"""No slot lost or shared, whatever comes and goes in whatever order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slm_core import SamplingParams
from slm_core.scheduler import Scheduler, Sequence

SLOTS = 4
BUDGET = 64


class Slots(RuleBasedStateMachine):
    """`where` is the truth: the tensor rows that an engine would hold, moved as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(
            SLOTS, prefill_tokens=BUDGET, prompt_bucket=lambda n: -(-n // 16) * 16
        )
        self.rows: list[Sequence | None] = [None] * SLOTS
        self.arrived: list[Sequence] = []
        self.ended: list[Sequence] = []

    @rule(length=st.integers(1, 100))
    def add(self, length: int) -> None:
        sequence = Sequence(len(self.arrived), [0] * length, SamplingParams())
        self.arrived.append(sequence)
        self.scheduler.add(sequence)

    @rule()
    def admit(self) -> None:
        free = SLOTS - len(self.scheduler.live)
        waiting = list(self.scheduler.waiting)
        groups = self.scheduler.admit()
        admitted = [s for group in groups for s in group]
        for group in groups:
            assert len({-(-len(s.prompt_ids) // 16) for s in group}) == 1
            first = self.scheduler.live.index(group[0])
            for slot, sequence in enumerate(group, first):
                assert self.rows[slot] is None
                self.rows[slot] = sequence
        assert len(admitted) <= free
        assert {s.id for s in admitted} == {s.id for s in waiting[: len(admitted)]}
        padded = sum(-(-len(s.prompt_ids) // 16) * 16 for s in admitted)
        assert padded <= BUDGET or len(admitted) == 1
        assert bool(admitted) == bool(free and waiting)

    @precondition(lambda self: len(self.scheduler))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        candidates = [*self.scheduler.live, *self.scheduler.waiting]
        for sequence in data.draw(st.lists(st.sampled_from(candidates), unique=True)):
            sequence.finish_reason = "stop"

    @rule()
    def release(self) -> None:
        finished, moves = self.scheduler.release()
        self.ended += finished
        self.rows = [None if s and s.finish_reason else s for s in self.rows]
        for source, target in moves:
            assert self.rows[target] is None
            self.rows[target], self.rows[source] = self.rows[source], None

    @invariant()
    def slots_are_dense_and_true(self) -> None:
        live = self.scheduler.live
        assert self.rows[: len(live)] == live
        assert not any(self.rows[len(live) :])

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        everyone = [*self.scheduler.live, *self.scheduler.waiting, *self.ended]
        assert sorted(s.id for s in everyone) == [s.id for s in self.arrived]


TestSlots = Slots.TestCase
TestSlots.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, derandomize=True
)
