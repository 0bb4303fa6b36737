"""A model before and after training, without and with a KV cache: what it writes, how fast.

`python -m training.compare --help`
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from slm_core import Engine, SamplingParams, kernels, load_checkpoint
from slm_core.command import command_line
from slm_core.errors import SlmCoreError
from slm_core.model import untrained_model
from training import samples as drawing
from training.documents import Documents, load
from training.metrics import TextLoss, text_loss
from training.page import Card, Page, Table
from training.samples import Sampling

UNTRAINED, NO_CACHE, CACHE, SERVED = (
    "untrained",
    "trained, no KV cache",
    "trained, KV cache",
    "trained, as it is served",
)
_LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
_WARM_UP = 8  # tokens

Times = NDArray[np.float64]


def engines(checkpoint: Path, slots: int) -> dict[str, Engine]:
    """Each way to run the model, by its name.

    The first three differ in one thing each: PyTorch computes all of them, in fp32. The last is
    what a worker would do: kernels, and the fastest precision that is good enough. Raises
    CheckpointError.
    """
    model = load_checkpoint(checkpoint)
    ways = {
        UNTRAINED: Engine(
            untrained_model(model.config), precision="fp32", slots=slots, kernels="none"
        ),
        NO_CACHE: Engine(model, precision="fp32", slots=slots, kernels="none", kv_cache=False),
        CACHE: Engine(model, precision="fp32", slots=slots, kernels="none"),
    }
    if kernels.supported():
        ways[SERVED] = Engine.from_checkpoint(checkpoint, slots=slots)
    return ways


def token_times(
    engine: Engine,
    prompt: list[int],
    tokens: int,
    sampling: Sampling,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Seconds from the prompt to each of `tokens` new tokens, one text alone."""
    params = SamplingParams(
        max_tokens=tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        seed=sampling.seed,
        ignore_eos=True,
    )
    started = clock()
    engine.add(prompt, params)
    seconds = []
    while engine.has_work:
        seconds += [clock() - started for event in engine.step() if event.token is not None]
    return np.asarray(seconds)


def race(
    ways: Mapping[str, Engine], prompt: list[int], tokens: int, repeats: int, sampling: Sampling
) -> dict[str, Times]:
    """As `token_times`, of medians: each step's time is its median over rounds in which all take
    turns, after a short warm-up."""
    for engine in ways.values():
        token_times(engine, prompt, min(_WARM_UP, tokens), sampling)
    rounds: dict[str, list[Times]] = {name: [] for name in ways}
    turns = [(name, engine) for _ in range(repeats) for name, engine in ways.items()]
    for name, engine in track(turns, "Timing", console=Console(stderr=True), transient=True):
        rounds[name].append(token_times(engine, prompt, tokens, sampling))
    steps = {name: np.diff(np.stack(each), prepend=0.0) for name, each in rounds.items()}
    return {name: np.cumsum(np.median(each, axis=0)) for name, each in steps.items()}


