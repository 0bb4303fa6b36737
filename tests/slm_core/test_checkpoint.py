from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slm_core import (
    GPT,
    Engine,
    GPTConfig,
    SamplingParams,
    load_checkpoint,
    save_checkpoint,
)
from slm_core.checkpoint import read_perplexity, record_perplexity
from slm_core.errors import CheckpointError

SHIPPED = Path(__file__).parents[2] / "slm_core" / "checkpoints" / "tinystories"


@pytest.fixture
def small() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, context_length=32, vocab_size=100))


def test_a_checkpoint_survives_a_round_trip(small: GPT, tmp_path: Path) -> None:
    save_checkpoint(small, tmp_path, card="# A model\n")
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == small.config
    assert not loaded.training
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids), small.eval()(ids))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_weights_may_be_stored_in_bf16_and_load_in_fp32(small: GPT, tmp_path: Path) -> None:
    save_checkpoint(small, tmp_path, dtype=torch.bfloat16)
    weights = load_checkpoint(tmp_path).state_dict()
    for name, tensor in small.state_dict().items():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], tensor.bfloat16().float())


def test_an_engine_starts_without_the_compiler() -> None:
    """Importing it takes longer than all the rest of a start."""
    code = "import sys, slm_core; slm_core.Engine.from_checkpoint(sys.argv[1]);"
    code += "assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, SHIPPED], check=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 20), "cannot read"),
        (lambda d: (d / "config.json").write_text("{"), "not a checkpoint config"),
        (lambda d: (d / "config.json").write_text('{"model": {}}'), "not a checkpoint config"),
        (lambda d: edit(d, tokenizer="other"), "tokenizer 'other'"),
        (lambda d: edit(d, model={"n_layer": 1}), "bad model config"),
        (lambda d: edit(d, model={"wings": 2}), "unknown model config fields: wings"),
        (
            lambda d: edit(d, model=GPTConfig(1, 2, 32, 32, 100).to_dict()),
            "does not fit its config.json",
        ),
    ],
)
def test_damage_is_named(small: GPT, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    save_checkpoint(small, tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def edit(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("bad", [{"n_layer": 0}, {"n_head": 3}, {"dropout": 1.0}])
def test_impossible_shapes_are_refused(bad: dict[str, float]) -> None:
    values = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 8, **bad}
    with pytest.raises(ValueError, match=next(iter(bad))):
        GPTConfig(**values)  # type: ignore[arg-type]


def test_presets_are_named() -> None:
    assert GPTConfig.preset("gpt2").n_layer == 12
    with pytest.raises(ValueError, match="tinystories"):
        GPTConfig.preset("nothing")


def test_exactly_one_checkpoint_ships_and_it_tells_stories() -> None:
    [weights] = (SHIPPED.parents[1]).rglob("model.safetensors")
    assert weights.parent == SHIPPED
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 40e6
    assert "CDLA-Sharing-1.0" in (SHIPPED / "README.md").read_text("utf-8")
    engine = Engine.from_checkpoint(SHIPPED, device="cpu", slots=1)
    [story] = engine.generate("Once upon a time", SamplingParams(max_tokens=60, temperature=0))
    assert story.text.startswith(", there was a")
    assert story.text.count(".") >= 3


def test_recorded_perplexities_are_replaced_and_new_weights_forget_them(
    tmp_path: Path, small: GPT
) -> None:
    save_checkpoint(small, tmp_path)
    assert read_perplexity(tmp_path) == {}
    record_perplexity(tmp_path, {"fp32": 7.0, "int8": 7.1})
    record_perplexity(tmp_path, {"int8": 7.01})
    assert read_perplexity(tmp_path) == {"int8": 7.01}
    assert load_checkpoint(tmp_path).config == small.config
    save_checkpoint(small, tmp_path)
    assert read_perplexity(tmp_path) == {}


@pytest.mark.parametrize("recorded", [[1], "7", {"fp32": "low"}])
def test_bad_perplexities_are_refused(tmp_path: Path, small: GPT, recorded: object) -> None:
    save_checkpoint(small, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "perplexity": recorded}))
    with pytest.raises(CheckpointError, match="bad perplexity"):
        read_perplexity(tmp_path)
