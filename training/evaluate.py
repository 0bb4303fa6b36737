"""What a checkpoint is worth: its loss on texts, in every precision, and samples of its own.

`python -m training.evaluate --help`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from slm_core import Engine
from slm_core.checkpoint import record_perplexity
from slm_core.command import command_line
from slm_core.errors import SlmCoreError
from slm_core.linear import PRECISIONS
from training import page
from training import samples as drawing
from training.documents import Documents, load
from training.metrics import TextLoss, text_loss
from training.samples import Sampling

_FIGURES = 4  # decimals


app = command_line()


@app.command(no_args_is_help=True)
def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.", exists=True)],
    texts: Annotated[
        list[Path],
        typer.Argument(
            help="val.bin of training.prepare, or text: .txt, .jsonl, .csv, each also .gz.",
            exists=True,
        ),
    ],
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help=f"One of {', '.join(PRECISIONS)}; again for more.", show_default="all there are"
        ),
    ] = None,
    kernels: Annotated[
        str, typer.Option(help="auto, none for PyTorch alone, or a variant of the kernels.")
    ] = "auto",
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Read documents longer than the context to their end, by a window that moves on "
            "by so many tokens.",
            show_default="cut them to the context",
        ),
    ] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, help="Only the first of each text.", show_default="all")
    ] = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="Note the perplexities in the checkpoint, in place of those that stand there; "
            "workers choose a precision by them. Needs fp32 among them, and whole texts.",
        ),
    ] = False,
    samples: Annotated[int, typer.Option(min=0, help="Texts to write; 0 for none.")] = 20,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts for them, one a line.",
            show_default="beginnings of documents of the first text, drawn at random",
        ),
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            help="Page to show them on, .md or .html.", dir_okay=False, show_default="none"
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest sample.")] = 200,
    temperature: Annotated[
        float, typer.Option(min=0, help="How freely samples are drawn; 0: the likeliest token.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option(min=1, help="How many of the likeliest tokens samples are drawn from.")
    ] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Draws prompts and samples.")] = 1,
) -> None:
    """Loss and perplexity per token on texts, as the engine computes them, and figures of samples.

    Every document stands alone from position 0; each of its tokens but the first is predicted, its
    end-of-text too. One that is longer than the context is cut to it; with --stride none is, and
    each token is predicted from at least context - stride tokens before it.

    rep-4 is the share of a sample's runs of 4 tokens that it had before; distinct-n that of
    different runs of n tokens among those of all samples. The text's own figures stand beside.

    The last line on stdout is one JSON document.

    Examples:

    \b
      python -m training.evaluate runs/mine data/val.bin
      python -m training.evaluate runs/mine data/val.bin --record
      python -m training.evaluate runs/mine novel.txt --stride 256 --precision fp32
      python -m training.evaluate runs/mine data/val.bin --samples 20 --grid samples.html
    """
    if grid and grid.suffix not in page.FORMATS:
        raise typer.BadParameter(f"--grid must end with {' or '.join(page.FORMATS)}: {grid}")
    if grid and not samples:
        raise typer.BadParameter("--grid shows samples: let --samples be 1 or more")
    if record and (documents or stride):
        raise typer.BadParameter("--record takes whole texts: leave out --documents and --stride")
    if record and precision and "fp32" not in precision:
        raise typer.BadParameter("--record compares with fp32: measure that, too (--precision)")
    sampling = Sampling(max_tokens, temperature, top_k, seed)
    losses: dict[str, dict[str, TextLoss]] = {}  # by text, by precision
    drawn: list[drawing.Sample] = []
    figures: dict[str, dict[str, float]] = {}
    try:
        loaded = {str(path): load(path, documents) for path in texts}
        own = drawing.read_prompts(prompts) if prompts else None
        for name in precision or PRECISIONS:
            engine = _open(checkpoint, name, kernels, required=bool(precision) or name == "fp32")
            if engine is None:
                continue
            for text, each in loaded.items():
                losses.setdefault(text, {})[name] = _measure(engine, each, stride, f"{name} {text}")
            if samples and not drawn:
                drawn, figures = _draw(engine, next(iter(loaded.values())), own, samples, sampling)
        overall = {
            name: sum((each[name] for each in losses.values()), TextLoss())
            for name in next(iter(losses.values()))
        }
    except (SlmCoreError, ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    perplexity = {name: round(loss.perplexity, _FIGURES) for name, loss in overall.items()}
    _show(losses, figures)
    document = {
        "checkpoint": str(checkpoint),
        "loss": {name: loss.mean for name, loss in overall.items()},
        "perplexity": perplexity,
        "texts": {
            text: {name: _described(loss) for name, loss in each.items()}
            for text, each in losses.items()
        },
        "samples": figures,
    }
    typer.echo(json.dumps(document))
    try:
        if record:
            record_perplexity(checkpoint, perplexity)
        if grid:
            source = prompts or f"beginnings of stories of {texts[0].name}, drawn at random"
            paragraph = (
                f"{len(drawn)} samples in the order in which they came, none left out. Drawn at "
                f"{sampling}. Prompts: {source}."
            )
            title = f"Samples of {checkpoint.resolve().name}"
            grid.parent.mkdir(parents=True, exist_ok=True)
            drawing.grid(title, [paragraph], [_table(overall)], drawn, figures).write(grid)
    except (SlmCoreError, OSError) as error:
        typer.echo(f"not written: {error}", err=True)
        raise typer.Exit(1) from None


def _table(losses: dict[str, TextLoss]) -> page.Table:
    rows = [[name, f"{loss.mean:.4f}", f"{loss.perplexity:.4f}"] for name, loss in losses.items()]
    return page.Table(["precision", "nats per token", "perplexity"], rows)


def _open(checkpoint: Path, precision: str, kernels: str, *, required: bool) -> Engine | None:
    """An engine; None, which a line says, for a precision that is not there and not required."""
    try:
        return Engine.from_checkpoint(checkpoint, precision=precision, slots=8, kernels=kernels)  # type: ignore[arg-type]
    except (SlmCoreError, ValueError) as error:
        if required:
            raise
        typer.echo(f"{precision}: {error}", err=True)
        return None


def _measure(engine: Engine, documents: Documents, stride: int | None, what: str) -> TextLoss:
    return text_loss(
        engine.logits,
        track(documents, f"Reading, {escape(what)}", console=Console(stderr=True), transient=True),
        context_length=engine.config.context_length,
        stride=stride,
    )


def _draw(
    engine: Engine,
    documents: Documents,
    prompts: list[list[int]] | None,
    count: int,
    sampling: Sampling,
) -> tuple[list[drawing.Sample], dict[str, dict[str, float]]]:
    """Samples and their figures; with beginnings of documents also those of their own endings."""
    figures = {}
    if prompts is None:
        prompts, endings = drawing.beginnings(
            documents, count, context_length=engine.config.context_length, seed=sampling.seed
        )
        figures["text"] = drawing.figures([ids[: sampling.max_tokens] for ids in endings])
    drawn = drawing.generate(engine, prompts, count, sampling)
    return drawn, {"samples": drawing.figures([s.token_ids for s in drawn]), **figures}


def _described(loss: TextLoss) -> dict[str, Any]:
    return {
        "loss": loss.mean,
        "perplexity": round(loss.perplexity, _FIGURES),
        "tokens": loss.tokens,
        "documents": loss.documents,
        "cut": loss.cut,
    }


def _show(losses: dict[str, dict[str, TextLoss]], figures: dict[str, dict[str, float]]) -> None:
    console = Console()
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("text", overflow="fold")
    table.add_column("precision")
    for name in ("loss", "perplexity", "tokens", "documents", "cut"):
        table.add_column(name, justify="right")
    for text, each in losses.items():
        for name, loss in each.items():
            numbers = f"{loss.mean:.4f}", f"{loss.perplexity:.4f}"
            counts = f"{loss.tokens:,}", f"{loss.documents:,}", f"{loss.cut:,}"
            table.add_row(escape(text), name, *numbers, *counts)
    console.print(table)
    if figures:
        table = Table("", box=box.SIMPLE, pad_edge=False)
        for name in figures["samples"]:
            table.add_column(name.replace("_", "-"), justify="right")
        for who, measured in figures.items():
            table.add_row(who, *(f"{value:g}" for value in measured.values()))
        console.print(table)


if __name__ == "__main__":
    app()
