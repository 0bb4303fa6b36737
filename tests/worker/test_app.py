"""The Celery settings that the tickets rely on, and what a wrong environment says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fakeredis
import pytest

from slm_jobs.manifest import Manifest
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from worker.factory import create_app, create_host
from worker.host import Host

MODELS = """
[one]
checkpoint = "one"
[two]
checkpoint = "one"
"""


def test_threads_late_acks_and_a_queue_for_each_model(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text('{"model": {"context_length": 8}}')
    (tmp_path / "models.toml").write_text(MODELS)
    store = JobStore(fakeredis.FakeRedis(decode_responses=True))
    settings = Settings(slots=300)
    conf = create_app(Host(settings, Manifest.load(tmp_path / "models.toml"), store)).conf
    assert [queue.name for queue in conf.task_queues] == ["slm:serve:one", "slm:serve:two"]
    assert (conf.worker_pool, conf.worker_concurrency) == ("threads", 258)
    assert (conf.worker_prefetch_multiplier, conf.task_acks_late) == (1, True)
    assert conf.task_ignore_result
    assert conf.result_backend is None


def test_a_worker_may_host_some_models_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text('{"model": {"context_length": 8}}')
    (tmp_path / "models.toml").write_text(MODELS)
    (tmp_path / "more.toml").write_text('[three]\ncheckpoint = "one"\n')
    files = f"{tmp_path / 'models.toml'}{os.pathsep}{tmp_path / 'more.toml'}"
    monkeypatch.setenv("SLM_MODELS_FILE", files)
    monkeypatch.setenv("SLM_WORKER_MODELS", "three, two")
    monkeypatch.setenv("SLM_SLOTS", "5")
    host = create_host()
    conf = create_app(host).conf
    assert [queue.name for queue in conf.task_queues] == ["slm:serve:two", "slm:serve:three"]
    assert conf.worker_concurrency == 12
    monkeypatch.setenv("SLM_WORKER_MODELS", "four")
    with pytest.raises(SystemExit, match=r"SLM_WORKER_MODELS: no model 'four'; there are: one"):
        create_host()


def run_worker(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker.app", "worker"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_bad_setting_is_one_line() -> None:
    done = run_worker(SLM_SLOTS="many")
    assert done.returncode == 1
    assert "SLM_SLOTS" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_checkpoint_ends_the_worker_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model": {"context_length": 8}, "tokenizer": "gpt2"}')
    manifest = tmp_path / "models.toml"
    manifest.write_text('[broken]\ncheckpoint = "."\n')
    done = run_worker(SLM_MODELS_FILE=str(manifest))
    assert done.returncode == 1
    assert "bad model config" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_that_cannot_start_ends_the_worker(checkpoint: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'[tiny]\ncheckpoint = "{checkpoint}"\n')
    done = run_worker(SLM_MODELS_FILE=str(manifest), SLM_DEVICE="cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "the engine cannot start" in done.stderr
