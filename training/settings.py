"""Where settings come from, and where they are kept.

A flag goes before a line of a TOML file, that before the preset's own recipe.
"""

from __future__ import annotations

import difflib
import inspect
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_origin

import tomlkit
import typer

from slm_core.config import PRESETS
from training.recipe import LENGTHS, Recipe, checked, settings

# Lower ones may take a run past where it diverged.
RATES = frozenset({"muon_lr", "adam_lr", "clip"})

# What a resumed run may change: rates, how long it is, what it runs on and what it tells.
CHANGEABLE = RATES | frozenset(
    {*LENGTHS, "accumulate", "device", "compile", "threads"}
    | {"eval_every", "save_every", "also_evaluate", "prompts", "tensorboard"}
)

# 2,048 tokens a step, as measured on 2 cores; only "tinystories" and "width-128" were tuned.
_PRESET_RECIPES: dict[str, dict[str, Any]] = {
    "tiny": {"batch": 16, "dropout": 0.0},
    "width-128": {"batch": 8},
    "classic": {"batch": 16},
    "gpt2": {"batch": 2, "dropout": 0.1},
}
_ADAMW = {"adam_lr": 1e-3, "weight_decay": 0.1}
_FINE_TUNING = {
    "muon": {"muon_lr": 0.004, "adam_lr": 2e-3},
    "adamw": {"adam_lr": 1e-4, "weight_decay": 0.1},
}


_SHOWN = {"True": "on", "False": "off"}


def options() -> list[inspect.Parameter]:
    """Every setting as a typer option; None means not given."""
    parameters = []
    for name, (kind, setting, default) in settings().items():
        kind = list[str] if get_origin(kind) is tuple else kind
        shown = False if default in (None, ()) else _SHOWN.get(str(default), str(default))
        option = typer.Option(help=setting.help, rich_help_panel=setting.group, show_default=shown)
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
    return parameters


def asked_for(flags: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """What flags and a TOML file say together. Raises ValueError that names the setting."""
    return merged([read_toml(file) if file else {}, flags])


def resolve(asked: Mapping[str, Any]) -> Recipe:
    """The recipe that this makes, with all that nobody asked for. Raises ValueError that names the
    setting."""
    if (preset := asked.get("preset", Recipe.preset)) not in PRESETS:
        raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    if asked.get("init_from") and "preset" in asked:
        raise ValueError(
            "preset: the shape is that of the checkpoint to start from; leave it out everywhere"
        )
    base = _PRESET_RECIPES.get(preset, {})
    optimizer = asked.get("optimizer", Recipe.optimizer)
    rates = _ADAMW if optimizer == "adamw" else {}
    if asked.get("init_from"):
        rates = _FINE_TUNING.get(optimizer, {})
    return Recipe(**merged([base, rates, asked]))


def amended(recipe: Recipe, flags: Mapping[str, Any]) -> Recipe:
    """`recipe` with what flags say instead. Raises ValueError."""
    return Recipe(**merged([asdict(recipe), flags]))


def merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Later layers win. The length is one setting of three names: who sets one unsets the rest."""
    values: dict[str, Any] = {}
    for layer in layers:
        if any(layer.get(name) is not None for name in LENGTHS):
            values |= dict.fromkeys(LENGTHS)
        values |= layer
    return values


def differences(old: Recipe, new: Recipe, among: Collection[str]) -> list[str]:
    """What differs, as "batch: 8, not 4"."""
    before, after = asdict(old), asdict(new)
    return [
        f"{name}: {after[name]}, not {before[name]}"
        for name in before
        if name in among and before[name] != after[name]
    ]


def read_toml(path: Path) -> dict[str, Any]:
    """Settings of a recipe file. Raises ValueError for what is no setting, with the nearest one."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the recipe {path}: {error}") from None
    known = settings()
    for name in content.keys() - known.keys():
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{path}: there is no setting {name!r}{hint}")
    try:
        return {name: checked(name, value) for name, value in content.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def to_toml(recipe: Recipe, asked: Mapping[str, Any]) -> str:
    """A recipe file that gives the same recipe back.

    Only what was asked for counts there: other rates, such as those of fine-tuning, may follow from
    a flag that is given beside it. All other settings stand in comments; what is not set nowhere.
    """
    document = tomlkit.document()
    document.add(tomlkit.comment("What was asked for. A comment tells what followed from it."))
    group = ""
    for name, (_, setting, _) in settings().items():
        value = getattr(recipe, name)
        if setting.group != group:
            group = setting.group
            document.add(tomlkit.nl())
            document.add(tomlkit.comment(group))
        item = list(value) if isinstance(value, tuple) else value
        if asked.get(name) is not None:
            document.add(name, item)
        elif value is not None:
            document.add(tomlkit.comment(f"{name} = {tomlkit.item(item).as_string()}"))
    return tomlkit.dumps(document)
