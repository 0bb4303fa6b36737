"""`models.toml`: which models there are. Read by api and worker; knows no weights."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from slm_jobs.errors import ManifestError, UnknownModel

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class ModelSpec(BaseModel):
    """One entry of the manifest. `context_length` is read from the checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    checkpoint: Path
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    context_length: int


class Manifest:
    """The models by name, in the order of the file; the first is the default."""

    def __init__(self, models: dict[str, ModelSpec]) -> None:
        self.models = models

    @property
    def default(self) -> ModelSpec:
        return next(iter(self.models.values()))

    def resolve(self, name: str | None) -> ModelSpec:
        """The named model, or the default. Raises UnknownModel."""
        if name is None:
            return self.default
        if name not in self.models:
            raise UnknownModel(name, self.models)
        return self.models[name]

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Raises ManifestError, naming file and entry."""
        try:
            entries = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ManifestError(f"cannot read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ManifestError(f"{path} is not TOML: {error}") from None
        if not entries:
            raise ManifestError(f"{path} names no model")
        return cls({name: _spec(path, name, entry) for name, entry in entries.items()})


def _spec(path: Path, name: str, entry: object) -> ModelSpec:
    if not _NAME.fullmatch(name):
        raise ManifestError(f"{path}: {name!r} is no model name (a-z, 0-9, '.', '_', '-')")
    if not isinstance(entry, dict) or not isinstance(entry.get("checkpoint"), str):
        raise ManifestError(f'{path}: [{name}] needs checkpoint = "<directory>"')
    checkpoint = (path.parent / entry["checkpoint"]).resolve()
    config = checkpoint / "config.json"
    try:
        context_length = json.loads(config.read_text("utf-8"))["model"]["context_length"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: [{name}] has no usable {config}: {error!r}") from None
    try:
        return ModelSpec.model_validate(
            {**entry, "name": name, "checkpoint": checkpoint, "context_length": context_length}
        )
    except ValidationError as error:
        problems = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
        raise ManifestError(f"{path}: [{name}]: {problems}") from None
