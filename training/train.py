"""Trains a GPT from token files: `python -m training.train --help`."""

from __future__ import annotations

import inspect
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from slm_core.checkpoint import WEIGHTS, write_text
from slm_core.command import command_line
from slm_core.errors import SlmCoreError
from training.lock import alone_in
from training.machine import CompilerFailed, Machine, choose_machine
from training.overview import overview
from training.progress import Progress, clock, forget_after
from training.ranks import RankLost, Ranks
from training.run import STATE, SUMMARY, Run, begin, go_on
from training.settings import options, to_toml
from training.start import start_of
from training.state import StateError, has_state
from training.stopping import Interrupted, Stop
from training.trainer import Diverged, Trainer

RECIPE = "recipe.toml"


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run; `slm up --model OUT` serves it.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that training.prepare made. --resume knows it.", exists=True),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="TOML file of settings; flags go before it.", exists=True)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in OUT from its last state.")
    ] = False,
    **settings: Any,
) -> None:
    """Train a GPT, from nothing or from a checkpoint.

    OUT gets the best checkpoint so far, the newest one as last/, log.jsonl, curve.png, samples.md,
    recipe.toml (--recipe takes it: the settings you gave, and in comments what followed from them)
    and state/. Ctrl-C and SIGTERM save the state and end with 130 and 143; --resume goes on from it
    as if nothing had happened.

    Examples:

    \b
      python -m training.train --data data --out runs/mine --minutes 30
      python -m training.train --data data --out runs/big --preset classic --epochs 2
      python -m training.train --out runs/mine --resume
      python -m training.train --data poems --out runs/poems --init-from runs/mine \\
        --also-evaluate data/val.bin
      torchrun --nproc-per-node 2 -m training.train --data data --out runs/two --batch 16
    """
    ranks = Ranks.from_environment()
    given = {name: value for name, value in settings.items() if value not in (None, [])}
    with ExitStack() as stack:
        with _refusals(ranks):
            if ranks.leads:
                stack.enter_context(alone_in(out))
            run = (go_on if resume else begin)(out, data, recipe, given)
            machine = choose_machine(run.recipe, ranks)
        try:
            code = _train(run, machine, ranks)
        except _FAILURES as error:
            if ranks.leads or not isinstance(error, Diverged):  # which all ranks see
                typer.echo(f"{ranks.label}{_explained(error, out)}", err=True)
            code = 1
    raise typer.Exit(code)


@contextmanager
def _refusals(ranks: Ranks) -> Iterator[None]:
    """What does not fit is told by the rank that finds it."""
    try:
        yield
    except (SlmCoreError, ValueError, OSError) as error:
        if ranks.leads:
            raise typer.BadParameter(str(error)) from None
        typer.echo(f"{ranks.label}{error}", err=True)
        raise typer.Exit(2) from None


def _train(run: Run, machine: Machine, ranks: Ranks) -> int:
    """Returns the exit status."""
    console = Console(quiet=not ranks.leads)
    # torchrun passes a signal on that systemd, for one, has sent to every process already.
    doubled = "TORCHELASTIC_RUN_ID" in os.environ
    with ranks.joined(machine.device), Stop(doubled=doubled) as stop:
        with _refusals(ranks):
            start = start_of(run)
            events = run.recipe.tensorboard and ranks.leads
            progress = Progress(run.out, console, tensorboard=events)
            trainer = Trainer(run, start, machine, ranks, stop, progress)
            if ranks.leads:
                _open(run)
        console.print(overview(run, start, machine, ranks, trainer))
        for note in run.notes:
            progress.note(note)
        with progress:
            finished = trainer.run()
            if finished and ranks.leads:
                finished = _summarise(trainer, progress, run.out)
        if finished:
            return 0
        progress.note(
            f"stopped at step {trainer.at.step:,}; to go on, say\n"
            f"python -m training.train --out {run.out} --resume"
        )
        return 128 + (stop.signal or signal.SIGTERM)  # none where another rank was sent one


def _open(run: Run) -> None:
    """Makes the run's folder ready for it."""
    run.out.mkdir(parents=True, exist_ok=True)
    write_text(run.out / RECIPE, to_toml(run.recipe, run.asked))
    if run.state:
        forget_after(run.out, run.state.step)


def _summarise(trainer: Trainer, progress: Progress, out: Path) -> bool:
    """Whether no signal came in between."""
    try:
        summary = trainer.summary()
    except Interrupted:
        return False
    write_text(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    progress.note(
        f"done in {clock(summary['seconds'])}; best at step {summary['step']:,}: validation loss "
        f"{summary['val_loss']:.4f}, perplexity {summary['perplexity']:.2f} on all "
        f"{summary['val_documents']:,} documents\nslm up --model {out} serves it"
    )
    return True


_FAILURES = (
    *(Diverged, StateError, RankLost, CompilerFailed),
    *(SlmCoreError, OSError, torch.OutOfMemoryError),
)


def _explained(error: Exception, out: Path) -> str:
    """What happened, what to do, and what is kept."""
    kept = "nothing was saved yet"
    if has_state(out / STATE):
        kept = f"the last good state is in {out / STATE}, for --resume"
    if isinstance(error, Diverged):
        ways = ["go on from it"] if has_state(out / STATE) else []
        ways += [f"begin from the best checkpoint (--init-from {out})"] if _has_best(out) else []
        ways.append("begin anew")
        return f"{error}; {kept}. With lower rates (--muon-lr, --adam-lr) {' or '.join(ways)}"
    if isinstance(error, RankLost):
        return f"another rank of this run has ended ({error}); {kept}"
    if isinstance(error, CompilerFailed):
        return f"torch.compile failed: {error}\n--no-compile trains without it; {kept}"
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is full: raise --accumulate or lower --batch; {kept}"
    return f"{error}; {kept}"


def _has_best(out: Path) -> bool:
    return (out / WEIGHTS).exists()


_own = inspect.signature(main, eval_str=True).parameters.values()
_named = [p for p in _own if p.kind is not inspect.Parameter.VAR_KEYWORD]
main.__signature__ = inspect.Signature([*_named, *options()])  # type: ignore[attr-defined]

app = command_line(panels=True)
app.command(no_args_is_help=True)(main)

if __name__ == "__main__":
    app()
