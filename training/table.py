"""All checkpoints under a folder, with what each took and reached: `python -m training.table`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from slm_core import Engine
from slm_core.checkpoint import CONFIG, WEIGHTS, read_config, read_perplexity
from slm_core.command import command_line
from slm_core.describe import parts
from slm_core.errors import CheckpointError, SlmCoreError
from training.documents import Documents, load
from training.metrics import perplexity, text_loss
from training.progress import read_log
from training.run import LAST, SUMMARY


@dataclass
class Row:
    """A checkpoint; what is not known is None, and `error` says what is wrong with it.

    `shape` is layers, heads and width; `tokens` and `minutes` are those of training up to the
    checkpoint, `val_loss` is in nats per token, `megabytes` are the weights on disk.
    """

    checkpoint: str
    shape: str | None = None
    context_length: int | None = None
    parameters: int | None = None
    megabytes: float | None = None
    steps: int | None = None
    tokens: int | None = None
    minutes: float | None = None
    val_loss: float | None = None
    perplexity: float | None = None
    error: str | None = None


def find(folder: Path) -> Iterator[Path]:
    """Checkpoint folders at and under `folder`, in the order of their names."""
    yield from sorted(path.parent for path in folder.rglob(WEIGHTS) if not _hidden(path, folder))


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def row_of(checkpoint: Path, name: str) -> Row:
    """What the checkpoint's files and its log say."""
    row = Row(name)
    try:
        config = read_config(checkpoint)
        recorded = read_perplexity(checkpoint)
    except CheckpointError as error:
        row.error = str(error)
        return row
    row.shape = "\N{MULTIPLICATION SIGN}".join(
        map(str, (config.n_layer, config.n_head, config.n_embd))
    )
    row.context_length = config.context_length
    row.parameters = sum(parts(config).values())
    row.megabytes = round((checkpoint / WEIGHTS).stat().st_size / 1e6, 1)
    if entry := _entry(checkpoint):
        row.steps, row.tokens = entry.get("step"), entry.get("tokens")
        row.minutes = round(entry["seconds"] / 60, 1) if "seconds" in entry else None
        row.val_loss = entry["val_loss"]
        row.perplexity = round(perplexity(row.val_loss), 2)
    elif "fp32" in recorded:
        row.perplexity = round(recorded["fp32"], 2)
        row.val_loss = round(math.log(recorded["fp32"]), 4)
    return row


def _entry(checkpoint: Path) -> dict[str, Any]:
    """The log's entry for a checkpoint: the best, or for a `last` one the last. {} without one.

    Of a run that has ended, the best one's loss is that on all validation documents.
    """
    last = checkpoint.name == LAST
    run = checkpoint.parent if last else checkpoint
    entries = read_log(run)
    if last or not entries:
        return entries[-1] if entries else {}
    best = min(entries, key=lambda entry: entry["val_loss"])
    with suppress(OSError, ValueError, KeyError, TypeError):
        summary = json.loads((run / SUMMARY).read_bytes())
        if summary["step"] == best["step"]:
            best["val_loss"] = summary["val_loss"]
    return best


def measure(row: Row, checkpoint: Path, documents: Documents) -> None:
    """Puts the loss on `documents`, in fp32, in the row, in place of what the log says."""
    if row.error:
        return
    try:
        engine = Engine.from_checkpoint(checkpoint, precision="fp32", slots=1)
        limit = engine.config.context_length
        loss = text_loss(engine.logits, documents, context_length=limit)
    except (SlmCoreError, ValueError) as error:
        row.error = str(error)
        return
    row.val_loss, row.perplexity = round(loss.mean, 4), round(loss.perplexity, 2)


app = command_line()


@app.command(no_args_is_help=True)
def main(
    folder: Annotated[Path, typer.Argument(help="Folder to look through.", exists=True)],
    evaluate: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="Measure every loss on this val.bin or text.",
            show_default="as logged at the time of training",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document instead.")] = False,
) -> None:
    """All checkpoints under a folder: shape, size, training and loss, the best first.

    Logs may have been made on different validation texts, or on parts of them: --evaluate measures
    all alike.

    Examples:

    \b
      python -m training.table runs
      python -m training.table runs --evaluate data/val.bin
      python -m training.table runs --json
    """
    checkpoints = list(find(folder))
    if not checkpoints:
        raise typer.BadParameter(f"no {WEIGHTS} beside a {CONFIG} in {folder} or under it")
    names = [str(path.relative_to(folder)) for path in checkpoints]
    rows = [row_of(path, name) for path, name in zip(checkpoints, names, strict=True)]
    if evaluate:
        try:
            documents = load(evaluate)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        pairs = list(zip(rows, checkpoints, strict=True))
        for row, path in track(pairs, "Evaluating", console=Console(stderr=True), transient=True):
            measure(row, path, documents)
    rows.sort(key=lambda row: (row.val_loss is None, row.val_loss or 0.0, row.checkpoint))
    if json_:
        typer.echo(json.dumps([asdict(row) for row in rows]))
    else:
        _show(rows)


def _show(rows: list[Row]) -> None:
    table = Table(box=box.SIMPLE, padding=0, show_edge=False)
    table.add_column("checkpoint", overflow="fold")
    for name in ("shape", "context", "params", "MB", "steps", "tokens", "min", "loss", "ppl"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row.error:
            continue
        counts = _millions(row.parameters), row.megabytes, row.steps, _millions(row.tokens)
        shown = [row.context_length, *counts, row.minutes, row.val_loss, row.perplexity]
        cells = ["" if cell is None else str(cell) for cell in shown]
        table.add_row(escape(row.checkpoint), row.shape, *cells)
    console = Console()
    console.print(table)
    for row in rows:
        if row.error:
            console.print(f"{row.checkpoint}: {row.error}", style="red", markup=False)


def _millions(count: int | None) -> str | None:
    return None if count is None else f"{count / 1e6:.1f}M"


if __name__ == "__main__":
    app()
