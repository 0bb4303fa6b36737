"""Text files to token files: `python -m training.prepare --help`.

A token file is a flat array of little-endian uint16 ids, `<|endoftext|>` after every document.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

from slm_core.tokenizer import END_OF_TEXT, Tokenizer

TOKEN_DTYPE = np.dtype("<u2")
_DOCUMENTS_PER_WRITE = 1024


def read_documents(path: Path) -> Iterator[str]:
    """Documents of a `.txt` or `.txt.gz` file, each ended by a line with only `<|endoftext|>`.

    Raises ValueError, naming the file, where it is not UTF-8.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    lines: list[str] = []
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for line in file:
                if line.strip() == END_OF_TEXT:
                    yield from _joined(lines)
                    lines = []
                else:
                    lines.append(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    yield from _joined(lines)


def _joined(lines: list[str]) -> Iterator[str]:
    if text := "".join(lines).strip():
        yield text


def split_documents(tokens: NDArray[np.uint16]) -> list[NDArray[np.uint16]]:
    """The documents of a token file, each with the end-of-text token that ends it."""
    ends = np.flatnonzero(tokens == Tokenizer().eos_id) + 1
    return [document for document in np.split(tokens, ends) if len(document)]


def tokenize(source: Path, target: Path) -> dict[str, int]:
    """Writes the token file of `source`; returns its counts. Memory stays flat."""
    tokenizer = Tokenizer()
    documents = read_documents(source)
    counts = {"documents": 0, "tokens": 0}
    partial = target.with_suffix(".partial")
    with partial.open("wb") as out:
        chunks = iter(lambda: list(islice(documents, _DOCUMENTS_PER_WRITE)), [])
        for chunk in track(chunks, description=f"tokenizing {source.name}"):
            for ids in tokenizer.encode_batch(chunk, threads=2):
                np.asarray([*ids, tokenizer.eos_id], TOKEN_DTYPE).tofile(out)
                counts["tokens"] += len(ids) + 1
            counts["documents"] += len(chunk)
    partial.rename(target)
    return counts


def main(
    train: Annotated[Path, typer.Option(help="Training text, .txt or .txt.gz.", exists=True)],
    valid: Annotated[Path, typer.Option(help="Validation text.", exists=True)],
    out: Annotated[Path, typer.Option(help="Folder for train.bin, val.bin and meta.json.")],
) -> None:
    """Tokenize stories with GPT-2's BPE. Stories end with a line `<|endoftext|>`."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        meta = {
            "tokenizer": Tokenizer.name,
            "train": {"source": train.name, **tokenize(train, out / "train.bin")},
            "val": {"source": valid.name, **tokenize(valid, out / "val.bin")},
        }
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    (out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    typer.echo(json.dumps(meta))


if __name__ == "__main__":
    typer.run(main)
