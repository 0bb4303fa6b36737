"""A folder that one process at a time writes into."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class InUse(ValueError):
    """Another process works in the folder. Says which, and what to do."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes `folder` where it is missing, and keeps others out who ask for it likewise.

    The lock is on the folder itself: it ends with the process, however that ends, and leaves no
    file. Where a file system has no such locks (some of a network) nobody is kept out. A folder
    that was made here and is still empty at the end goes again. Raises InUse and OSError.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(
                f"another process is writing into {folder}: wait for its end, or name another --out"
            ) from None
        except OSError:
            pass
        yield
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()
        os.close(descriptor)