def draw(times: Mapping[str, Times], path: Path) -> None:
    """Two panels: seconds for a text by its length, milliseconds for the token at each position.

    Raises ImportError without matplotlib.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colours = {UNTRAINED: "#adb1b6", NO_CACHE: "#c2512f", CACHE: "#4a86d8", SERVED: "#0b3d91"}
    with plt.rc_context({"font.size": 9, "font.family": "sans-serif"}):
        figure, (whole, each) = plt.subplots(1, 2, figsize=(9, 3.4))
        for name, seconds in times.items():
            position = np.arange(1, len(seconds) + 1)
            dashed = "--" if name == UNTRAINED else "-"
            whole.plot(position, seconds, dashed, color=colours[name], label=name)
            steps = _smoothed(np.diff(seconds, prepend=0.0)[1:] * 1000)
            each.plot(np.arange(2, len(steps) + 2), steps, dashed, color=colours[name])
        whole.set_title("seconds until a text has so many new tokens", loc="left", fontsize=9)
        each.set_title("milliseconds for the token at each position", loc="left", fontsize=9)
        each.set_yscale("log")
        whole.legend(frameon=False)
        for panel in (whole, each):
            panel.set_xlabel("new tokens")
            panel.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _smoothed(values: Times, window: int = 9) -> Times:
    """Medians of up to `window` neighbours."""
    half = window // 2
    return np.asarray(
        [np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    )


app = command_line()


@app.command(no_args_is_help=True)
def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.", exists=True)],
    text: Annotated[
        Path, typer.Argument(help="val.bin, or text, to measure losses on.", exists=True)
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the page, the plot and the numbers.", file_okay=False)
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts, one a line.", show_default="beginnings of documents, drawn at random"
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Prompts to continue.")] = 6,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=2, help="New tokens of the timed text.", show_default="what the context holds"
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians count.")] = 3,
    documents: Annotated[
        int, typer.Option(min=1, help="Documents of the text to measure losses on.")
    ] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Draws prompts and samples.")] = 1,
) -> None:
    """A model untrained, trained without and trained with a KV cache, side by side.

    Writes OUT/index.html and OUT/README.md (texts of the same prompts and seeds, losses, times by
    length), OUT/times.png and OUT/result.json, and prints that as one line first. PyTorch computes
    these three, in fp32, so that only one thing differs each time; where the native kernels are
    built a fourth shows the model as a worker serves it.

    Examples:

    \b
      python -m training.compare runs/mine data/val.bin --out compare
      python -m training.compare slm_core/checkpoints/tinystories data/val.bin --out compare \\
        --prompts examples/prompts.txt --repeats 5
    """
    sampling = Sampling(seed=seed)
    try:
        ways = engines(checkpoint, slots=8)
        chosen = load(text)
        context = ways[CACHE].config.context_length
        asked = (
            drawing.read_prompts(prompts)
            if prompts
            else drawing.beginnings(chosen, samples, context_length=context, seed=seed)[0]
        )
        room = context - len(asked[0])
        if tokens is not None and tokens > room:
            raise ValueError(f"--tokens must be at most {room}, what the context leaves the prompt")
        losses = {name: _loss(ways[name], chosen[:documents]) for name in (UNTRAINED, CACHE)}
        written = {
            name: drawing.generate(ways[name], asked, samples, sampling)
            for name in (UNTRAINED, NO_CACHE, CACHE)
        }
        times = race(ways, asked[0], tokens or max(2, room), repeats, sampling)
    except (SlmCoreError, ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    result = _result(checkpoint, losses, written, times, repeats, ways)
    typer.echo(json.dumps(result))
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        page = _page(checkpoint, result, written, sampling, _plot(times, out))
        for name in ("index.html", "README.md"):
            page.write(out / name)
    except OSError as error:
        typer.echo(f"not written: {error}", err=True)
        raise typer.Exit(1) from None


def _plot(times: Mapping[str, Times], out: Path) -> tuple[str, str] | None:
    """The plot's file in `out` and what it shows; None without matplotlib, which a line says."""
    try:
        draw(times, out / "times.png")
    except ImportError:
        typer.echo("no plot: matplotlib is missing; pip install matplotlib", err=True)
        return None
    return "times.png", "Seconds by length, and milliseconds a token"


def _loss(engine: Engine, documents: Documents) -> TextLoss:
    return text_loss(engine.logits, documents, context_length=engine.config.context_length)


def _result(
    checkpoint: Path,
    losses: Mapping[str, TextLoss],
    written: Mapping[str, list[drawing.Sample]],
    times: Mapping[str, Times],
    repeats: int,
    ways: Mapping[str, Engine],
) -> dict[str, Any]:
    longest = len(times[CACHE])
    lengths = [*(n for n in _LENGTHS if n < longest), longest]
    seconds = {
        name: {str(n): round(float(each[n - 1]), 5) for n in lengths}
        for name, each in times.items()
    }
    return {
        "checkpoint": str(checkpoint),
        "loss": {name: loss.mean for name, loss in losses.items()},
        "perplexity": {name: round(loss.perplexity, 4) for name, loss in losses.items()},
        "seconds": seconds,
        "repeats": repeats,
        "cache_speedup": {
            n: round(seconds[NO_CACHE][n] / seconds[CACHE][n], 2) for n in seconds[CACHE]
        },
        "same_text": [s.token_ids for s in written[NO_CACHE]]
        == [s.token_ids for s in written[CACHE]],
        "fingerprints": {name: engine.fingerprint for name, engine in ways.items()},
    }


def _page(
    checkpoint: Path,
    result: dict[str, Any],
    written: Mapping[str, list[drawing.Sample]],
    sampling: Sampling,
    image: tuple[str, str] | None,
) -> Page:
    seconds = result["seconds"]
    same = "the same" if result["same_text"] else "NOT the same"
    paragraphs = [
        f"Loss per token: {result['loss'][UNTRAINED]:.3f} nats untrained (perplexity "
        f"{result['perplexity'][UNTRAINED]:,.0f}), {result['loss'][CACHE]:.3f} trained (perplexity "
        f"{result['perplexity'][CACHE]:,.2f}).",
        f"A KV cache changes no text, only its time: with and without, the {len(written[CACHE])} "
        f"trained texts below are {same}. Drawn at {sampling}; none left out.",
        "Times are those of one text alone; each step's is the median of "
        f"{result['repeats']} rounds in which all took turns.",
    ]
    rows = [
        [n, *(f"{seconds[name][n]:.3f}" for name in seconds), f"{result['cache_speedup'][n]:.1f}x"]
        for n in seconds[CACHE]
    ]
    table = Table(["new tokens", *(f"{name}, s" for name in seconds), "cache saves"], rows)
    cards: list[Card] = [s.card for row in zip(*written.values(), strict=True) for s in row]
    return Page(
        f"{checkpoint.resolve().name}: before and after training, without and with a KV cache",
        paragraphs,
        cards,
        columns=len(written),
        headings=list(written),
        tables=[table],
        image=image,
    )


if __name__ == "__main__":
    app()
