"""Which files a person means by names, folders and patterns. Does not read them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_ENDINGS = (".txt", ".jsonl", ".csv")
_KNOWN = ".txt, .jsonl or .csv"


class SourceError(ValueError):
    """A file that a person gave cannot be used. Says which, where in it, and why."""


class Source(NamedTuple):
    path: Path
    name: str  # its own, or below the folder that was given


def find_sources(names: Sequence[str]) -> list[Source]:
    """The files that names mean: files, folders with all below them, and patterns such as `*.txt`.

    Each once, in the order of the names, and of a folder's paths. Raises SourceError.
    """
    found: dict[Path, Source] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = [Source(f, f.relative_to(path).as_posix()) for f in _texts_below(path)]
            lacks = f"no {_KNOWN} file is in the folder {name}"
        elif path.is_file():
            files = [Source(path, path.name)]
            lacks = ""
        else:
            # Path.glob takes no absolute pattern.
            matches = sorted(map(Path, glob.glob(name, recursive=True)))  # noqa: PTH207
            files = [Source(match, match.name) for match in matches if match.is_file()]
            lacks = f"{name}: no such file or folder"
        if not files:
            raise SourceError(lacks)
        for file in files:
            if ending(file.path) not in _ENDINGS:
                raise SourceError(wrong_ending(file.path))
            found.setdefault(file.path.resolve(), file)
    return list(found.values())


def ending(path: Path) -> str:
    """By its ending, before `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def wrong_ending(path: Path) -> str:
    return f"{path}: text comes from {_KNOWN} files, each also with .gz"


def _texts_below(folder: Path) -> list[Path]:
    """Files that we can read, but for hidden ones, in the order of their paths."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and ending(path) in _ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
