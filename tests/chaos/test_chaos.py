"""The short form of the chaos suite; `make chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.monkey import Kind, plan
from tests.chaos.run import Options, run

FAULTS = 24  # all of one deck
SHORT = Options(checkpoint=Path(), seed=3, seconds=80, faults=FAULTS, lease=3.0, per_second=3.0)


def test_a_seed_decides_what_happens() -> None:
    asked = {"faults": FAULTS, "seconds": SHORT.seconds, "lease": SHORT.lease}
    faults = plan(SHORT.seed, **asked)
    assert faults == plan(SHORT.seed, **asked) != plan(SHORT.seed + 1, **asked)
    assert {fault.kind for fault in faults} == set(Kind)
    assert faults == sorted(faults, key=lambda fault: fault.at)
    assert len(plan(7, faults=110, seconds=600, lease=15)) == 110


@pytest.mark.timeout(480)
def test_nothing_is_lost_and_nothing_doubled(checkpoint: Path, tmp_path: Path) -> None:
    wrong, figures = run(SHORT._replace(checkpoint=checkpoint), tmp_path)
    assert wrong == []
    assert figures["faults"] == FAULTS
    assert (figures["lost"], figures["doubled"]) == (0, 0)
    assert all(figures[name] for name in ("jobs", "rows", "callbacks", "recoveries")), figures
