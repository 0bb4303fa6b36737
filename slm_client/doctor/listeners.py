"""Who listens on a port of this machine, as Linux tells it in /proc. Elsewhere nobody is known."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")
_LISTEN = "0A"  # a state of /proc/net/tcp
_COMMAND = 60  # characters of a command line


def listener(port: int) -> str | None:
    """Such as `process 1234 (nginx: master process)`; None where it is not told: it is somebody
    else's, or in another container."""
    inodes = _inodes(port)
    for folder in _PROC.glob("[0-9]*"):
        if inodes and not inodes.isdisjoint(_sockets(folder)):
            return f"process {folder.name} ({_command(folder)})"
    return None


def _inodes(port: int) -> set[str]:
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            cells = line.split()
            local, state, inode = cells[1], cells[3], cells[9]
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                found.add(f"socket:[{inode}]")
    return found


def _sockets(folder: Path) -> set[str]:
    found = set()
    try:
        for file in (folder / "fd").iterdir():
            try:
                found.add(str(file.readlink()))
            except OSError:
                continue  # closed meanwhile
    except OSError:
        pass  # it has ended, or is somebody else's
    return found


def _command(folder: Path) -> str:
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "ended meanwhile"
    return b" ".join(words).decode("utf-8", "replace").strip()[:_COMMAND]
