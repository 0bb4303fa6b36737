"""The build: whole or not at all, and an engine that says so where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slm_core import Engine, GPTConfig, SamplingParams, kernels
from slm_core.kernels.__main__ import main as report
from slm_core.kernels.build import BuildError, build
from tests.slm_core.conftest import random_model

MODEL = random_model(GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=16))
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty place for built kernels."""
    for module in ("slm_core.kernels", "slm_core.kernels.build"):
        monkeypatch.setattr(f"{module}.FOLDER", tmp_path / "built")
    kernels.supported.cache_clear()
    kernels.load.cache_clear()
    yield tmp_path / "built"
    kernels.supported.cache_clear()
    kernels.load.cache_clear()


@needs_compiler
def test_set_up_has_built_them() -> None:
    assert "baseline" in kernels.supported()


def test_no_build_is_said_once_and_pytorch_serves(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(MODEL)
    [line] = caplog.messages
    assert "python -m slm_core.kernels.build" in line
    assert "torch" in engine.fingerprint
    assert (
        len(engine.generate("Once", SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids)
        == 3
    )


def test_what_there_is_comes_as_json_and_nothing_but_help_can_be_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["kernels"])
    report()
    assert json.loads(capsys.readouterr().out)["kernels"].keys() == kernels.variants().keys()
    monkeypatch.setattr("sys.argv", ["kernels", "--help"])
    with pytest.raises(SystemExit, match="0"):
        report()
    assert capsys.readouterr().out.startswith("usage: python -m slm_core.kernels [-h]")


def test_a_variant_that_is_not_there_is_an_error_that_says_what_to_do(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'avx2'.*python -m slm_core.kernels.build"):
        Engine(MODEL, kernels="avx2")


@needs_compiler
def test_a_build_is_made_once_and_stale_files_go(folder: Path) -> None:
    folder.mkdir()
    (folder / "avx2-0123.so").touch()  # of older sources
    (folder / "tmpabc").mkdir()  # of a killed build
    with ThreadPoolExecutor() as pool:  # at once
        first, second = pool.submit(build), pool.submit(build)
    libraries = list(first.result().values())
    assert second.result() == first.result()
    assert {path for path in folder.iterdir() if path.suffix == ".so"} == set(libraries)
    assert not (folder / "tmpabc").exists()
    assert "kernels-" in Engine(MODEL).fingerprint


@needs_compiler
def test_a_failed_build_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_core.kernels.build.FLAGS", "-std=c++17 --no-such-flag")
    with pytest.raises(BuildError, match="no-such-flag"):
        build()
    assert [path.name for path in folder.iterdir()] == [".lock"]


@needs_compiler
def test_what_one_variant_lacks_costs_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernels.X86_64, "avx512", "-march=no-such-processor")
    outcome = build()["avx512"]
    assert isinstance(outcome, str)
    assert "no-such-processor" in outcome
    assert kernels.supported()[-1] == "baseline"
    assert "avx512" not in kernels.supported()


def test_a_library_that_does_not_load_is_said_and_pytorch_serves(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    kernels.library_path("baseline").write_bytes(b"not a library")
    assert "torch" in Engine(MODEL).fingerprint
    assert "cannot be loaded" in caplog.text


def test_no_compiler_is_an_error_that_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    with pytest.raises(BuildError, match=r"no C\+\+ compiler 'no-such-compiler'.*CXX"):
        build()
