"""What people see of a run: a bar, `log.jsonl`, `samples.md`, `curve.png`, TensorBoard's events."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from slm_core.checkpoint import write_text
from training.samples import Sample

LOG, SAMPLES, CURVE = "log.jsonl", "samples.md", "curve.png"
_ESTIMATE_AFTER = 15.0  # seconds of steps


@dataclass(frozen=True)
class Evaluation:
    """A line of the log.

    Attributes:
        step, tokens, seconds: how far the run was; what two windows share is counted twice.
        train_loss: a running mean over the last steps, as they were trained (with dropout).
        val_loss: over validation documents; both in nats per token.
        learning_rate: of the blocks' matrices.
        tokens_per_second: in steps, since the last evaluation.
        also: losses on other texts, by name.
    """

    step: int
    tokens: int
    seconds: float
    train_loss: float | None
    val_loss: float
    learning_rate: float
    tokens_per_second: int
    also: dict[str, float]

    def __str__(self) -> str:
        trained = "" if self.train_loss is None else f"train {self.train_loss:.3f} · "
        also = "".join(f" · {name} {loss:.3f}" for name, loss in self.also.items())
        return (
            f"step {self.step:,} · {clock(self.seconds)} · {trained}val {self.val_loss:.3f}{also}"
            f" · {self.tokens_per_second:,} tokens/s"
        )


class Progress:
    """Tells how a run goes. Where a rank does not lead, `console` is quiet, and only `step` called.

    `tensorboard` raises ValueError where that is not installed.
    """

    def __init__(self, out: Path, console: Console, *, tensorboard: bool = False) -> None:
        self._out, self._console = out, console
        self._events = _events(out / "tensorboard") if tensorboard else None
        columns = (
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        self._bar = Bar(
            *columns,
            console=console,
            transient=True,
            refresh_per_second=2,
            speed_estimate_period=120,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("first step", total=1.0)
        self._first: tuple[float, float] | None = None  # when the first step ended, and how far
        self._estimated = False
        self._can_draw = True

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._events:
            self._events.close()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, done: float, step: int, loss: float, rate: float) -> None:
        """After each step; `done` of the run, in [0, 1], at `rate` tokens a second."""
        description = f"step {step:,} · loss {loss:.3f} · {rate:,.0f} tokens/s"
        self._bar.update(self._task, completed=done, description=description)
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        elif not self._estimated and now - self._first[0] > _ESTIMATE_AFTER:
            self._estimated = True
            left = (1 - done) * (now - self._first[0]) / (done - self._first[1])
            self.note(f"about {clock(left)} to go, at {rate:,.0f} tokens/s")

    def evaluation(self, evaluation: Evaluation, samples: Sequence[Sample], *, best: bool) -> None:
        entry = asdict(evaluation)
        if not evaluation.also:
            del entry["also"]
        with (self._out / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        with (self._out / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(_section(evaluation, samples))
        self.note(f"{evaluation}{' · best' if best else ''}")
        self._draw()
        if self._events:
            for name, value in entry.items():
                if name not in ("step", "also") and value is not None:
                    self._events.add_scalar(name, value, evaluation.step)
            for name, value in evaluation.also.items():
                self._events.add_scalar(f"also/{name}", value, evaluation.step)
            self._events.flush()

    def _draw(self) -> None:
        if not self._can_draw:
            return
        try:
            draw_curve(read_log(self._out), self._out / CURVE)
        except ImportError:
            self._can_draw = False
            self.note(f"no {CURVE}: that needs matplotlib (pip install matplotlib)")


def forget_after(out: Path, step: int) -> None:
    """Takes back what a run told of after `step`, from where it goes on."""
    kept = [json.dumps(entry) + "\n" for entry in read_log(out) if entry["step"] <= step]
    write_text(out / LOG, "".join(kept))
    if (out / SAMPLES).exists():
        sections = re.split(r"^(?=## Step )", (out / SAMPLES).read_text("utf-8"), flags=re.M)
        later = [int(s.split()[2]) > step if s.startswith("## Step ") else False for s in sections]
        told = [section for section, too_late in zip(sections, later, strict=True) if not too_late]
        write_text(out / SAMPLES, "".join(told))


def read_log(out: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, up to a line that a kill has cut; [] where nothing can be read."""
    return list(_entries(out / LOG))


def _entries(log: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError, ValueError, TypeError):
        for line in log.read_bytes().splitlines():
            if "val_loss" in (entry := json.loads(line)):
                yield entry


def draw_curve(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Losses over tokens, as PNG. Raises ImportError where matplotlib is missing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    lines = {"train (running mean)": "train_loss", "validation": "val_loss"}
    series = {
        label: [(e["tokens"], e[key]) for e in entries if e[key] is not None]
        for label, key in lines.items()
    }
    for name in entries[-1].get("also", {}):
        series[name] = [
            (e["tokens"], e["also"][name]) for e in entries if name in e.get("also", {})
        ]
    for label, points in series.items():
        if points:
            xs, ys = zip(*points, strict=True)
            axes.plot([x / 1e6 for x in xs], ys, marker=".", label=label)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=120)
    partial.replace(path)


def clock(seconds: float) -> str:
    """As 5 s, 12 min 5 s or 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _section(evaluation: Evaluation, samples: Sequence[Sample]) -> str:
    head = f"## Step {evaluation.step}\n\nValidation loss {evaluation.val_loss:.4f}.\n\n"
    texts = (f"**{sample.prompt.strip()}**{sample.text}" for sample in samples)
    return head + "".join(_quoted(text) for text in texts)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines()) + "\n\n"


def _events(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard: that package is missing; say pip install tensorboard"
        ) from None
    return SummaryWriter(str(folder))
