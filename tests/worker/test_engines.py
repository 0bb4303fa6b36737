"""What an entry of the manifest comes to."""

from __future__ import annotations

from pathlib import Path

from slm_core import SamplingParams
from slm_jobs.manifest import ModelSpec
from slm_jobs.settings import Settings
from worker.engines import load_engine

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


def test_an_untrained_model_needs_the_shape_only(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    untrained = load_engine(spec(tmp_path, untrained=True), SETTINGS)
    again = load_engine(spec(tmp_path, untrained=True), SETTINGS)
    assert untrained.config.context_length == 512
    assert untrained.generate("Once", PARAMS) == again.generate("Once", PARAMS)
    trained = load_engine(spec(checkpoint), SETTINGS)
    assert untrained.generate("Once", PARAMS) != trained.generate("Once", PARAMS)
