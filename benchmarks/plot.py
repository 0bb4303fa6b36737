"""The result of benchmarks.engine as a bar chart: a panel for each workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.peers import CONTESTANTS

_OURS = ("#0b3d91", "#1f5fbf", "#4a86d8", "#86b1e8", "#b5d0f2")
_PEERS = {
    "llama_cpp": "#5f6368",
    "ctranslate2": "#868a90",
    "transformers": "#adb1b6",
    "transformers-continuous": "#bfc2c6",
    "no_cache": "#d0d3d6",
}
_TITLES = {
    "uniform": "64 at once, equal lengths",
    "ragged": "64 at once, ragged lengths",
    "single": "one sequence",
}


def draw(document: dict[str, Any], path: Path) -> None:
    rates = document["tokens_per_second"]
    names = [name for name in CONTESTANTS if any(name in each for each in rates.values())]
    blues = iter(_OURS)
    colours = [_PEERS.get(CONTESTANTS[name].family) or next(blues) for name in names]
    with plt.rc_context({"font.size": 9, "font.family": "sans-serif"}):
        figure, panels = plt.subplots(
            1,
            len(rates),
            sharey=True,
            squeeze=False,
            figsize=(3.2 + 2.4 * len(rates), 1.1 + 0.3 * len(names)),
        )
        for panel, (workload, measured) in zip(panels[0], rates.items(), strict=True):
            values = [measured.get(name, 0) for name in names]
            panel.barh(range(len(names)), values, color=colours, height=0.78)
            for row, (name, value) in enumerate(zip(names, values, strict=True)):
                note = "*" if name in document["shortened"].get(workload, {}) else ""
                panel.text(
                    value + max(values) * 0.02,
                    row,
                    f"{value:,.0f}{note}" if value else "not run",
                    va="center",
                    color="#222222" if value else "#999999",
                    fontweight="bold" if value == max(values) else "normal",
                )
            panel.set_title(
                _TITLES[workload],
                loc="left",
                fontsize=9,
                color="#444444",
            )
            panel.set_xlim(0, max(values) * 1.25)
            panel.set_xticks([])
            panel.spines[:].set_visible(False)
            panel.tick_params(length=0)
        panels[0][0].set_yticks(range(len(names)), names)
        panels[0][0].invert_yaxis()
        figure.suptitle(_heading(document), x=0.01, ha="left", fontsize=11, fontweight="bold")
        if note := _footnote(document):
            figure.text(0.01, 0.005, note, fontsize=7, color="#777777", va="bottom")
        figure.tight_layout(rect=(0, 0.02, 1, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _heading(document: dict[str, Any]) -> str:
    shape = document["model"]
    cores = "1 CPU core" if document["threads"] == 1 else f"{document['threads']} CPU cores"
    return (
        f"Tokens per second on {cores} "
        f"({shape['n_layer']} layers, {shape['n_head']} heads, {shape['n_embd']} wide)"
    )


def _footnote(document: dict[str, Any]) -> str:
    """What was shortened; a contestant is shortened alike on every workload."""
    parts = {
        f"{name}: {what}" for each in document["shortened"].values() for name, what in each.items()
    }
    return "* measured on less: " + "; ".join(sorted(parts)) if parts else ""
