"""Token files, and the folder that `training.prepare` makes of them.

A token file is a flat array of little-endian uint16 ids of GPT-2's tokenizer, `<|endoftext|>` after
every document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from slm_core.checkpoint import write_text
from slm_core.tokenizer import Tokenizer

TOKEN_DTYPE = np.dtype("<u2")
_CHUNK = 1 << 24  # tokens that are searched for ends of documents at once
TRAIN, VAL, META = "train.bin", "val.bin", "meta.json"


class TokenFileError(ValueError):
    """A token file, or a folder of them, is missing or damaged. Says which, and what to do."""


def read_tokens(path: str | Path) -> NDArray[np.uint16]:
    """The ids of a token file, [tokens], memory-mapped and read-only. Raises TokenFileError."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if not size or size % TOKEN_DTYPE.itemsize:
            raise TokenFileError(f"{path} is no token file: it is {size} bytes long")
        tokens: NDArray[np.uint16] = np.asarray(np.memmap(path, TOKEN_DTYPE, mode="r"))
    except OSError as error:
        raise TokenFileError(f"cannot read {path}: {error.strerror}") from None
    if tokens[-1] != Tokenizer().eos_id:
        raise TokenFileError(
            f"{path} is no token file, or was cut off: its last id is not <|endoftext|>"
        )
    return tokens


def split_documents(tokens: NDArray[np.uint16]) -> Sequence[NDArray[np.uint16]]:
    """The documents of a token file, each with the end-of-text token that ends it."""
    ends = document_ends(tokens, Tokenizer().eos_id)
    return _Documents(tokens, np.concatenate([[0], ends[:-1]]), ends) if len(tokens) else []


class _Documents(Sequence[NDArray[np.uint16]]):
    """Pieces of `tokens`, from `begins` to `ends`: millions of them, so each is made when asked
    for."""

    def __init__(
        self, tokens: NDArray[np.uint16], begins: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> None:
        self._tokens, self._begins, self._ends = tokens, begins, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> NDArray[np.uint16]: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[NDArray[np.uint16]]: ...
    def __getitem__(self, at: int | slice) -> NDArray[np.uint16] | Sequence[NDArray[np.uint16]]:
        if isinstance(at, slice):
            return _Documents(self._tokens, self._begins[at], self._ends[at])
        return self._tokens[self._begins[at] : self._ends[at]]


def document_ends(tokens: NDArray[np.uint16], eos: int) -> NDArray[np.int64]:
    """Where documents of some tokens end, the last one with them. They may be a memory map."""
    parts = [
        np.flatnonzero(tokens[i : i + _CHUNK] == eos) + i + 1 for i in range(0, len(tokens), _CHUNK)
    ]
    ends = np.concatenate(parts)
    return ends if len(ends) and ends[-1] == len(tokens) else np.append(ends, len(tokens))


@dataclass(frozen=True)
class DataFolder:
    """What a model is trained on.

    Attributes:
        train: [tokens], memory-mapped and read-only.
        val: the same, of other documents.
        meta: how they came about; see `training.prepare`.
    """

    train: NDArray[np.uint16]
    val: NDArray[np.uint16]
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Raises TokenFileError if something is missing, or the files are not those of the meta."""
        path = Path(path)
        again = f"python -m training.prepare SOURCE --out {path} makes it"
        try:
            meta = json.loads((path / META).read_text("utf-8"))
            expected = {TRAIN: int(meta["train"]["tokens"]), VAL: int(meta["val"]["tokens"])}
            tokenizer = meta["tokenizer"]
        except FileNotFoundError:
            raise TokenFileError(f"no data in {path}: {META} is missing; {again}") from None
        except OSError as error:
            raise TokenFileError(f"cannot read {path / META}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TokenFileError(f"{path / META} is damaged ({error!r}); {again} anew") from None
        if tokenizer != Tokenizer.name:
            raise TokenFileError(f"{path / META} tells of tokenizer {tokenizer!r}, not 'gpt2'")
        tokens = {name: read_tokens(path / name) for name in expected}
        for name, count in expected.items():
            if len(tokens[name]) != count:
                raise TokenFileError(
                    f"{path / name} has {len(tokens[name])} tokens and {META} tells of {count}: "
                    f"they are of different runs; {again} anew"
                )
        return cls(tokens[TRAIN], tokens[VAL], meta)


class TokenWriter:
    """A token file that is written under a temporary name, and is there once all went well.

    Attributes:
        tokens: how many were written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._file = self._partial.open("wb")
        self._digest = hashlib.sha256()
        self.tokens = 0

    def write(self, ids: bytes) -> None:
        """Ids in the file's own format."""
        self._file.write(ids)
        self._digest.update(ids)
        self.tokens += len(ids) // TOKEN_DTYPE.itemsize

    @property
    def sha256(self) -> str:
        """Of what was written, in hex."""
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        try:
            self._file.close()  # where a full disk may show
            if kind is None:
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Puts `meta.json` there at once."""
    write_text(folder / META, json.dumps(meta, indent=2) + "\n")
