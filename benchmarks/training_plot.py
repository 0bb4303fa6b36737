"""The result of benchmarks.training as a picture: validation loss against time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

_PLAIN, _OURS = "#868a90", ("#0b3d91", "#4a86d8", "#86b1e8")


def draw(document: dict[str, Any], path: Path) -> None:
    plain, runs = document["plain"], document["ours"]
    with plt.rc_context({"font.size": 9, "font.family": "sans-serif"}):
        figure, panel = plt.subplots(figsize=(7.2, 3.8))
        panel.hlines(plain["loss"], 0, plain["minutes"], _PLAIN, "dotted", linewidth=0.8)
        _line(panel, plain, "nanoGPT's recipe", _PLAIN)
        for run, colour in zip(runs, _OURS, strict=False):
            _line(panel, run, "training.train", colour)
        panel.set_xlabel("minutes")
        panel.set_ylabel("validation loss, nats per token")
        panel.set_xlim(0, plain["minutes"] * 1.3)
        panel.margins(y=0.1)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        shape = document["model"]
        figure.suptitle(
            f"{shape['n_layer']} layers, {shape['n_embd']} wide, context {shape['context_length']},"
            f" {document['batch_tokens']:,} tokens a step, {document['threads']} CPU cores",
            x=0.01,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _line(panel: plt.Axes, run: dict[str, Any], name: str, colour: str) -> None:
    seconds, losses = zip(*run["curve"], strict=True)
    minutes = [each / 60 for each in seconds]
    panel.plot(minutes, losses, color=colour, marker="o", markersize=3)
    panel.annotate(
        f"{name}\n{run['loss']:.2f} after {run['minutes']:g} minutes",
        (minutes[-1], losses[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=colour,
    )
