"""Loss of a checkpoint on a text, in every precision: `python -m training.evaluate --help`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from slm_core import Engine
from slm_core.checkpoint import record_perplexity
from slm_core.errors import SlmCoreError
from slm_core.linear import PRECISIONS
from training.prepare import TOKEN_DTYPE, split_documents

Logits = Callable[[list[int]], torch.Tensor]


@torch.inference_mode()
def evaluate(
    logits: Logits, tokens: NDArray[np.uint16], *, context_length: int, stories: int | None = None
) -> float:
    """Mean loss in nats per token over whole documents, or over the first `stories` of them.

    `logits` gives [time, vocab] after each of some token ids. Each document stands alone from
    position 0, cut to the context; every token but the first is predicted, its end-of-text too.
    """
    documents = [d for d in split_documents(tokens) if len(d) > 1][:stories]
    total = count = 0.0
    for document in documents:
        ids = document[: context_length + 1].tolist()
        loss = F.cross_entropy(logits(ids[:-1]), torch.tensor(ids[1:]), reduction="sum")
        total += loss.item()
        count += len(ids) - 1
    return total / count


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.", exists=True)],
    tokens: Annotated[Path, typer.Argument(help="val.bin of training.prepare.", exists=True)],
    precision: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(PRECISIONS)}; again for more.")
    ] = None,
    kernels: Annotated[
        str, typer.Option(help="auto, none for PyTorch alone, or a variant of the kernels.")
    ] = "auto",
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Note every perplexity in the checkpoint; `auto` chooses by it."
        ),
    ] = False,
) -> None:
    """Loss and perplexity per token over whole stories, as the engine computes them."""
    text = np.fromfile(tokens, TOKEN_DTYPE)
    losses: dict[str, float] = {}
    for name in track(precision or PRECISIONS, "Evaluating", console=Console(stderr=True)):
        try:
            engine = Engine.from_checkpoint(checkpoint, precision=name, slots=1, kernels=kernels)  # type: ignore[arg-type]
            limit = engine.config.context_length
            losses[name] = evaluate(engine.logits, text, context_length=limit)
        except (SlmCoreError, ValueError) as error:
            if precision or name == "fp32":
                raise typer.BadParameter(str(error)) from None
            typer.echo(f"{name}: {error}", err=True)
    perplexity = {name: round(math.exp(loss), 4) for name, loss in losses.items()}
    if record:
        record_perplexity(checkpoint, perplexity)
    for name, loss in losses.items():
        typer.echo(f"{name}: {loss:.4f} nats per token, perplexity {perplexity[name]:.4f}")
    typer.echo(json.dumps({"loss": losses, "perplexity": perplexity}))


if __name__ == "__main__":
    typer.run(main)
