"""The result of benchmarks.scale: growth as it was measured, and how far one Redis would go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.capacity import CPU, JOBS, ROWS, Costs, Limits, Load, ends_at, need

_COLOURS = {"rows": "#0b3d91", "jobs": "#4a86d8"}
_LINES = ("#0b3d91", "#c2410c", "#5f6368", "#adb1b6")
_MOST = 1_000
_SHOWN = (JOBS, ROWS)


def draw(document: dict[str, Any], path: Path) -> None:
    costs, limits = Costs.of(document), Limits()
    with plt.rc_context({"font.size": 9, "font.family": "sans-serif"}):
        figure, panels = plt.subplots(1, 3, figsize=(12, 4))
        _draw_growth(panels[0], document)
        for panel, load in zip(panels[1:], _SHOWN, strict=True):
            _draw_needs(panel, costs, limits, load)
        figure.suptitle(
            "Workers: as measured on simulated devices, and as computed for one Redis",
            x=0.01,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
        note = (
            f"Left: 2 cores, steps of {document['step_ms']:g} ms, {document['slots']} slots. "
            f"Right: workers of {CPU:,} tokens/s that are always busy, outputs of 200 tokens; one "
            f"Redis with {limits.redis_cores:g} of a core, {limits.memory_gb:g} GB, "
            f"{limits.connections:,} connections."
        )
        figure.text(0.01, 0.005, note, fontsize=7, color="#777777", va="bottom")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _draw_growth(panel: Axes, document: dict[str, Any]) -> None:
    for kind, stands in document["growth"].items():
        counts = [stand["workers"] for stand in stands]
        rates = [stand["tokens_per_second"] for stand in stands]
        panel.plot(counts, [rates[0] * n for n in counts], color="#bfc2c6", lw=1, zorder=1)
        panel.plot(counts, rates, "o-", color=_COLOURS[kind], label=kind, ms=4)
        for count, rate, stand in zip(counts, rates, stands, strict=True):
            above = kind == "jobs"
            panel.annotate(
                f"{100 * stand['efficiency']:.0f} %",
                (count, rate),
                textcoords="offset points",
                xytext=(0, 7 if above else -13),
                ha="center",
                fontsize=7,
                color=_COLOURS[kind],
            )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xticks(counts, [str(count) for count in counts])
    ticks = [rates[0] * n for n in counts]
    panel.set_yticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    panel.margins(0.12)
    panel.minorticks_off()
    _finish(panel, "tokens per second (grey: linear)", "workers")
    panel.legend(frameon=False, loc="upper left")


def _draw_needs(panel: Axes, costs: Costs, limits: Limits, load: Load) -> None:
    counts = [*range(1, 10), *range(10, 100, 10), *range(100, _MOST + 1, 100)]
    ends = ends_at(costs, load, limits)
    for colour, name in zip(_LINES, ends, strict=True):
        shares = [100 * need(costs, load, count).shares(limits)[name] for count in counts]
        label = f"{name}: up to {ends[name]:,.0f}"
        panel.plot(counts, shares, color=colour, label=label)
    panel.axhline(100, color="#999999", lw=1, ls="--")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(0.005, 2_000)
    panel.set_xticks([1, 10, 100, _MOST], ["1", "10", "100", "1,000"])
    panel.set_yticks(
        [0.01, 0.1, 1, 10, 100, 1_000], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %", "1,000 %"]
    )
    panel.minorticks_off()
    _finish(panel, f"one Redis, {load.name}", "workers")
    panel.legend(frameon=False, loc="lower right", fontsize=7)


def _finish(panel: Axes, title: str, below: str) -> None:
    panel.set_title(title, loc="left", fontsize=9, color="#444444")
    panel.set_xlabel(below, color="#444444")
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(length=2, colors="#444444")
