"""Settings: where they come from, what is refused, and that a recipe file gives the same ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from typer.testing import CliRunner

from slm_core import GPTConfig
from slm_core.config import PRESETS
from training.recipe import Recipe, settings
from training.settings import (
    CHANGEABLE,
    amended,
    asked_for,
    differences,
    read_toml,
    resolve,
    to_toml,
)
from training.train import app


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "recipe.toml"


def test_a_flag_goes_before_the_file_and_that_before_the_preset(toml: Path) -> None:
    toml.write_text('preset = "classic"\nbatch = 32\nmuon_lr = 0.02\n')
    assert resolve({"preset": "classic"}).batch == 16
    assert resolve(asked_for({}, toml)).batch == 32
    recipe = resolve(asked_for({"batch": 64}, toml))
    assert (recipe.preset, recipe.batch, recipe.muon_lr) == ("classic", 64, 0.02)


def test_the_length_is_one_setting(toml: Path) -> None:
    toml.write_text("minutes = 30\nsteps = 100\n")
    assert (resolve({}).epochs, resolve({}).minutes) == (4.0, None)
    both = resolve(asked_for({}, toml))
    assert (both.epochs, both.steps, both.minutes) == (None, 100, 30.0)
    flag = resolve(asked_for({"epochs": 2.0}, toml))
    assert (flag.epochs, flag.steps, flag.minutes) == (2.0, None, None)


def test_another_optimizer_and_fine_tuning_bring_their_own_rates() -> None:
    usual, adamw = resolve({}), resolve({"optimizer": "adamw"})
    assert adamw.adam_lr < usual.adam_lr
    assert adamw.main_lr == adamw.adam_lr
    assert usual.main_lr == usual.muon_lr
    tuned = resolve({"init_from": "runs/mine"})
    assert tuned.muon_lr < usual.muon_lr
    assert tuned.adam_lr < usual.adam_lr
    assert resolve({"init_from": "m", "optimizer": "adamw"}).adam_lr < adamw.adam_lr
    assert resolve({"init_from": "m", "muon_lr": 0.03}).muon_lr == 0.03


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bacth = 4", "no setting 'bacth'; did you mean 'batch'"),
        ("nonsense = 4", "no setting 'nonsense'"),
        ("batch = 4.5", "batch must be a whole number, not 4.5"),
        ("batch = true", "batch must be a whole number"),
        ("batch = 0", "batch must be at least 1, not 0"),
        ("dropout = 1", "dropout must be at least 0 and below 1"),
        ("compile = 1", "compile must be true or false"),
        ('optimizer = "sgd"', "optimizer must be muon or adamw, not 'sgd'"),
        ('freeze = "wte"', "freeze must be a list of strings"),
        ("freeze = 3", "freeze must be a list of strings"),
        ('preset = "huge"', "no preset 'huge'; there are tiny"),
        ("preset = 3", "preset must be a string"),
        ("epochs = 0", "set epochs, steps or minutes, above 0"),
        ("muon_lr = nan", "muon_lr must be at least 0"),
        ("muon_lr = inf", "muon_lr must be at least 0"),
        ("batch = ", "cannot read the recipe"),
        ("[train]\nbatch = 4", "no setting 'train'"),
    ],
)
def test_bad_files_are_refused(toml: Path, text: str, message: str) -> None:
    toml.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(asked_for({}, toml))


def test_wsd_needs_room() -> None:
    with pytest.raises(ValueError, match="warmup and decay"):
        Recipe(schedule="wsd", warmup=0.5, decay=0.6)


def _values() -> st.SearchStrategy[dict[str, Any]]:
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
    some = {
        "batch": st.integers(1, 1000),
        "muon_lr": st.floats(0, 10),
        "compile": st.booleans(),
        "schedule": st.sampled_from(["linear", "cosine", "wsd"]),
        "steps": st.none() | st.integers(1, 10**9),
        "prompts": st.lists(text, max_size=3),
        "init_from": st.none() | text,
        "preset": st.sampled_from(sorted(PRESETS)),
        "seed": st.integers(0, 2**63 - 1),
    }
    return st.fixed_dictionaries({}, optional=some)


@hypothesis(deadline=None)
@given(_values())
def test_a_recipe_file_gives_the_same_recipe(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    assume(not (values.get("init_from") and "preset" in values))
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    recipe = resolve(values)
    path.write_text(to_toml(recipe, values), "utf-8")
    assert resolve(asked_for({}, path)) == recipe
    assert set(read_toml(path)) == {name for name, value in values.items() if value is not None}


def test_a_recipe_file_holds_what_was_asked_for_and_tells_the_rest(toml: Path) -> None:
    """So other rates may follow from a flag that is given beside it."""
    asked = {"batch": 8, "steps": 9, "seed": 3}
    toml.write_text(to_toml(resolve(asked), asked))
    assert read_toml(toml) == asked
    assert set(re.findall(r"^# (\w+) = ", toml.read_text(), re.MULTILINE)) == {
        name
        for name in settings()
        if name not in asked and getattr(resolve(asked), name) is not None
    }
    for flags in ({"init_from": "m"}, {"optimizer": "adamw"}):
        assert resolve(asked_for(flags, toml)) == resolve({**asked, **flags})
    written = {**asked, "muon_lr": 0.03}
    toml.write_text(to_toml(resolve(written), written))
    assert resolve(asked_for({"init_from": "m"}, toml)).muon_lr == 0.03


def test_a_preset_beside_a_checkpoint_is_refused(toml: Path) -> None:
    toml.write_text('preset = "tiny"\n')
    for asked in ({"preset": "tiny", "init_from": "m"}, asked_for({"init_from": "m"}, toml)):
        with pytest.raises(ValueError, match="preset: the shape is that of the checkpoint"):
            resolve(asked)


def test_what_a_resumed_run_would_change_is_named() -> None:
    recipe = resolve({"batch": 8})
    changed = amended(recipe, {"batch": 4, "ema": 0.5, "threads": 1})
    assert differences(recipe, changed, ("ema", "batch")) == [
        "batch: 4, not 8",
        "ema: 0.5, not 0.0",
    ]
    longer = amended(recipe, {"minutes": 5.0, "threads": 1, "eval_every": 7, "compile": False})
    assert longer.epochs is None
    assert differences(recipe, longer, settings().keys() - CHANGEABLE) == []
    assert set(settings()) >= CHANGEABLE


def test_presets_have_the_shapes_that_people_come_for() -> None:
    for name, config in PRESETS.items():
        assert resolve({"preset": name}).config().n_embd == config.n_embd
    classic = resolve({"preset": "classic"}).config()
    assert (classic.n_layer, classic.n_head, classic.n_embd) == (6, 6, 384)
    assert classic.context_length == 128
    assert resolve({"preset": "width-128"}).config().n_embd == 128


def test_shapes_of_ones_own() -> None:
    config = resolve({"preset": "tiny", "layers": 3, "width": 96, "context": 20}).config()
    assert (config.n_layer, config.n_embd, config.context_length) == (3, 96, 20)
    with pytest.raises(ValueError, match="not a multiple of n_head"):
        resolve({"width": 100, "heads": 3}).config()
    start = GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=32)
    assert resolve({"context": 16, "init_from": "m"}).config(start).context_length == 16
    with pytest.raises(ValueError, match="checkpoint to start from has 32"):
        resolve({"context": 64, "init_from": "m"}).config(start)
    with pytest.raises(ValueError, match="are those of the checkpoint"):
        resolve({"layers": 6, "init_from": "m"}).config(start)


def test_help_tells_every_setting() -> None:
    result = CliRunner().invoke(app, ["-h"], env={"COLUMNS": "160", "TERM": "dumb"})
    assert result.exit_code == 0
    assert {setting.group for _, setting, _ in settings().values()} <= set(result.stdout.split())
    for name in settings():
        assert f"--{name.replace('_', '-')}" in result.stdout
    assert "torchrun --nproc-per-node" in result.stdout
