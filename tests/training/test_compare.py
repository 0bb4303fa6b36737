"""Untrained, without and with a KV cache; and the table of all checkpoints under a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from slm_core import Engine, GPTConfig, save_checkpoint
from slm_core.checkpoint import record_perplexity
from tests.slm_core.conftest import random_model
from training import compare, table
from training.samples import Sampling

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=40)
WAYS = [compare.UNTRAINED, compare.NO_CACHE, compare.CACHE]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(random_model(CONFIG), tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("A cat sat on a mat.\n<|endoftext|>\nThe dog ran away.\n<|endoftext|>\n")
    return path


def test_side_by_side_with_times_by_length(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "compare"
    arguments = [str(checkpoint), str(text), "--out", str(out), "--repeats", "1", "--samples", "2"]
    done = CliRunner().invoke(compare.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.stdout)
    assert json.loads((out / "result.json").read_text()) == result
    assert result["same_text"]
    assert result["loss"][compare.UNTRAINED] == pytest.approx(np.log(50257), rel=0.02)
    lengths = list(result["seconds"][compare.CACHE])
    assert lengths[:2] == ["16", "32"]
    assert all(list(each) == lengths for each in result["seconds"].values())
    assert all(list(each.values()) == sorted(each.values()) for each in result["seconds"].values())
    assert (out / "times.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "index.html").read_text("utf-8")
    assert page.count("<article>") == 2 * 3
    assert all(f"<h3>{name}</h3>" in page for name in WAYS)
    assert 'src="times.png"' in page
    assert "are the same" in (out / "README.md").read_text("utf-8")


def test_a_folder_that_cannot_be_written_is_told_after_the_figures(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    arguments = [str(checkpoint), str(text), "--out", str(tmp_path / "file" / "compare")]
    more = ["--repeats", "1", "--samples", "1", "--tokens", "2"]
    done = CliRunner().invoke(compare.app, [*arguments, *more], catch_exceptions=False)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["same_text"]
    assert done.stderr.splitlines()[-1].startswith("not written: [Errno 20] Not a directory")


def test_each_token_is_timed(checkpoint: Path) -> None:
    engine = Engine.from_checkpoint(checkpoint, slots=1)
    ticks = iter(range(100))
    times = compare.token_times(engine, [1, 2, 3], 5, Sampling(), clock=lambda: next(ticks))
    assert times.tolist() == [1, 2, 3, 4, 5]


def test_what_cannot_be_compared_is_refused(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    def refusal(*arguments: object) -> str:
        done = CliRunner().invoke(compare.app, [*map(str, arguments), "--out", str(tmp_path / "o")])
        assert done.exit_code == 2
        return done.output

    assert "--tokens must be at most" in refusal(checkpoint, text, "--tokens", 40)
    assert "config.json" in refusal(tmp_path, text)
    assert not (tmp_path / "o").exists()


@pytest.fixture
def runs(checkpoint: Path, tmp_path: Path) -> Path:
    """A run with a best and a last checkpoint, one that was recorded, one broken, one hidden."""
    folder = tmp_path / "runs"
    model = random_model(CONFIG)
    good = save_checkpoint(model, folder / "good", dtype=torch.bfloat16)
    save_checkpoint(model, folder / "good" / "last")
    entries = [
        {"step": 10, "tokens": 1000, "seconds": 60.0, "val_loss": 3.0},
        {"step": 20, "tokens": 2000, "seconds": 120.0, "val_loss": 2.5},
        {"step": 30, "tokens": 3000, "seconds": 180.0, "val_loss": 2.75},
    ]
    log = "".join(json.dumps(entry) + "\n" for entry in entries)
    (good / "log.jsonl").write_text(log + '{"step": 40, "tok')
    record_perplexity(save_checkpoint(model, folder / "old"), {"fp32": 20.0})
    (save_checkpoint(model, folder / "broken") / "config.json").write_text("{}")
    save_checkpoint(model, folder / ".state" / "hidden")
    return folder


def rows(*arguments: object) -> dict[str, dict[str, Any]]:
    done = CliRunner().invoke(table.app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return {row["checkpoint"]: row for row in json.loads(done.stdout)}


def test_a_table_of_all_checkpoints_the_best_first(runs: Path) -> None:
    found = rows(runs)
    assert list(found) == ["good", "good/last", "old", "broken"]
    good, last, old, broken = found.values()
    assert (good["steps"], good["tokens"], good["minutes"]) == (20, 2000, 2.0)
    assert (good["val_loss"], good["perplexity"]) == (2.5, 12.18)
    assert (last["steps"], last["val_loss"]) == (30, 2.75)
    assert (old["steps"], old["perplexity"]) == (None, 20.0)
    (runs / "good" / "summary.json").write_text('{"step": 20, "val_loss": 2.625}')
    assert rows(runs)["good"]["val_loss"] == 2.625
    assert good["parameters"] == sum(p.numel() for p in random_model(CONFIG).parameters())
    assert last["megabytes"] == pytest.approx(2 * good["megabytes"], rel=0.02)
    assert good["shape"] == "1\N{MULTIPLICATION SIGN}2\N{MULTIPLICATION SIGN}32"
    assert "is not a checkpoint config" in broken["error"]
    shown = CliRunner().invoke(table.app, [str(runs)], env={"COLUMNS": "160"})
    assert shown.exit_code == 0
    assert "13.8" in shown.output


def test_all_are_measured_alike(runs: Path, text: Path) -> None:
    found = rows(runs, "--evaluate", text)
    good, old = found["good"], found["old"]
    assert good["val_loss"] == pytest.approx(old["val_loss"], rel=0.01)
    assert good["val_loss"] not in (2.5, 2.75)
    assert good["steps"] == 20


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(table.app, [str(tmp_path)])
    assert done.exit_code == 2
    assert "model.safetensors" in done.output
