from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_client import BadInput, manifests
from slm_client.siblings import PACKAGED_MODELS


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    return folder


@pytest.mark.parametrize(
    ("folder", "name"), [("My Model (2)", "my-model-2"), ("v1.5_b", "v1.5_b"), ('ü"\\😀', "model")]
)
def test_a_manifest_for_one_checkpoint(tmp_path: Path, folder: str, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path / folder)
    path = manifests.write_only(checkpoint, tmp_path)
    assert path.name == "only-model.toml"
    assert tomllib.loads(path.read_text("utf-8")) == {
        name: {"checkpoint": str(checkpoint), "precision": "auto"}
    }


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none is not a folder"):
        manifests.write_only(tmp_path / "none", tmp_path)
    checkpoint = make_checkpoint(tmp_path / "model")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"not a checkpoint: it has no model\.safetensors"):
        manifests.write_only(checkpoint, tmp_path)


@given(st.text())
def test_every_folder_gives_a_name_that_the_service_takes(folder: str) -> None:
    name = manifests.model_name(folder)
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name)


MINE = """\
# my models
[mine]   # the good one
checkpoint = "models/mine" # here

[mine.templates]
"""


@pytest.mark.parametrize("before", ["", MINE, MINE.rstrip(), "\n\n", "# only a comment"])
@pytest.mark.parametrize("name", ["gpt2", "v1.5_b"])
def test_an_entry_is_added_and_the_rest_stays(tmp_path: Path, before: str, name: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(before)
    manifests.add_entry(tmp_path, name, {"precision": "bf16"})
    text = path.read_text("utf-8")
    assert text.startswith(before.rstrip())
    after = tomllib.loads(text)
    assert after.pop(name) == {"checkpoint": f"models/{name}", "precision": "bf16"}
    assert after == tomllib.loads(before)
    header = f'["{name}"]' if "." in name else f"[{name}]"
    assert f"\n\n{header}\ncheckpoint" in "\n\n" + text


def test_the_first_entry_makes_a_file_that_explains_itself(tmp_path: Path) -> None:
    manifests.add_entry(tmp_path, "gpt2", {})
    manifests.add_entry(tmp_path, "mine", {})
    text = (tmp_path / "models.toml").read_text()
    assert text.startswith("# Models that `slm up` serves besides the packaged ones")
    assert list(tomllib.loads(text)) == ["gpt2", "mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["models.toml"]


def test_what_cannot_be_added(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    assert manifests.place_for(tmp_path, "mine") == tmp_path / "models" / "mine"
    path.write_text(MINE)
    for name in ("mine", "Mine", "", "-x", "a/b", "x" * 65):
        with pytest.raises(BadInput):
            manifests.place_for(tmp_path, name)
    (tmp_path / "models" / "gpt2").mkdir(parents=True)
    with pytest.raises(BadInput, match="is there already"):
        manifests.place_for(tmp_path, "gpt2")
    for data in (b"[mine", b"\xff"):
        path.write_bytes(data)
        with pytest.raises(BadInput, match=r"models\.toml is not TOML: "):
            manifests.place_for(tmp_path, "gpt3")


def test_which_models_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert manifests.models_file(Path("data")) is None
    manifests_of_data = tmp_path / "data" / "models.toml"
    manifests_of_data.parent.mkdir()
    manifests_of_data.touch()
    assert (
        manifests.models_file(Path("data")) == f"{PACKAGED_MODELS}{os.pathsep}{manifests_of_data}"
    )
    assert PACKAGED_MODELS.is_file()
    monkeypatch.setenv("SLM_MODELS_FILE", f"a.toml{os.pathsep}/b/c.toml")
    assert manifests.models_file(Path("data")) == f"{tmp_path}/a.toml{os.pathsep}/b/c.toml"
    monkeypatch.delenv("SLM_MODELS_FILE")
    odd = tmp_path / f"o{os.pathsep}d"
    make_checkpoint(odd)
    (odd / "models.toml").touch()
    with pytest.raises(BadInput, match="cannot be served from"):
        manifests.models_file(odd)
