"""Whatever `models.toml` and the configs that it names hold: models, or a ManifestError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from slm_jobs.errors import ManifestError, TemplateError
from slm_jobs.manifest import Manifest

examples = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
word = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
leaves = st.booleans() | st.integers() | st.floats() | word
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(word, inner), max_leaves=5
)
pieces = st.sampled_from(["{", "}", "{{", "}}", "{a}", "{b}", "{A}", "\\1", "%s", "\0", "x"])
templates = st.fixed_dictionaries(
    {"text": st.lists(pieces | word, max_size=6).map("".join)},
    optional={"variables": st.dictionaries(st.sampled_from("abc") | word, word), "more": anything},
)
entries = st.fixed_dictionaries(
    {"checkpoint": st.sampled_from(["tiny", "tiny/../tiny", "circle", "a\0b", "", "/"]) | word},
    optional={
        "precision": st.just("int8") | anything,
        "kv_cache": anything,
        "untrained": anything,
        "context_length": anything,
        "templates": st.dictionaries(st.just("story") | word, templates, max_size=2) | anything,
    },
)
files = st.dictionaries(st.sampled_from(["a", "b"]) | word, entries | anything, max_size=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text('{"model": {"context_length": 128}}')
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    return tmp_path


def toml(value: Any) -> str:
    """A value as TOML writes it, tables within a line."""
    match value:
        case dict():
            pairs = (f"{toml(name)} = {toml(inner)}" for name, inner in value.items())
            return f"{{ {', '.join(pairs)} }}"
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case str():
            return json.dumps(value).replace("\x7f", "\\u007f")
        case bool():
            return str(value).lower()
    return str(value)


def load(folder: Path, content: bytes) -> Manifest | None:
    """None if it was refused."""
    path = folder / "models.toml"
    path.write_bytes(content)
    try:
        manifest = Manifest.load(path)
    except ManifestError:
        return None
    assert manifest.models
    return manifest


@examples
@given(content=st.binary(max_size=80) | word.map(str.encode))
@example(content=b"a = " + b"[" * 100_000)
@example(content=b"a = " + b"{a=" * 100_000)
@example(content=b"a." * 2_000 + b"a = 1")
@example(content=b"a = " + b"9" * 10_000)
def test_any_file(folder: Path, content: bytes) -> None:
    load(folder, content)


@examples
@given(file=files)
def test_any_entries(folder: Path, file: dict[str, Any]) -> None:
    """What is taken can be used: its templates render every text as it is."""
    content = "".join(f"{toml(name)} = {toml(entry)}\n" for name, entry in file.items())
    manifest = load(folder, content.encode("utf-8", "replace"))
    for spec in manifest.models.values() if manifest else ():
        assert spec.context_length == 128
        assert (spec.checkpoint / "config.json").is_file()
        for template in spec.templates.values():
            values = dict.fromkeys(template.variables, "{a}}\\1")
            assert template.render(values).count("{a}}\\1") >= len(values)
            with pytest.raises(TemplateError):
                template.render({**values, "not there": ""})


@examples
@given(config=anything | st.fixed_dictionaries({"model": anything}))
@example(config={"model": {"context_length": 10**400}})
@example(config={"model": {"context_length": float("inf")}})
def test_any_config(folder: Path, config: object) -> None:
    (folder / "tiny" / "config.json").write_text(json.dumps(config))
    load(folder, b'[a]\ncheckpoint = "tiny"')


@pytest.mark.parametrize("config", [b"", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 9_999])
def test_configs_that_are_none(folder: Path, config: bytes) -> None:
    (folder / "tiny" / "config.json").write_bytes(config)
    assert load(folder, b'[a]\ncheckpoint = "tiny"') is None


@pytest.mark.parametrize("checkpoint", ["circle", "a\\u0000b", "x" * 5_000, "tiny/config.json"])
def test_folders_that_are_none(folder: Path, checkpoint: str) -> None:
    assert load(folder, f'[a]\ncheckpoint = "{checkpoint}"'.encode()) is None
