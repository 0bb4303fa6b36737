"""The tables against the model itself: shapes seen by hooks, parameters counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from slm_core import GPT, GPTConfig, save_checkpoint
from slm_core.checkpoint import record_perplexity
from slm_core.config import PRESETS
from slm_core.describe import app, describe, parts, rows
from slm_core.errors import CheckpointError
from slm_core.model import empty_model

CONFIG = GPTConfig(n_layer=2, n_head=4, n_embd=32, context_length=16, vocab_size=100)
N = 7


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refusal(source: Path) -> str:
    result = CliRunner().invoke(app, [str(source)], catch_exceptions=False)
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    return line


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(GPT(CONFIG), tmp_path / "model", dtype=torch.bfloat16)


def test_shapes_are_those_that_hooks_see() -> None:
    model = GPT(CONFIG).eval()
    seen: dict[str, str] = {}

    def note(name: str) -> object:
        def hook(_: object, __: object, output: torch.Tensor) -> None:
            seen[name] = "\N{MULTIPLICATION SIGN}".join(map(str, output.shape[-2:]))

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(note(name.removeprefix("h.0.").rpartition(".")[2]))
    logits = model(torch.zeros(1, N, dtype=torch.int64))
    shown = {}
    for row in rows(CONFIG):
        name = row.what.rpartition("(")[2].rstrip(")")
        shown.setdefault(name, row.numbers.replace("N", str(N)))
    modules = {"wte", "wpe", "ln_1", "c_attn", "c_proj", "ln_2", "c_fc", "ln_f"}
    assert {name: shown[name] for name in modules} == {name: seen[name] for name in modules}
    assert shown["head: wte again"] == "\N{MULTIPLICATION SIGN}".join(map(str, logits.shape[1:]))


@pytest.mark.parametrize("config", [CONFIG, *PRESETS.values()])
def test_parameters_are_those_of_the_model(config: GPTConfig) -> None:
    total = sum(p.numel() for p in empty_model(config).parameters())
    assert sum(parts(config).values()) == total
    counted = sum(row.parameters * (config.n_layer if row.block else 1) for row in rows(config))
    assert counted == total


def test_a_preset_and_a_checkpoint_are_shown(checkpoint: Path) -> None:
    preset = run("gpt2")
    assert "124,439,808 parameters" in preset
    assert "Weights" not in preset
    record_perplexity(checkpoint, {"fp32": 9.87654})
    shown = run(str(checkpoint))
    assert "N\N{MULTIPLICATION SIGN}100" in shown
    assert "Weights: bf16, 0.1 MB." in shown
    assert "Recorded perplexity: 9.877 in fp32." in shown


def test_markdown_is_tables_of_equal_rows(checkpoint: Path) -> None:
    lines = [line for line in run(str(checkpoint), "--markdown").splitlines() if line[:1] == "|"]
    columns = [line.count("|") for line in lines]
    assert columns == [5] * (columns.count(5)) + [4] * columns.count(4)
    assert (
        "| logits (head: wte again) | N\N{MULTIPLICATION SIGN}V | N\N{MULTIPLICATION SIGN}100 |  |"
        in lines
    )


def test_what_is_no_checkpoint_is_told_in_a_line(checkpoint: Path, tmp_path: Path) -> None:
    assert "neither a checkpoint folder nor a preset" in refusal(tmp_path / "nothing")
    assert "config.json is missing" in refusal(tmp_path)
    weights = checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert "cannot read" in refusal(checkpoint)
    weights.unlink()
    assert "model.safetensors is missing" in refusal(checkpoint)
    weights.write_bytes(whole)
    config = json.loads((checkpoint / "config.json").read_text())
    config["model"]["n_layer"] = 1
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert "h.1.attn.c_attn.bias" in refusal(checkpoint)
    config["model"] = replace(CONFIG, n_embd=64).to_dict()
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"\[96\], its config.json \[192\]"):
        describe(str(checkpoint))
