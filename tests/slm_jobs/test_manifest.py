"""`models.toml`: every mistake is named with its file and entry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from slm_jobs.errors import ManifestError, TemplateError, UnknownModel
from slm_jobs.manifest import Manifest, main
from slm_jobs.settings import PACKAGED_MANIFEST, Settings

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
    manifest = Manifest.load(PACKAGED_MANIFEST)
    assert list(manifest.models) == ["tinystories", "tinystories-no-cache", "untrained"]
    assert manifest.default.name == "tinystories"
    assert [spec.kv_cache for spec in manifest.models.values()] == [True, False, True]
    assert [spec.untrained for spec in manifest.models.values()] == [False, False, True]
    assert len({spec.checkpoint for spec in manifest.models.values()}) == 1
    for template in manifest.default.templates.values():
        text = template.render(dict.fromkeys(template.variables, "fox"))
        assert "fox" in text
        assert "{" not in text


def test_later_files_add_and_replace(write: WriteManifest, tmp_path: Path) -> None:
    first = write(TWO_MODELS)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    later = folder / "more.toml"
    later.write_text(
        "[tiny]\ncheckpoint = '../checkpoints/small'\n"
        "[small]\ncheckpoint = '../checkpoints/large'\nkv_cache = false"
    )
    manifest = Manifest.load(first, later)
    assert list(manifest.models) == ["small", "large", "tiny"]
    small = manifest.default
    assert (small.name, small.context_length, small.kv_cache) == ("small", 1024, False)
    assert manifest.models["tiny"].context_length == 256
    later.write_text("")
    assert list(Manifest.load(first, later).models) == ["small", "large"]
    later.write_text("[tiny]")
    with pytest.raises(ManifestError, match=r"more\.toml: \[tiny\] needs checkpoint"):
        Manifest.load(first, later)


def test_some_models_only(write: WriteManifest) -> None:
    manifest = Manifest.load(write(TWO_MODELS))
    assert list(manifest.only(["large", "small"]).models) == ["small", "large"]
    assert manifest.only(["large"]).default.name == "large"
    with pytest.raises(UnknownModel, match="'medium'"):
        manifest.only(["small", "medium"])


def with_template(text: str, variables: str) -> str:
    entry = "[small]\ncheckpoint = 'checkpoints/small'\n"
    return f"{entry}[small.templates.story]\ntext = '{text}'\nvariables = {{ {variables} }}"


def test_a_template_is_rendered(write: WriteManifest) -> None:
    text = with_template("{{{name}}} saw {name} and a {pet_2}.", "name = 'whom', pet_2 = 'which'")
    template = Manifest.load(write(text)).default.templates["story"]
    assert template.variables == {"name": "whom", "pet_2": "which"}
    rendered = template.render({"pet_2": "{name}}", "name": "\\1 {pet_2}"})
    assert rendered == "{\\1 {pet_2}} saw \\1 {pet_2} and a {name}}."


def test_unknown_and_missing_variables_are_named(write: WriteManifest) -> None:
    text = with_template("{a} {b}", "a = 'x', b = 'y'")
    template = Manifest.load(write(text)).default.templates["story"]
    with pytest.raises(TemplateError, match=r"no variable 'c', 'b' is missing; the") as bad:
        template.render({"a": "1", "c": "2"})
    assert (bad.value.unknown, bad.value.missing) == (["c"], ["b"])


@pytest.mark.parametrize(
    ("text", "variables", "problem"),
    [
        ("{a} {b}", "a = 'x'", "uses what variables lacks: b"),
        ("{a}", "a = 'x', b = 'y'", "does not use b"),
        ("{a", "a = 'x'", "'{a' is no variable"),
        ("{a}}", "a = 'x'", "'}' is no variable"),
        ("{}", "", "'{}' is no variable"),
        ("{a!r}", "a = 'x'", "'{a!r}' is no variable"),
        ("{a:>5}", "a = 'x'", "'{a:>5}' is no variable"),
        ("{a.b}", "a = 'x'", "'{a.b}' is no variable"),
        ("{A}", "A = 'x'", "'{A}' is no variable"),
        ("", "", "the text is empty"),
        ("{a}", "a = 3", "variables.a: Input should be a valid string"),
    ],
)
def test_mistakes_in_templates_are_named(
    write: WriteManifest, text: str, variables: str, problem: str
) -> None:
    path = write(with_template(text, variables))
    with pytest.raises(ManifestError) as caught:
        Manifest.load(path)
    assert str(caught.value).startswith(f"{path}: [small]: templates.story")
    assert problem in str(caught.value)


def test_a_template_has_a_name_as_models_have(write: WriteManifest) -> None:
    text = with_template("a", "").replace("templates.story", "templates.'A story'")
    with pytest.raises(ManifestError, match=r"'A story' is no \[small\] template name"):
        Manifest.load(write(text))


def test_the_setting_may_name_several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().models_files == (PACKAGED_MANIFEST,)
    monkeypatch.setenv("SLM_MODELS_FILE", os.pathsep.join(["/a.toml", "b/c.toml"]))
    assert Settings().models_files == (Path("/a.toml"), Path("b/c.toml"))
    assert Settings().worker_models is None
    monkeypatch.setenv("SLM_WORKER_MODELS", " one,two ,,three")
    assert Settings().worker_models == ("one", "two", "three")


def test_the_command_prints_the_merged_entries(
    write: WriteManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = write(TWO_MODELS)
    later = tmp_path / "more.toml"
    later.write_text(
        "[small]\ncheckpoint = 'checkpoints/large'\n[small.templates.story]\n"
        "text = 'A {pet}'\nvariables = { pet = 'which' }"
    )
    monkeypatch.setenv("SLM_MODELS_FILE", f"{first}{os.pathsep}{later}")
    main()
    printed = capsys.readouterr().out
    entries = tomllib.loads(printed)
    assert list(entries) == ["small", "large"]
    assert entries["small"] == {
        "checkpoint": str(tmp_path / "checkpoints" / "large"),
        "precision": "auto",
        "kv_cache": True,
        "untrained": False,
    }
    assert '# template story: "A {pet}"' in printed
    later.write_text("[huge]")
    with pytest.raises(SystemExit, match=r"manifest: .*more\.toml: \[huge\] needs checkpoint"):
        main()


def test_a_wrong_manifest_ends_the_command_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slm_jobs.manifest"],
        env={**os.environ, "SLM_MODELS_FILE": str(tmp_path / "none.toml")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("manifest: cannot read ")
    assert done.stderr.count("\n") == 1
