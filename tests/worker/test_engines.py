"""What an entry of the manifest comes to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slm_core import SamplingParams
from slm_jobs.manifest import ModelSpec
from slm_jobs.settings import Settings
from worker import tryout
from worker.engines import load_engine, slots_of

PARAMS = SamplingParams(max_tokens=12, seed=3, ignore_eos=True)
SETTINGS = Settings.model_construct(slots=16)


def spec(checkpoint: Path, **fields: object) -> ModelSpec:
    return ModelSpec.model_validate(
        {"name": "m", "checkpoint": checkpoint, "context_length": 512, **fields}
    )


def test_a_checkpoint_with_a_cache_and_without(checkpoint: Path) -> None:
    cached = load_engine(spec(checkpoint, precision="fp32"), SETTINGS)
    naive = load_engine(spec(checkpoint, precision="fp32", kv_cache=False), SETTINGS)
    assert (cached.slots, naive.slots) == (16, 4)
    assert naive.fingerprint.endswith("/no-cache")
    greedy = SamplingParams(max_tokens=12, temperature=0)
    assert naive.generate("Once", greedy) == cached.generate("Once", greedy)


def test_some_slots_are_reserved_but_never_all(checkpoint: Path) -> None:
    cached, naive = spec(checkpoint), spec(checkpoint, kv_cache=False)
    assert slots_of(cached, SETTINGS) == (16, 4)
    assert slots_of(naive, SETTINGS) == (4, 3)
    assert slots_of(cached, Settings.model_construct(slots=1)) == (1, 0)
    assert slots_of(cached, Settings.model_construct(slots=8, reserved_slots=0)) == (8, 0)
    engine = load_engine(cached, SETTINGS)
    for _ in range(16):
        engine.add("Once", PARAMS, priority=-1)
    assert len(engine.step()) == 12


def test_an_untrained_model_needs_the_shape_only(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    untrained = load_engine(spec(tmp_path, untrained=True), SETTINGS)
    again = load_engine(spec(tmp_path, untrained=True), SETTINGS)
    assert untrained.config.context_length == 512
    assert untrained.generate("Once", PARAMS) == again.generate("Once", PARAMS)
    trained = load_engine(spec(checkpoint), SETTINGS)
    assert untrained.generate("Once", PARAMS) != trained.generate("Once", PARAMS)


def test_trying_them_out(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'[tiny]\ncheckpoint = "{checkpoint}"\n')
    monkeypatch.setenv("SLM_MODELS_FILE", str(manifest))
    monkeypatch.setattr("sys.argv", ["tryout", "--help"])
    with pytest.raises(SystemExit, match="0"):
        tryout.main()
    assert capsys.readouterr().out.startswith("usage: python -m worker.tryout [-h]")
    monkeypatch.setattr("sys.argv", ["tryout"])
    tryout.main()
    begun, ended = map(json.loads, capsys.readouterr().out.splitlines())
    assert begun == {"trying": "tiny"}
    assert (ended["model"], ended["tokens"]) == ("tiny", 4)
