"""Trains a GPT from token files: `python -m training.train --help`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from slm_core import GPT, GPTConfig, load_checkpoint, save_checkpoint
from slm_core.errors import CheckpointError
from training.evaluate import evaluate
from training.optim import build_optimizers, set_learning_rate
from training.prepare import TOKEN_DTYPE, split_documents
from training.vocabulary import CompactVocabulary

_WARMUP = 0.02


def batches(
    tokens: NDArray[np.uint16],
    vocabulary: CompactVocabulary,
    batch: int,
    time_: int,
    rng: np.random.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, targets), each [batch, time]; documents are reshuffled every epoch.

    Every window begins with a document, as every prompt does.
    """
    documents = split_documents(tokens)
    while True:
        order = rng.permutation(len(documents))
        stream = vocabulary.encode(np.concatenate([documents[i] for i in order]), rng)
        begins = np.cumsum([0, *(len(documents[i]) for i in order)])
        starts = rng.permutation(window_starts(begins, time_))
        for i in range(0, len(starts) - batch + 1, batch):
            rows = np.stack([stream[s : s + time_ + 1] for s in starts[i : i + batch]])
            both = torch.from_numpy(rows)
            yield both[:, :-1].contiguous(), both[:, 1:].contiguous()


def window_starts(begins: NDArray[np.int64], time_: int) -> NDArray[np.int64]:
    """Where windows of `time_` + 1 tokens start, given where documents begin and the stream ends.

    A document that a window cuts opens the next one, unless it is longer than a window.
    """
    starts = []
    at = 0
    while begins[at] + time_ < begins[-1]:
        starts.append(begins[at])
        at = max(at + 1, int(np.searchsorted(begins, begins[at] + time_, side="right")) - 1)
    return np.asarray(starts)


def initialise(model: GPT) -> None:
    """Starts that measured best at this size: sinusoidal positions (Vaswani et al., 2017; RMS
    0.05), orthogonal QKV, output projections at zero."""
    length, width = model.wpe.weight.shape
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    with torch.no_grad():
        model.wpe.weight.copy_(table * 0.05 / table.square().mean().sqrt())
        for name, parameter in model.named_parameters():
            if name.endswith("c_attn.weight"):
                for part in parameter.chunk(3):
                    torch.nn.init.orthogonal_(part)
            elif name.endswith("c_proj.weight"):
                parameter.zero_()


def learning_rate_fraction(progress: float) -> float:
    """Linear warm-up, then linear decay to zero; `progress` in [0, 1]."""
    return min(progress / _WARMUP, (1 - progress) / (1 - _WARMUP), 1.0)


def main(
    data: Annotated[Path, typer.Option(help="Folder of train.bin and val.bin.", exists=True)],
    out: Annotated[Path, typer.Option(help="Checkpoint folder; log.jsonl goes there too.")],
    preset: Annotated[str, typer.Option(help="Model shape; see slm_core.config.")] = "tinystories",
    context: Annotated[int | None, typer.Option(help="Override the context length.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences per step.")] = 4,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 4.0,
    minutes: Annotated[float, typer.Option(help="Stop, fully decayed, after this time.")] = 1e9,
    muon_lr: Annotated[float, typer.Option(help="Peak rate of the body's matrices.")] = 0.01,
    adam_lr: Annotated[float, typer.Option(help="Peak rate of everything else.")] = 6e-3,
    weight_decay: Annotated[float, typer.Option(help="Decay of the body's matrices.")] = 0.05,
    dropout: Annotated[float, typer.Option(help="Dropout in every residual branch.")] = 0.05,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 250,
    seed: Annotated[int, typer.Option(help="Order of the data and first weights.")] = 1,
    init_from: Annotated[
        Path | None, typer.Option(help="Checkpoint to continue from, its shape and weights.")
    ] = None,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile.")] = True,
) -> None:
    """Train a model and write a checkpoint that `slm up --model OUT` serves."""
    torch.manual_seed(seed)
    try:
        start = load_checkpoint(init_from) if init_from else None
        config = replace(start.config if start else GPTConfig.preset(preset), dropout=dropout)
        if context is not None:
            config = replace(config, context_length=context)
        tokens = np.fromfile(data / "train.bin", TOKEN_DTYPE)
        valid = np.fromfile(data / "val.bin", TOKEN_DTYPE)
    except (CheckpointError, ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    vocabulary = CompactVocabulary(tokens, config.vocab_size)
    model = GPT(vocabulary.config(config))
    if start:
        vocabulary.shrink(start, model)
    else:
        initialise(model)
    model.train()
    optimizers = build_optimizers(
        model, muon_lr=muon_lr, adam_lr=adam_lr, weight_decay=weight_decay
    )
    loss_of = torch.compile(vocabulary.loss) if compile_ else vocabulary.loss

    time_ = config.context_length
    total = max(1, int(epochs * len(tokens)) // (batch * time_))
    source = batches(tokens, vocabulary, batch, time_, np.random.default_rng(seed))
    out.mkdir(parents=True, exist_ok=True)
    log = (out / "log.jsonl").open("w", buffering=1)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    started, step, progress, running = time.monotonic(), 0, 0.0, math.nan
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=1.0)
        while progress < 1.0:
            set_learning_rate(optimizers, learning_rate_fraction(progress))
            ids, targets = next(source)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, ids, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            value = loss.item()
            if not math.isfinite(value):
                raise typer.Exit(_diverged(step, out))
            running = value if math.isnan(running) else 0.98 * running + 0.02 * value
            step += 1
            elapsed = time.monotonic() - started
            progress = min(1.0, max(step / total, elapsed / 60 / minutes))
            bar.update(task, completed=progress, description=f"step {step} loss {running:.3f}")
            if step % eval_every == 0 or progress >= 1.0:
                stories = None if progress >= 1.0 else 100
                full = vocabulary.expand(model, config)
                val_loss = evaluate(full.logits, valid, context_length=time_, stories=stories)
                entry = {
                    "step": step,
                    "tokens": step * batch * time_,
                    "seconds": round(elapsed, 1),
                    "train_loss": round(running, 4),
                    "val_loss": round(val_loss, 4),
                }
                log.write(json.dumps(entry) + "\n")
                bar.console.print(entry)
                save_checkpoint(full, out, dtype=torch.bfloat16)
    log.close()


def _diverged(step: int, out: Path) -> int:
    typer.echo(
        f"the loss became infinite or NaN at step {step}; the last good checkpoint is in {out}. "
        "Lower --muon-lr and --adam-lr.",
        err=True,
    )
    return 1


if __name__ == "__main__":
    typer.run(main)
