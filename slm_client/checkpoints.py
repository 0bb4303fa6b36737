"""Gets a checkpoint for `slm models add`: from a folder here, or from the Hugging Face hub.

Reads no weights itself: `python -m slm_core.huggingface` does, in a process of its own.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from slm_client.errors import BadInput
from slm_client.siblings import module, run

_HUB_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", re.ASCII)
_WANTED = (  # of a hub's folder; never pickled weights
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "vocab.json",
    "tokenizer.json",
    "README.md",
)
_CHECKPOINT = ("config.json", "model.safetensors", "README.md")


def find(source: str) -> Path:
    """The folder that `source` means: itself, or that of a hub id in the hub's own cache, filled if
    need be, with progress bars of its own. Raises BadInput."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists() or not _HUB_ID.fullmatch(source):
        raise BadInput(f"--from {source} is neither a folder nor a hub id such as gpt2.")
    return _from_hub(source)


def put(folder: Path, target: Path) -> None:
    """Makes `target`, which must not exist, the checkpoint of a folder that holds one, or a model
    of Hugging Face's GPT-2 format: all or nothing. Raises BadInput."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        if _is_ours(folder):
            _copy(folder, partial)
        else:
            _import(folder, partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _from_hub(name: str) -> Path:
    """The folder in the hub's own cache, filled if need be."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise BadInput(
            f"{name} is no folder here, and models of the Hugging Face hub need a package that is "
            "not installed: pip install 'slm-jobs[hub]'"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(_WANTED)))
    except Exception as error:  # its errors, and its network's, are of many families
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"cannot get {name} from the Hugging Face hub, and there is no folder of that name "
            f"here: {reason}"
        ) from None


def _is_ours(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False  # the import says what is wrong
    return isinstance(config, dict) and "model" in config and "tokenizer" in config


def _copy(folder: Path, target: Path) -> None:
    target.mkdir()
    for name in _CHECKPOINT:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
        elif name != "README.md":
            raise BadInput(f"{folder} is not a checkpoint: it has no {name}.")


def _import(folder: Path, target: Path) -> None:
    command = module("slm_core.huggingface", "import", str(folder), str(target.resolve()))
    done = run(command, capture=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BadInput(f"cannot import {folder}: {lines[-1]}")
