"""The two token files of a corpus: documents are chosen, rid of copies, and tokenized.

Knows nothing of screens and command lines; see `training.prepare`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from slm_core.tokenizer import Tokenizer
from training import split
from training.duplicates import NearIndex, Seen, load_index
from training.files import Source, SourceError
from training.parallel import ordered_map
from training.sources import Reader, TextFormat
from training.tokens import META, TOKEN_DTYPE, TRAIN, VAL, TokenWriter, write_meta

_CHUNK = 1 << 20  # characters of documents that a process gets at a time


class Chunk(NamedTuple):
    """Some documents of one source."""

    source: int
    texts: list[str]
    position: int  # bytes of all sources up to here


class Examined(NamedTuple):
    """Those of a chunk that are on the side asked for: a number or an item each."""

    source: int
    position: int
    looked_at: int  # how many texts the chunk had
    digests: NDArray[np.uint64]
    near: NDArray[np.bool_]  # to a validation document
    tokens: list[bytes]  # ids as a token file has them; none where `near`
    shingles: list[NDArray[np.uint64]]


@dataclass(frozen=True)
class Examiner:
    """Chooses and tokenizes the documents of one side. Runs in several processes.

    Attributes:
        validation: which side.
        fraction: of all documents, for validation; None: all are on the side asked for.
        seed: of the split.
        index: folder of the validation documents' shingles, once they are known.
    """

    validation: bool
    fraction: float | None
    seed: int
    index: Path | None = None

    def __call__(self, chunk: Chunk) -> Examined:
        tokenizer = Tokenizer()
        near_index = load_index(self.index) if self.index else None
        shingler = split.Shingler()
        digests, near, tokens, all_shingles = [], [], [], []
        for text in chunk.texts:
            normalised = split.normalise(text)
            digest = split.digest(normalised)
            if not self._is_ours(digest):
                continue
            shingles = shingler(normalised)
            is_near = near_index is not None and near_index.is_near(shingles)
            ids = [] if is_near else [*tokenizer.encode(text), tokenizer.eos_id]
            digests.append(digest)
            near.append(is_near)
            tokens.append(np.asarray(ids, TOKEN_DTYPE).tobytes())
            if self.validation:
                all_shingles.append(shingles)
        return Examined(
            chunk.source,
            chunk.position,
            len(chunk.texts),
            np.array(digests, np.uint64),
            np.array(near, np.bool_),
            tokens,
            all_shingles,
        )

    def _is_ours(self, digest: int) -> bool:
        if self.fraction is None:
            return True
        side = split.is_validation(digest, fraction=self.fraction, seed=self.seed)
        return side == self.validation


class Progress(Protocol):
    """Hears how far the reading of `text` is: bytes of all `size`, and documents so far."""

    def __call__(self, text: str, *, done: int, size: int, documents: int) -> None: ...


class Corpus:
    """Makes a folder of token files.

    Attributes:
        notes: what a person should know about the text, once it was read.
    """

    def __init__(
        self,
        out: Path,
        *,
        text_format: TextFormat,
        seed: int,
        processes: int,
        on_progress: Progress,
    ) -> None:
        self._out = out
        self._format = text_format
        self._seed = seed
        self._processes = processes
        self._on_progress = on_progress
        self._seen = Seen()
        self._dropped = {"empty": 0, "bad": 0, "duplicates": 0, "near_duplicates": 0}
        self.notes: list[str] = []

    def make(
        self, sources: Sequence[Source], valid: Sequence[Source], fraction: float
    ) -> dict[str, Any]:
        """The meta of what it wrote. `valid` is all of the validation text, or none for a split.

        The files' order changes that of the documents, never a document's side. Raises SourceError,
        and then leaves what was in the folder.
        """
        self._out.mkdir(parents=True, exist_ok=True)
        part = None if valid else fraction
        with (
            TokenWriter(self._out / VAL) as val_file,
            TokenWriter(self._out / TRAIN) as train_file,
            tempfile.TemporaryDirectory(prefix=".index.", dir=self._out) as index,
        ):
            reader = Reader(self._format)
            shingles: list[NDArray[np.uint64]] = []
            examiner = Examiner(validation=True, fraction=part, seed=self._seed)
            val = self._write(val_file, valid or sources, reader, examiner, shingles)
            if not val["documents"]:
                raise SourceError(
                    f"with --valid-fraction {part} no document was chosen for validation: give a "
                    "larger one, or a text of its own with --valid"
                )
            NearIndex.build(shingles).save(Path(index))
            shingles.clear()
            # A split reads the same files again, with the same to say about them.
            train_reader = reader if valid else Reader(self._format)
            examiner = replace(examiner, validation=False, index=Path(index))
            train = self._write(train_file, sources, train_reader, examiner)
            if not train["documents"]:
                raise SourceError(
                    "no document is left to train on: every one is also, or nearly, in the "
                    "validation text"
                )
            (self._out / META).unlink(missing_ok=True)  # it tells of the files to be replaced
        self.notes = reader.notes()
        meta = {
            "tokenizer": Tokenizer.name,
            "seed": self._seed,
            "valid_fraction": part,
            "train": train,
            "val": val,
            "dropped": {**self._dropped, "empty": reader.empty, "bad": reader.bad},
        }
        write_meta(self._out, meta)
        return meta

    def _write(
        self,
        file: TokenWriter,
        sources: Sequence[Source],
        reader: Reader,
        examiner: Examiner,
        shingles: list[NDArray[np.uint64]] | None = None,
    ) -> dict[str, Any]:
        """One side. Its part of the meta; `shingles` gets those of every document."""
        text = "validation" if examiner.validation else "training"
        size = sum(source.path.stat().st_size for source in sources)
        looked_at, documents = 0, [0] * len(sources)
        self._on_progress(text, done=0, size=size, documents=0)
        chunks = _chunks(reader, sources)
        for examined in ordered_map(examiner, chunks, processes=self._processes):
            new = self._seen.add(examined.digests)
            kept = np.flatnonzero(new & ~examined.near)
            self._dropped["duplicates"] += int((~new).sum())
            self._dropped["near_duplicates"] += int((new & examined.near).sum())
            documents[examined.source] += len(kept)
            file.write(b"".join(examined.tokens[i] for i in kept))
            if shingles is not None:
                shingles += [examined.shingles[i] for i in kept]
            looked_at += examined.looked_at
            self._on_progress(text, done=examined.position, size=size, documents=looked_at)
        self._on_progress(text, done=size, size=size, documents=looked_at)
        return {
            "sources": [
                {"name": source.name, "sha256": _sha256(source.path), "documents": count}
                for source, count in zip(sources, documents, strict=True)
            ],
            "documents": sum(documents),
            "tokens": file.tokens,
            "sha256": file.sha256,
        }


def _chunks(reader: Reader, sources: Sequence[Source]) -> Iterator[Chunk]:
    before = 0
    for i, source in enumerate(sources):
        texts: list[str] = []
        size = 0
        for text in reader.documents(source.path):
            texts.append(text)
            size += len(text)
            if size >= _CHUNK:
                yield Chunk(i, texts, before + reader.position)
                texts, size = [], 0
        before += source.path.stat().st_size
        if texts:
            yield Chunk(i, texts, before)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
