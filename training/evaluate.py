"""Loss of a checkpoint on a text: `python -m training.evaluate --help`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray

from slm_core import GPT, load_checkpoint
from training.prepare import TOKEN_DTYPE, split_documents

_BATCH = 16


@torch.inference_mode()
def evaluate(model: GPT, tokens: NDArray[np.uint16], stories: int | None = None) -> float:
    """Mean loss in nats per token over whole documents, or over the first `stories` of them.

    Each document stands alone from position 0, cut to the context; every token but the first is
    predicted, its end-of-text too.
    """
    documents = [d for d in split_documents(tokens) if len(d) > 1][:stories]
    limit = model.config.context_length + 1
    documents = sorted((d[:limit].astype(np.int64) for d in documents), key=len)
    total = count = 0.0
    for i in range(0, len(documents), _BATCH):
        group = documents[i : i + _BATCH]
        width = len(group[-1])
        ids = torch.from_numpy(np.stack([np.pad(d, (0, width - len(d))) for d in group]))
        targets = ids[:, 1:].clone()
        for row, document in enumerate(group):
            targets[row, len(document) - 1 :] = -100
        logits = model(ids[:, :-1])
        total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += sum(len(d) - 1 for d in group)
    return total / count


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.", exists=True)],
    tokens: Annotated[Path, typer.Argument(help="val.bin of training.prepare.", exists=True)],
) -> None:
    """Print loss and perplexity per token over whole stories."""
    loss = evaluate(load_checkpoint(checkpoint), np.fromfile(tokens, TOKEN_DTYPE))
    typer.echo(json.dumps({"loss": round(loss, 4), "perplexity": round(math.exp(loss), 3)}))


if __name__ == "__main__":
    typer.run(main)
