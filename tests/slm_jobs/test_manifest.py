"""`models.toml`: every mistake is named with its file and entry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slm_jobs.errors import ManifestError, UnknownModel
from slm_jobs.manifest import Manifest
from slm_jobs.settings import PACKAGED_MANIFEST

TWO_MODELS = """
[small]
checkpoint = "checkpoints/small"

[large]
checkpoint = "checkpoints/large"
precision = "fp32"
"""

WriteManifest = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteManifest:
    """Writes models.toml beside the checkpoints `small` and `large`."""
    for name, context_length in (("small", 256), ("large", 1024)):
        checkpoint = tmp_path / "checkpoints" / name
        checkpoint.mkdir(parents=True)
        config = {"model": {"context_length": context_length, "layers": 6}}
        (checkpoint / "config.json").write_text(json.dumps(config))

    def write(text: str) -> Path:
        path = tmp_path / "models.toml"
        path.write_text(text)
        return path

    return write


def test_models_in_the_order_of_the_file(write: WriteManifest, tmp_path: Path) -> None:
    manifest = Manifest.load(write(TWO_MODELS))

    assert list(manifest.models) == ["small", "large"]
    large = manifest.resolve("large")
    assert (large.name, large.precision, large.context_length) == ("large", "fp32", 1024)
    assert large.checkpoint == tmp_path / "checkpoints" / "large"
    assert manifest.models["small"].precision == "auto"


def test_the_first_model_is_the_default(write: WriteManifest) -> None:
    manifest = Manifest.load(write(TWO_MODELS))
    assert manifest.default.name == "small"
    assert manifest.resolve(None) is manifest.default


def test_an_unknown_model_names_the_known_ones(write: WriteManifest) -> None:
    manifest = Manifest.load(write(TWO_MODELS))
    with pytest.raises(UnknownModel, match=r"'medium'.*small, large"):
        manifest.resolve("medium")


def test_an_absolute_checkpoint(write: WriteManifest, tmp_path: Path) -> None:
    elsewhere = tmp_path / "checkpoints" / "large"
    manifest = Manifest.load(write(f'[m]\ncheckpoint = "{elsewhere}"'))
    assert manifest.default.checkpoint == elsewhere


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no model"),
        ("[small", "is not TOML"),
        ("small = 3", r"\[small\] needs checkpoint"),
        ("[small]\nprecision = 'fp32'", r"\[small\] needs checkpoint"),
        ("[small]\ncheckpoint = 3", r"\[small\] needs checkpoint"),
        ("['Not a name']\ncheckpoint = 'checkpoints/small'", "'Not a name' is no model name"),
        ("['%1{{id}}']\ncheckpoint = 'checkpoints/small'", "is no model name"),
        ("[small]\ncheckpoint = 'nowhere'", r"\[small\] has no usable .*nowhere/config\.json"),
        ("[small]\ncheckpoint = 'checkpoints/small'\nprecision = 'int2'", r"\[small\]: precision"),
        ("[small]\ncheckpoint = 'checkpoints/small'\nslots = 3", r"\[small\]: slots"),
    ],
)
def test_mistakes_are_named(write: WriteManifest, text: str, problem: str) -> None:
    path = write(text)
    with pytest.raises(ManifestError, match=problem) as caught:
        Manifest.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "config", ["", "[]", "{}", '{"model": {}}', '{"model": {"context_length": "long"}}']
)
def test_a_bad_checkpoint_config(write: WriteManifest, tmp_path: Path, config: str) -> None:
    (tmp_path / "checkpoints" / "small" / "config.json").write_text(config)
    with pytest.raises(ManifestError, match=r"\[small\].*(config\.json|context_length)"):
        Manifest.load(write(TWO_MODELS))


def test_a_missing_or_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"cannot read .*models\.toml"):
        Manifest.load(tmp_path / "models.toml")
    (tmp_path / "models.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match="is not TOML"):
        Manifest.load(tmp_path / "models.toml")


def test_the_packaged_manifest() -> None:
    assert Manifest.load(PACKAGED_MANIFEST).default.name == "tinystories"
