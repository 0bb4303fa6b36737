"""A run before it computes anything: its settings, its text, its folder, where it stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm_core.checkpoint import would_overwrite
from training.progress import LOG
from training.recipe import Recipe
from training.recipe import settings as known
from training.settings import (
    CHANGEABLE,
    RATES,
    amended,
    asked_for,
    differences,
    merged,
    resolve,
)
from training.state import State, StateError, has_state, load_state
from training.tokens import DataFolder

STATE, SUMMARY = "state", "summary.json"
LAST = "last"  # the newest checkpoint, beside the best one, which it shares its log with


@dataclass(frozen=True)
class Run:
    """`asked` are the settings that somebody gave; `recipe` has the others, too. `folder` is that
    of `data`. `state` is where an earlier run in `out` stopped, and `notes` tell what was wrong
    with newer states than that, and what is not as it was."""

    asked: Mapping[str, Any]
    recipe: Recipe
    folder: Path
    data: DataFolder
    out: Path
    state: State | None = None
    notes: Sequence[str] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What a state keeps of it, for `go_on`; fits into JSON."""
        return {
            "asked": dict(self.asked),
            "recipe": asdict(self.recipe),
            "data_folder": str(self.folder.absolute()),
            "data_sha256": {part: self.data.meta[part].get("sha256") for part in ("train", "val")},
        }


def begin(out: Path, folder: Path | None, file: Path | None, settings: Mapping[str, Any]) -> Run:
    """A new run. Raises ValueError, too where `out` holds one already, or another checkpoint."""
    if folder is None:
        raise ValueError("--data is missing: the folder that training.prepare made")
    if has_state(out / STATE) or (out / LOG).exists():
        raise ValueError(f"{out} holds a run: --resume goes on with it; or name another --out")
    if would_overwrite(out):
        raise ValueError(
            f"{out} holds a checkpoint, which would be overwritten: name another --out"
        )
    asked = asked_for(settings, file)
    return Run(asked, resolve(asked), folder, DataFolder.open(folder), out)


def go_on(out: Path, folder: Path | None, file: Path | None, settings: Mapping[str, Any]) -> Run:
    """The run in `out` from its newest state. Raises ValueError for what would make it another."""
    try:
        state, problems = load_state(out / STATE)
    except StateError as error:
        raise ValueError(f"{error}; without --resume a run begins") from None
    try:
        asked, before = dict(state.facts["asked"]), Recipe(**state.facts["recipe"])
    except (KeyError, TypeError):
        raise ValueError(f"the state in {out / STATE} is of another version") from None
    now = asked_for(settings, file)
    recipe = amended(before, now)
    folder = folder or Path(state.facts["data_folder"])
    notes = [f"{problem}; the state before it is taken" for problem in problems]
    notes += [f"from step {state.step:,} on {rate}" for rate in differences(before, recipe, RATES)]
    run = Run(merged([asked, now]), recipe, folder, DataFolder.open(folder), out, state, notes)
    changed = differences(before, recipe, known().keys() - CHANGEABLE)
    for part, digest in run.identity["data_sha256"].items():
        if digest != state.facts["data_sha256"][part]:
            changed.append(f"{part}.bin is another text")
    if changed:
        raise ValueError(
            f"{out} must go on as it began, but {'; '.join(changed)}: leave that as it was, or "
            "name another --out"
        )
    return run
