"""Our training against nanoGPT's published recipe: one after the other, each alone.

python -m benchmarks.training --data data --minutes 30 --ours 15 --plot docs/training.png

Both see the same data, shape, batch and threads, and both are scored on all of val.bin by the same
function. The plain one trains for `--minutes`; ours is run anew, start to end, for each time given
with `--ours`, since a run's loss falls most at its end: the shortest that reaches the plain one's
loss is our time to it. nanoGPT's clock stops during evaluations, ours does not.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.measure import available_threads, report
from slm_core import GPTConfig, load_checkpoint
from training.documents import load
from training.metrics import text_loss


def run(arguments: list[str], threads: int) -> dict[str, Any]:
    """Runs a module; its seconds, the greatest memory of its main process, and the CPU seconds that
    others took meanwhile.

    Raises typer.Exit where it fails.
    """
    busy, own = _busy_seconds(), _own_seconds()
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=sys.stderr,  # the last line of stdout is ours
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    peak = 0
    try:
        while process.poll() is None:
            peak = max(peak, _peak_memory(process.pid))
            try:
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode:
        typer.echo(f"{' '.join(arguments)} ended with {process.returncode}", err=True)
        raise typer.Exit(1)
    return {
        "wall_seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mb": peak >> 20,
        "cpu_seconds_of_others": round(_busy_seconds() - busy - (_own_seconds() - own), 1),
    }


def _peak_memory(pid: int) -> int:
    """Bytes; 0 where it cannot be known any more, or not on this system."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM")), 0)


def _busy_seconds() -> float:
    total = psutil.cpu_times()
    return sum(total) - total.idle - getattr(total, "iowait", 0.0)


def _own_seconds() -> float:
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, both))


def figures(out: Path, data: Path) -> dict[str, Any]:
    """What a run's log says, and the loss of its checkpoint on all of val.bin."""
    curve = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    model = load_checkpoint(out)
    context = model.config.context_length
    loss = text_loss(model.logits, load(data / "val.bin"), context_length=context)
    last = curve[-1]
    return {
        "loss": round(loss.mean, 4),
        "perplexity": round(loss.perplexity, 3),
        "seconds": last["seconds"],
        "tokens": last["tokens"],
        "tokens_per_second": round(last["tokens"] / last["seconds"], 1),
        "curve": [[entry["seconds"], entry["val_loss"]] for entry in curve],
    }


def main(
    data: Annotated[Path, typer.Option(help="Folder of train.bin and val.bin.", exists=True)],
    preset: Annotated[str, typer.Option(help="Shape of both.")] = "tinystories",
    context: Annotated[int, typer.Option(help="Context length of both.")] = 512,
    batch: Annotated[int, typer.Option(help="Sequences per step of both.")] = 4,
    minutes: Annotated[float, typer.Option(help="Time of nanoGPT's recipe.")] = 30.0,
    ours: Annotated[
        list[float] | None,
        typer.Option(help="Time of a run of ours; again for more.", show_default="half of that"),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of both.")] = 1,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile", help="Both.")] = True,
    keep: Annotated[
        Path | None, typer.Option(help="Keeps the checkpoints and logs in this folder.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draws the result into this file.")] = None,
    flags: Annotated[
        list[str] | None, typer.Argument(help="More flags for training.train, after --.")
    ] = None,
) -> None:
    """Tokens per second, memory, and time to a validation loss, ours and nanoGPT's recipe."""
    threads = threads or available_threads()
    budgets = sorted(ours or [minutes / 2])
    own = ["--threads", str(threads), *(flags or [])]
    shared = ["--data", str(data), "--preset", preset, "--context", str(context)]
    shared += ["--batch", str(batch), "--seed", str(seed)]
    shared += [] if compile_ else ["--no-compile"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)

        def measured(module: str, name: str, budget: float, more: list[str]) -> dict[str, Any]:
            out = folder / name
            command = [module, *shared, "--minutes", str(budget), "--out", str(out), *more]
            typer.echo(f"{name}: python -m {' '.join(command)}")
            costs = run(command, threads)
            result = {"minutes": budget, **figures(out, data), **costs}
            shown = {key: value for key, value in result.items() if key != "curve"}
            typer.echo(f"{name}: {shown}")
            return result

        plain = measured("benchmarks.plain_training", "plain", minutes, [])
        runs = [measured("training.train", f"ours-{budget:g}", budget, own) for budget in budgets]
    reached = [each for each in runs if each["loss"] <= plain["loss"]]
    document = report(
        "training",
        model=replace(GPTConfig.preset(preset), context_length=context).to_dict(),
        threads=threads,
        batch_tokens=batch * context,
        plain=plain,
        ours=runs,
        minutes_to_plain_loss=reached[0]["minutes"] if reached else None,
        share_of_plain_time=round(reached[0]["minutes"] / minutes, 3) if reached else None,
    )
    if plot is not None:
        from benchmarks.training_plot import draw

        draw(document, plot)


if __name__ == "__main__":
    typer.run(main)
