"""What our training is compared with: the loop and the recipe that nanoGPT publishes, in short.

AdamW with betas (0.9, 0.99) and decay 0.1 on matrices and embeddings, rate 1e-3 after 100 steps of
warm-up, a cosine down to 1e-4, gradients clipped at 1.0, no dropout, windows anywhere in the data,
the whole head, torch.compile: `train.py` and `config/train_shakespeare_char.py`, its settings for
baby models. In its favour bf16 on the CPU too, where it would use fp32, a fused AdamW, a schedule
that ends just when time is up, and a clock that stands still during evaluations.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray

from slm_core import GPT, GPTConfig, save_checkpoint
from training.metrics import text_loss
from training.tokens import read_tokens, split_documents

PEAK, LAST = 1e-3, 1e-4
WARM_UP_STEPS = 100
STORIES = 100  # of an evaluation on the way


def rate(step: int, progress: float) -> float:
    """Learning rate of a step, at `progress` in [0, 1] of the whole time."""
    if step < WARM_UP_STEPS:
        return PEAK * (step + 1) / WARM_UP_STEPS
    return LAST + (PEAK - LAST) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def optimizer_of(model: GPT) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99), fused=True)


def windows(tokens: NDArray[np.uint16], batch: int, length: int) -> torch.Tensor:
    """[batch, length + 1] token ids, from anywhere."""
    starts = torch.randint(len(tokens) - length, (batch,)).tolist()
    rows = [tokens[start : start + length + 1].astype(np.int64) for start in starts]
    return torch.from_numpy(np.stack(rows))


def main(
    data: Annotated[Path, typer.Option(help="Folder of train.bin and val.bin.", exists=True)],
    out: Annotated[Path, typer.Option(help="Checkpoint folder; log.jsonl goes there too.")],
    preset: Annotated[str, typer.Option(help="Model shape.")],
    context: Annotated[int, typer.Option(help="Context length.")],
    batch: Annotated[int, typer.Option(help="Sequences per step.")],
    minutes: Annotated[float, typer.Option(help="Time to train, evaluations not counted.")],
    evaluations: Annotated[int, typer.Option(help="How many on the way.")] = 10,
    seed: Annotated[int, typer.Option(help="First weights and windows.")] = 1,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
) -> None:
    """Train as nanoGPT does."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = replace(GPTConfig.preset(preset), context_length=context)
    train = read_tokens(data / "train.bin")
    stories = split_documents(read_tokens(data / "val.bin"))[:STORIES]
    model = GPT(config).to(device).train()
    optimizer = optimizer_of(model)
    forward = torch.compile(model) if compile_ else model
    out.mkdir(parents=True, exist_ok=True)
    log = (out / "log.jsonl").open("w", buffering=1)
    limit, spent, step, evaluated = minutes * 60, 0.0, 0, 0
    while spent < limit:
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, spent / limit)
        both = windows(train, batch, context).to(device)
        with torch.autocast(device, torch.bfloat16):
            logits = forward(both[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), both[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        step += 1
        spent += time.perf_counter() - started
        if spent >= limit * (evaluated + 1) / evaluations:
            evaluated += 1
            model.eval()
            measured = text_loss(model.logits, stories, context_length=context).mean
            model.train()
            entry = {
                "step": step,
                "tokens": step * batch * context,
                "seconds": round(spent, 1),
                "train_loss": round(value, 4),
                "val_loss": round(measured, 4),
                "tokens_per_second": round(step * batch * context / spent, 1),
            }
            log.write(json.dumps(entry) + "\n")
            print(entry, flush=True)
    log.close()
    save_checkpoint(model, out)


if __name__ == "__main__":
    typer.run(main)
