"""Python, disk, memory and clock."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from slm_client.doctor.finding import Finding, fault, ok, warning

_OLDEST = (3, 11)
_GIB = 1 << 30
_LITTLE_DISK, _NO_DISK = 2 * _GIB, _GIB // 4  # Redis writes its file anew beside the old one
_LITTLE_MEMORY, _NO_MEMORY = 2 * _GIB, _GIB // 2  # a worker with the shipped models takes 0.7 GiB
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def python() -> Iterator[Finding]:
    says = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < _OLDEST:
        yield fault("python", f"{says}.", "Take 3.11 or newer: `make PYTHON=python3.12 up`.")
    else:
        yield ok("python", f"{says}.")


def disk(data_dir: Path) -> Iterator[Finding]:
    """Of the data folder, or where it would be made."""
    folder = data_dir.resolve()
    while not folder.exists():
        folder = folder.parent
    elsewhere = "choose another --data-dir"
    if not folder.is_dir():
        yield fault("disk", f"{folder} is no folder.", "Choose another --data-dir.")
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        who = f"`sudo chown $(id -u) {folder}`"
        yield fault("disk", f"{folder} cannot be written.", f"{who}, or {elsewhere}.")
        return
    free = shutil.disk_usage(folder).free
    says = f"{_size(free)} free for {data_dir}."
    mend = f"Make room: `du -sh {folder}/*` shows what takes it; or {elsewhere}."
    if free < _NO_DISK:
        yield fault("disk", f"{says} Redis stops taking jobs when it cannot write its file.", mend)
    elif free < _LITTLE_DISK:
        yield warning("disk", says, mend)
    else:
        yield ok("disk", says)


def memory() -> Iterator[Finding]:
    """What is free now, for this process's control group too."""
    free = _free_memory()
    if free is None:
        yield ok("memory", "this system does not tell.")
        return
    says = f"{_size(free)} free."
    mend = "Stop what else runs here, take fewer --workers or --slots, or raise the limit."
    if free < _NO_MEMORY:
        yield fault("memory", f"{says} A worker would be killed.", mend)
    elif free < _LITTLE_MEMORY:
        yield warning("memory", f"{says} A worker takes 0.7 GiB, Redis up to 1 GiB.", mend)
    else:
        yield ok("memory", says)


def clock() -> Iterator[Finding]:
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now + 86_400 < Path(__file__).stat().st_mtime:
        says = f"it is {shown} here, before this program was installed."
        yield fault("clock", says, "Set it: `sudo timedatectl set-ntp true`.")
    else:
        yield ok("clock", f"{shown}.")


def _free_memory() -> int | None:
    """Bytes; None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        most = int((_CGROUP / "memory.max").read_text())  # "max": there is no limit
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used -= int(stat["inactive_file"])  # cache that makes room by itself
    except (OSError, KeyError, ValueError):
        return free
    return min(free, most - max(0, used))


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
