"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU in so many


def cores(quota: Path = _QUOTA) -> int:
    """At least 1. A container's limit of CPU time counts: threads above it only wait for it."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    try:
        granted, period = quota.read_text().split()
        return allowed if granted == "max" else max(1, min(allowed, int(granted) // int(period)))
    except (OSError, ValueError):
        return allowed  # no Linux, or no control group
