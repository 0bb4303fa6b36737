from __future__ import annotations

from slm_jobs.outage import Outage


def test_only_a_long_outage_makes_a_janitor_wait() -> None:
    now = 100.0
    outage = Outage(15.0, clock=lambda: now)
    now += 5
    assert outage.pause() == 0
    now += 0.1
    assert outage.pause() == 15
    now += 60
    assert outage.pause() == 15
    outage.over()
    now += 1
    assert outage.pause() == 0
