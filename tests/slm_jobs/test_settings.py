"""Settings come from `SLM_*` alone."""

from __future__ import annotations

import inspect
import os
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import ValidationError

from slm_jobs.errors import SettingsError
from slm_jobs.settings import PACKAGED_MANIFEST, Settings
from slm_jobs.store import JobStore


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLM_")]:
        monkeypatch.delenv(name)


def test_defaults() -> None:
    settings = Settings()
    assert settings.models_file == PACKAGED_MANIFEST
    assert (settings.lease_seconds, settings.heartbeat_seconds) == (15, 5)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_REDIS_URL", "redis://elsewhere:1/2")
    monkeypatch.setenv("SLM_LEASE_SECONDS", "3")
    monkeypatch.setenv("SLM_MODELS_FILE", "/models.toml")
    monkeypatch.setenv("SLM_THREADS", "")
    settings = Settings()
    assert settings.redis_url == "redis://elsewhere:1/2"
    assert settings.heartbeat_seconds == 1
    assert settings.models_file == Path("/models.toml")
    assert settings.threads is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redis_timeout_seconds", "0"),
        ("lease_seconds", "-1"),
        ("max_crashes", "0"),
        ("job_ttl_seconds", "0"),
        ("slots", "5000"),
        ("threads", "0"),
        ("device", "tpu"),
        ("drain_seconds", "-1"),
        ("log_level", "LOUD"),
    ],
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SLM_{name.upper()}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().slots = 1  # type: ignore[misc]


def test_the_store_has_the_same_defaults() -> None:
    parameters = inspect.signature(JobStore).parameters
    settings = Settings()
    for name in ("lease_seconds", "job_ttl_seconds", "max_crashes"):
        assert parameters[name].default == getattr(settings, name)


def test_a_store_from_settings_calls_nobody() -> None:
    with closing(JobStore.from_settings(Settings(redis_url="redis://nowhere.invalid:1/0"))):
        pass


def test_a_bad_redis_url_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("redis://:se/cret@host", "http://:secret@host", "secret"):
        monkeypatch.setenv("SLM_REDIS_URL", url)
        with pytest.raises(SettingsError, match="SLM_REDIS_URL: must look like") as caught:
            Settings.from_environment()
        assert "cret" not in str(caught.value)
