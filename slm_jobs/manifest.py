"""`models.toml`: which models there are. Read by api and worker; knows no weights.

`python -m slm_jobs.manifest` prints what `SLM_MODELS_FILE` comes to, or what is wrong with it.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slm_jobs.errors import ManifestError, SettingsError, TemplateError, UnknownModel
from slm_jobs.settings import Settings

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PARTS = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<name>[a-z][a-z0-9_]{0,63})\}|(?P<stray>[{}])")


class Template(BaseModel):
    """A prompt with holes: `{name}` stands for a variable, `{{` and `}}` for braces.

    `variables` tells what each is about.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    variables: dict[str, str]

    @model_validator(mode="after")
    def _check(self) -> Template:
        found = list(_PARTS.finditer(self.text))
        if stray := next((part for part in found if part["stray"]), None):
            raise ValueError(
                f"{self.text[stray.start() :][:12]!r} is no variable: {{name}} is one (a-z, 0-9, "
                "'_'), {{ and }} are braces"
            )
        used = {part["name"] for part in found if part["name"]}
        if undeclared := sorted(used - self.variables.keys()):
            raise ValueError(f"the text uses what variables lacks: {', '.join(undeclared)}")
        if unused := sorted(self.variables.keys() - used):
            raise ValueError(f"the text does not use {', '.join(unused)}")
        if not self.text:
            raise ValueError("the text is empty")
        return self

    def render(self, variables: Mapping[str, str]) -> str:
        """The text with the values in place. Values are taken as they are, braces and all.

        Raises TemplateError that names every unknown and missing variable.
        """
        unknown = [name for name in variables if name not in self.variables]
        missing = [name for name in self.variables if name not in variables]
        if unknown or missing:
            raise TemplateError(unknown, missing, self.variables)
        return _PARTS.sub(
            lambda part: variables[part["name"]] if part["name"] else part["brace"][0], self.text
        )


class ModelSpec(BaseModel):
    """One entry of the manifest. `context_length` is read from the checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    checkpoint: Path
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    kv_cache: bool = True  # without one, each step runs the whole text again
    untrained: bool = False  # the checkpoint's shape, with random weights
    templates: dict[str, Template] = Field(default_factory=dict)
    context_length: int


class Manifest:
    """The models by name, in the order of the files; the first is the default."""

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

    def only(self, names: Iterable[str]) -> Manifest:
        """The named models, in this manifest's order. Raises UnknownModel."""
        wanted = {self.resolve(name).name for name in names}
        return Manifest({name: spec for name, spec in self.models.items() if name in wanted})

    @classmethod
    def load(cls, *paths: Path) -> Manifest:
        """Reads one file or several: later ones add to the entries of earlier ones, and replace
        those of the same name in their place. A checkpoint is relative to the file that names it.

        Raises ManifestError, naming file and entry.
        """
        models: dict[str, ModelSpec] = {}
        for path in paths:
            models |= {name: _spec(path, name, entry) for name, entry in _read(path).items()}
        if not models:
            raise ManifestError(f"{', '.join(map(str, paths))} names no model")
        return cls(models)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not TOML: {error}") from None


def _spec(path: Path, name: str, entry: object) -> ModelSpec:
    _check_name(path, name, "model")
    if not isinstance(entry, dict) or not isinstance(entry.get("checkpoint"), str):
        raise ManifestError(f'{path}: [{name}] needs checkpoint = "<directory>"')
    config = path.parent / entry["checkpoint"] / "config.json"
    try:
        checkpoint = config.parent.resolve()
        context_length = json.loads(config.read_text("utf-8"))["model"]["context_length"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ManifestError(f"{path}: [{name}] has no usable {config}: {error!r}") from None
    try:
        spec = ModelSpec.model_validate(
            {**entry, "name": name, "checkpoint": checkpoint, "context_length": context_length}
        )
    except ValidationError as error:
        raise ManifestError(f"{path}: [{name}]: {_problems(error)}") from None
    for template in spec.templates:
        _check_name(path, template, f"[{name}] template")
    return spec


def _check_name(path: Path, name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ManifestError(f"{path}: {name!r} is no {what} name (a-z, 0-9, '.', '_', '-')")


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors()
    )


def _describe(spec: ModelSpec) -> str:
    """An entry as the file would have it, paths and templates included."""
    entry = spec.model_dump(mode="json", exclude={"name", "context_length", "templates"})
    lines = [f"[{spec.name}]  # context {spec.context_length} tokens"]
    lines += [f"{field} = {json.dumps(value)}" for field, value in entry.items()]
    lines += [f"# template {name}: {json.dumps(t.text)}" for name, t in spec.templates.items()]
    return "\n".join(lines)


def main() -> None:
    """Prints the merged entries; exits with one line if something is wrong with them."""
    try:
        manifest = Manifest.load(*Settings.from_environment().models_files)
    except (SettingsError, ManifestError) as error:
        sys.exit(f"manifest: {error}")
    sys.stdout.write("\n\n".join(map(_describe, manifest.models.values())) + "\n")


if __name__ == "__main__":
    main()
