"""`slm models add` and `check`: real imports of a real, small checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from slm_core import load_checkpoint
from slm_core.huggingface import export_huggingface
from tests.slm_client.processes import SLM, slm


@pytest.fixture(scope="module")
def gpt2(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Hugging Face's format."""
    return export_huggingface(checkpoint, tmp_path_factory.mktemp("theirs") / "gpt2")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """As a process of its own, whose output is all there is."""
    return subprocess.run(
        [*SLM, *arguments], capture_output=True, text=True, env={**os.environ, **env}, check=False
    )


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same weights."""
    ours, theirs = load_checkpoint(one).state_dict(), load_checkpoint(other).state_dict()
    return ours.keys() == theirs.keys() and all(ours[k].equal(theirs[k]) for k in ours)


def test_a_folder_of_hugging_face(gpt2: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(gpt2, "gpt2-poems")
    result = slm("models", "add", "poems", "--from", "gpt2-poems", "--precision", "bf16")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert "Added poems, in .slm/models/poems." in result.stderr
    entries = tomllib.loads((tmp_path / ".slm" / "models.toml").read_text())
    assert entries == {"poems": {"checkpoint": "models/poems", "precision": "bf16"}}
    assert same(tmp_path / ".slm" / "models" / "poems", checkpoint)
    done = run("models", "check")
    assert done.returncode == 0, done.stderr
    assert "[tinystories]" in done.stdout  # the packaged ones are served too
    assert "[poems]" in done.stdout
    assert str(tmp_path / ".slm" / "models" / "poems") in done.stdout


def test_a_checkpoint_of_ours(checkpoint: Path, tmp_path: Path) -> None:
    data = ["--data-dir", "d"]
    assert slm("models", "add", "v1.5", "--from", str(checkpoint), *data).exit_code == 0
    assert same(tmp_path / "d" / "models" / "v1.5", checkpoint)
    for name, sentence in (
        ("v1.5", "d/models.toml has an entry 'v1.5' already.\n"),
        (
            "V 2",
            "'V 2' is no model name: up to 64 of a-z, 0-9, '.', '_', '-', the first no sign.\n",
        ),
    ):
        result = slm("models", "add", name, "--from", str(checkpoint), *data)
        assert (result.exit_code, result.stderr) == (1, sentence)
    (tmp_path / "d" / "models.toml").unlink()
    result = slm("models", "add", "v1.5", "--from", str(checkpoint), *data)
    assert result.stderr == ("d/models/v1.5 is there already; remove it, or choose another name.\n")


def test_what_is_no_model(gpt2: Path, tmp_path: Path) -> None:
    Path("empty").mkdir()
    Path("file").touch()
    shutil.copytree(gpt2, "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace("gelu_new", "relu"))
    for source, words in (
        ("empty", "cannot import"),
        ("other", "activation_function"),
        ("file", "--from file is neither a folder nor a hub id such as gpt2."),
        ("../no/such/folder", "is neither a folder nor a hub id"),
    ):
        result = slm("models", "add", "x", "--from", source)
        assert result.exit_code == 1
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not list(Path().glob(".slm/models/*"))
    assert not Path(".slm/models.toml").exists()


def test_entries_that_cannot_be_served() -> None:
    assert run("models", "check").returncode == 0  # the packaged ones alone
    Path(".slm").mkdir()
    Path(".slm/models.toml").write_text('[mine]\ncheckpoint = "nowhere"\n')
    done = run("models", "check")
    assert (done.returncode, done.stdout) == (1, "")
    assert "[mine] has no usable" in done.stderr
    done = run("models", "check", SLM_MODELS_FILE="other.toml")
    assert "other.toml: No such file" in done.stderr


def cache(gpt2: Path, folder: Path) -> Path:
    """What the hub's package would have downloaded before."""
    revision = "0" * 40
    snapshot = folder / "models--someone--tiny-gpt2" / "snapshots" / revision
    shutil.copytree(gpt2, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(revision)
    return folder


def test_a_hub_id(gpt2: Path, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    hub = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache(gpt2, tmp_path / "hub"))}
    done = run("models", "add", "tiny", "--from", "someone/tiny-gpt2", **hub)
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / ".slm" / "models" / "tiny", checkpoint)
    done = run("models", "add", "tiny2", "--from", "someone/else", **hub)
    assert done.returncode == 1
    assert "cannot get someone/else from the Hugging Face hub, and there is no" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_id_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = slm("models", "add", "gpt2", "--from", "gpt2")
    assert result.exit_code == 1
    assert "pip install 'slm-jobs[hub]'" in result.stderr
