"""Which models a service here has: the packaged ones, those in a data folder, or a single one.

<data-dir>/
├── models.toml      entries that `slm models add` wrote, and people edit
├── models/<name>/   their checkpoints
└── only-model.toml  made by `slm up --model`
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from slm_client.errors import BadInput
from slm_client.siblings import PACKAGED_MODELS

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_CHECKPOINTS = "models"
_HEADER = """\
Models that `slm up` serves besides the packaged ones, or in place of those of the same name.
`checkpoint` is a directory, relative to this file; `slm models check` says what is wrong here.
"""


def models_file(data_dir: Path) -> str | None:
    """SLM_MODELS_FILE for processes that run in another folder: what the environment says; else
    the packaged models and those of the data folder; None: the packaged ones alone, by default.

    Raises BadInput if a path cannot stand in a list of paths.
    """
    if given := os.environ.get("SLM_MODELS_FILE"):
        return os.pathsep.join(str(Path(path).resolve()) for path in given.split(os.pathsep))
    ours = entries_file(data_dir).resolve()
    if not ours.exists():
        return None
    paths = [str(PACKAGED_MODELS), str(ours)]
    if bad := next((path for path in paths if os.pathsep in path), None):
        raise BadInput(f"{bad}: a path with {os.pathsep!r} cannot be served from; move it.")
    return os.pathsep.join(paths)


def entries_file(data_dir: Path) -> Path:
    return data_dir / "models.toml"


def place_for(data_dir: Path, name: str) -> Path:
    """Where the checkpoint of a new model belongs. Raises BadInput unless `name` can be added."""
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} is no model name: up to 64 of a-z, 0-9, '.', '_', '-', the first no sign."
        )
    if name in _read(entries_file(data_dir)):
        raise BadInput(f"{entries_file(data_dir)} has an entry {name!r} already.")
    folder = data_dir / _CHECKPOINTS / name
    if folder.exists():
        raise BadInput(f"{folder} is there already; remove it, or choose another name.")
    return folder


def add_entry(data_dir: Path, name: str, fields: dict[str, Any]) -> None:
    """Adds [name] to the data folder's models.toml, and leaves the rest as it stands. Its
    checkpoint is at `place_for` it. Raises BadInput if the file cannot be read."""
    path = entries_file(data_dir)
    document = _read(path)
    entry = tomlkit.table()
    entry.update({"checkpoint": f"{_CHECKPOINTS}/{name}", **fields})
    document[name] = entry
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(tomlkit.dumps(document), "utf-8")
    partial.replace(path)


def _read(path: Path) -> tomlkit.TOMLDocument:
    """An empty one, with a comment, if there is no file."""
    try:
        text = path.read_text("utf-8")
        # Else what is added would begin in the middle of the last line, or stick to it.
        return tomlkit.parse(text.rstrip() + "\n\n")
    except FileNotFoundError:
        return tomlkit.parse("".join(f"# {line}\n" for line in _HEADER.splitlines()) + "\n")
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None


def write_only(model: Path, data_dir: Path) -> Path:
    """Writes a manifest that names one checkpoint folder after itself, and returns its path.

    Raises BadInput if the folder holds no checkpoint.
    """
    checkpoint = model.resolve()
    if not checkpoint.is_dir():
        raise BadInput(f"--model {model} is not a folder.")
    for name in ("config.json", "model.safetensors"):
        if not (checkpoint / name).is_file():
            raise BadInput(f"--model {model} is not a checkpoint: it has no {name}.")
    manifest = data_dir / "only-model.toml"
    # A JSON string is a TOML basic string; unescaped, so that no surrogate pairs appear.
    path = json.dumps(str(checkpoint), ensure_ascii=False)
    manifest.write_text(
        f'["{model_name(checkpoint.name)}"]\ncheckpoint = {path}\nprecision = "auto"\n', "utf-8"
    )
    return manifest


def model_name(folder: str) -> str:
    """A name that the service accepts: 1 to 64 of a-z, 0-9, '.', '_', '-', the first no sign."""
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.lower()).strip("-._")
    return name[:64] or "model"
