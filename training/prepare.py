"""Text files to what a model is trained on: `python -m training.prepare --help`."""

from __future__ import annotations

import json
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from slm_core.command import command_line
from slm_core.tokenizer import END_OF_TEXT
from training import download
from training.corpus import Corpus
from training.files import SourceError, find_sources
from training.lock import InUse, alone_in
from training.parallel import usable_processors
from training.sources import TextFormat

_screen = Console(stderr=True)

app = command_line()


@app.command(no_args_is_help=True)
def main(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Files (.txt, .jsonl, .csv, each also .gz), folders, or patterns in quotes.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for train.bin, val.bin and meta.json.", file_okay=False)
    ] = Path("data"),
    valid: Annotated[
        list[str] | None,
        typer.Option(help="Text to validate on, like SOURCE; may be given again."),
    ] = None,
    valid_fraction: Annotated[
        float, typer.Option(help="Without --valid: part of the documents to validate on.")
    ] = 0.01,
    seed: Annotated[
        int, typer.Option(help="Another seed chooses other documents.", min=0, max=2**63 - 1)
    ] = 1,
    tinystories: Annotated[
        bool, typer.Option("--tinystories", help="Download TinyStories (2.3 GB) and take that.")
    ] = False,
    separator: Annotated[
        str | None,
        typer.Option(
            help="The line that ends a document of a .txt; `blank`: blank lines do; `file`: each "
            f"file is one document. [default: {END_OF_TEXT}, or blank without such a line]",
            show_default=False,
        ),
    ] = None,
    text_field: Annotated[
        str, typer.Option(help="The column of a .csv, or key in a .jsonl, with the text.")
    ] = "text",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out what cannot be read, instead of ending.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(help="How many work on it.", min=1, show_default="one a processor"),
    ] = None,
) -> None:
    """Turn text into token files that `python -m training.train --data OUT` learns from.

    A document, such as a story, stands for itself: it is ended by <|endoftext|>, and is either
    learned from or validated on. Which one depends on its words and the seed alone. Documents with
    the same words are kept once; those that share most of their phrases with a validation document
    are not learned from. The numbers are printed, and stand in OUT/meta.json.

    Examples:

    \b
      python -m training.prepare stories.txt --out data
      python -m training.prepare train.txt.gz --valid valid.txt.gz
      python -m training.prepare poems/ 'more/**/*.jsonl' --text-field poem
      python -m training.prepare novel.txt --separator '***' --valid-fraction 0.1
      python -m training.prepare --tinystories --out tinystories
    """
    if tinystories == bool(sources) or (tinystories and valid):
        raise typer.BadParameter("give either SOURCE, and --valid if you like, or --tinystories")
    if not 0 < valid_fraction < 1:
        raise typer.BadParameter("--valid-fraction is above 0 and below 1")
    text_format = TextFormat(separator, text_field, skip_bad)
    started = time.monotonic()
    try:
        with alone_in(out):
            if tinystories:
                both = (download.TRAIN, download.VALID)
                sources, valid = [[str(download.fetch(f, out / "download"))] for f in both]
            train_sources, valid_sources = find_sources(sources or []), find_sources(valid or [])
            with _Bars() as bars:
                corpus = Corpus(
                    out,
                    text_format=text_format,
                    seed=seed,
                    processes=processes or usable_processors(),
                    on_progress=bars,
                )
                meta = corpus.make(train_sources, valid_sources, valid_fraction)
    except (InUse, SourceError, download.DownloadError) as error:
        raise _failed(str(error)) from None
    except OSError as error:
        raise _failed(f"{error.filename or out}: {error.strerror or error}") from None
    except BrokenProcessPool:
        raise _failed("a process died, of too little memory perhaps: try --processes 1") from None
    for note in corpus.notes:
        _say(note)
    for side, name in (("train", "train on"), ("val", "validate on")):
        _say(f"to {name}: {meta[side]['tokens']:,} tokens, documents: {meta[side]['documents']:,}")
    dropped = ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in meta["dropped"].items())
    _say(f"left out: {dropped}. {out} was made in {time.monotonic() - started:.1f} s.")
    typer.echo(json.dumps(meta))


class _Bars(Progress):
    """A line on the screen for each text."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[documents]:,} documents, {task.fields[rate]:,.0f}/s"),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=_screen,
        )
        self._texts: dict[str, tuple[TaskID, float]] = {}

    def __call__(self, text: str, *, done: int, size: int, documents: int) -> None:
        if text not in self._texts:
            task = self.add_task(f"{text} text", total=size, documents=0, rate=0.0)
            self._texts[text] = (task, time.monotonic())
        task, started = self._texts[text]
        rate = documents / max(time.monotonic() - started, 1e-3)
        self.update(task, completed=done, documents=documents, rate=rate)


def _say(text: str) -> None:
    _screen.print(text, markup=False, highlight=False, soft_wrap=True)


def _failed(reason: str) -> typer.Exit:
    _screen.print(reason, style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(1)


if __name__ == "__main__":
    app()
