"""A run that was stopped, or killed, and went on equals one that ran through: bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from slm_core import GPT
from tests.training.runs import (
    POEMS,
    STORIES,
    TOY,
    command,
    course,
    environment,
    eventually,
    states,
    tensors,
    train,
    write_data,
)
from training import progress, state
from training.evaluator import Evaluator, Measured
from training.settings import read_toml
from training.state import State, StateError, has_state, load_state, save_state

# All that a step depends on: dropout, rare types, an average, two optimizers, epochs that end.
SETTINGS = (
    f"{TOY} --dropout 0.1 --ema 0.95 --accumulate 2 --steps 60 --eval-every 20 --save-every 7 "
    "--eval-documents 4"
)
RARE = ["A rare word: otter.", "Another one: walrus."]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("text") / "data", STORIES * 10 + RARE, STORIES)


@pytest.fixture(scope="module")
def through(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "through"
    result = train(SETTINGS, "--threads", "1", "--data", data, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def assert_equal(out: Path, through: Path) -> None:
    assert course(out) == course(through)
    assert (out / "samples.md").read_text() == (through / "samples.md").read_text()
    for folder in ("", "last"):
        weights = [(each / folder / "model.safetensors").read_bytes() for each in (out, through)]
        assert weights[0] == weights[1]
    mine, theirs = tensors(out), tensors(through)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def train_until(step: int, number: int, arguments: str, *more: str | Path) -> Result:
    """A signal comes right after a step, as it could at any time."""
    told = progress.Progress.step

    def tell(self: progress.Progress, done: float, at: int, *rest: Any) -> None:
        told(self, done, at, *rest)
        if at == step:
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.Progress, "step", tell)
        return train(arguments, *more)


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [(33, signal.SIGTERM, 143), (19, signal.SIGINT, 130), (59, signal.SIGHUP, 129)],
)
def test_a_stopped_run_goes_on(
    data: Path, through: Path, tmp_path: Path, step: int, number: int, code: int
) -> None:
    out = tmp_path / "run"
    result = train_until(step, number, SETTINGS, "--threads", "1", "--data", data, "--out", out)
    assert result.exit_code == code, result.output
    assert f"--out {out} --resume" in " ".join(result.output.split())
    result = train("--resume", "--out", out)
    assert result.exit_code == 0, result.output
    assert_equal(out, through)


def test_a_signal_puts_an_evaluation_off(
    data: Path, through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    drawn = Evaluator.measure

    def measure(self: Evaluator, model: GPT, check: Callable[[], None]) -> Measured:
        signal.raise_signal(signal.SIGTERM)
        return drawn(self, model, check)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "measure", measure)
        result = train(SETTINGS, "--threads", "1", "--data", data, "--out", out)
    assert result.exit_code == 143, result.output
    assert not (out / "log.jsonl").exists()
    assert [path.name for path in states(out)] == ["step-00000014", "step-00000020"]
    assert train("--resume", "--out", out).exit_code == 0
    assert_equal(out, through)


def test_a_killed_run_goes_on(data: Path, through: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = command(SETTINGS, "--threads", "1", "--data", data, "--out", out)
    child = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: any(path.name >= "step-00000021" for path in states(out)))
    finally:
        child.kill()
        child.wait()
    result = train("--resume", "--out", out)
    assert result.exit_code == 0, result.output
    assert_equal(out, through)


def test_a_second_signal_ends_it_at_once(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = command(f"{TOY} --epochs 1e6 --save-every 5", "--data", data, "--out", out)
    child = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: states(out))
        child.send_signal(signal.SIGSTOP)  # so that both come within one step
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGCONT)
        assert child.wait(60) == -signal.SIGTERM
    finally:
        child.kill()
        child.wait()


def test_what_a_run_told_too_early_is_taken_back(data: Path, through: Path, tmp_path: Path) -> None:
    """Killed between telling of an evaluation and saving the state."""
    out = tmp_path / "run"
    train_until(33, signal.SIGTERM, SETTINGS, "--threads", "1", "--data", data, "--out", out)
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps({**course(out)[-1], "step": 40, "val_loss": 9.9}) + '\n{"step": 4')
    with (out / "samples.md").open("a") as file:
        file.write("## Step 40\n\n> not\n\n## Step 41\n\n> this\n")
    assert train("--resume", "--out", out).exit_code == 0
    assert_equal(out, through)


def test_a_finished_run_can_only_be_made_longer(data: Path, through: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(f"{TOY} --steps 3", "--data", data, "--out", out).exit_code == 0
    before = course(out)
    (out / "summary.json").unlink()
    result = train("--resume", "--out", out)
    assert result.exit_code == 0, result.output
    assert course(out) == before
    assert (out / "summary.json").exists()
    longer = train("--resume --steps 6", "--out", out)
    assert longer.exit_code == 0
    # Half a step after step 3 of 6, in a line from 2 % to the end.
    assert "from step 3, at 43% of the peak rates" in " ".join(longer.output.split())
    assert [entry["step"] for entry in course(out)] == [3, 6]


def test_a_run_may_go_on_with_other_rates_which_is_told(data: Path, tmp_path: Path) -> None:
    out, same = tmp_path / "run", tmp_path / "same"
    for each in (out, same):
        train_until(3, signal.SIGTERM, f"{TOY} --steps 6", "--data", data, "--out", each)
    assert train("--resume", "--out", same).exit_code == 0
    result = train("--resume --muon-lr 0.001 --adam-lr 0.001 --clip 0.5", "--out", out)
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "from step 4 on muon_lr: 0.001, not 0.01" in told
    assert "from step 4 on clip: 0.5, not 1.0" in told
    assert course(out) != course(same)
    kept = read_toml(out / "recipe.toml")
    assert (kept["muon_lr"], kept["steps"]) == (0.001, 6)


def test_another_recipe_or_text_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(f"{TOY} --steps 3", "--data", data, "--out", out).exit_code == 0
    result = train("--resume --batch 8 --ema 0.5 --threads 1 --eval-every 2", "--out", out)
    message = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2
    assert "batch: 8, not 4; ema: 0.5, not 0.0:" in message
    other = write_data(tmp_path / "other", POEMS * 5, STORIES)
    result = train("--resume", "--out", out, "--data", other)
    assert result.exit_code == 2
    assert "train.bin is another text" in " ".join(result.output.replace("│", " ").split())


def test_a_damaged_state_gives_way_to_the_one_before(
    data: Path, through: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train_until(33, signal.SIGTERM, SETTINGS, "--threads", "1", "--data", data, "--out", out)
    newest = states(out)[-1] / "tensors.safetensors"
    os.truncate(newest, newest.stat().st_size // 2)
    result = train("--resume", "--out", out)
    assert result.exit_code == 0, result.output
    assert "step-00000034 is damaged" in " ".join(result.output.split())
    assert_equal(out, through)


def test_a_state_is_there_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def make(step: int) -> State:
        return State(step, {"weights": torch.full((3,), float(step))}, {"word": str(step)})

    save_state(tmp_path, make(1))
    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", _full_disk)
        with pytest.raises(StateError, match="No space left on device"):
            save_state(tmp_path, make(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    for step in (2, 3, 3):
        save_state(tmp_path, make(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    newest, problems = load_state(tmp_path)
    assert (newest.step, newest.facts["word"], problems) == (3, "3", [])
    assert newest.tensors["weights"].tolist() == [3.0] * 3
    for path in tmp_path.glob("step-*/state.json"):
        path.write_text("[]")
    with pytest.raises(StateError, match=r"step-00000003 is damaged.*step-00000002 is damaged"):
        load_state(tmp_path)


def test_only_states_are_taken_for_states(tmp_path: Path) -> None:
    (tmp_path / "step-00000030-keep").mkdir()
    for step in (29, 31, 32, 10**8, 10**8 + 1):
        save_state(tmp_path, State(step, {}, {}))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000030-keep", "step-100000000", "step-100000001"]
    assert load_state(tmp_path)[0].step == 10**8 + 1
    shutil.rmtree(tmp_path / "step-100000000")
    shutil.rmtree(tmp_path / "step-100000001")
    assert not has_state(tmp_path)


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_ends_the_run_and_keeps_the_last_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    train_until(5, signal.SIGTERM, f"{TOY} --steps 20", "--data", data, "--out", out)
    monkeypatch.setattr(state, "save_file", _full_disk)
    result = train("--resume", "--out", out)
    assert result.exit_code == 1
    message = " ".join(result.output.split())
    assert "No space left on device" in message
    assert "last good state" in message
    assert [path.name for path in states(out)] == ["step-00000006"]
