"""The build: whole or not at all, and an engine that says so where there is none."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from slm_core import Engine, GPTConfig, SamplingParams, kernels
from slm_core.kernels.build import BuildError, build
from tests.slm_core.conftest import random_model

MODEL = random_model(GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=16))
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
    with caplog.at_level(logging.INFO):
        engine = Engine(MODEL)
    assert [r.message for r in caplog.records if "kernels" in r.message] == [
        caplog.text and caplog.records[0].message
    ]
    assert "python -m slm_core.kernels.build" in caplog.text
    assert "torch" in engine.fingerprint
    assert (
        len(engine.generate("Once", SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids)
        == 3
    )


def test_a_variant_that_is_not_there_is_an_error_that_says_what_to_do(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'avx2'.*python -m slm_core.kernels.build"):
        Engine(MODEL, kernels="avx2")


@needs_compiler
def test_a_build_is_made_once_and_stale_files_go(folder: Path) -> None:
    folder.mkdir()
    (folder / "avx2-0123.so").touch()  # of older sources
    (folder / "tmpabc").mkdir()  # of a killed build
    libraries = build()
    assert sorted(folder.iterdir()) == sorted(libraries)
    made = [library.stat().st_mtime_ns for library in libraries]
    assert [library.stat().st_mtime_ns for library in build()] == made
    assert "kernels-" in Engine(MODEL).fingerprint


@needs_compiler
def test_a_failed_build_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_core.kernels.build.FLAGS", "-std=c++17 --no-such-flag")
    with pytest.raises(BuildError, match="no-such-flag"):
        build()
    assert list(folder.iterdir()) == []


def test_no_compiler_is_an_error_that_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    with pytest.raises(BuildError, match=r"no C\+\+ compiler 'no-such-compiler'.*CXX"):
        build()
