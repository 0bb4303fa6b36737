from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slm_core import Engine, GPTConfig, load_checkpoint, save_checkpoint
from tests.e2e.service import Service
from tests.slm_core.conftest import random_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: fast, and any mistake in seeds or slots shows at once in the text."""
    config = GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=512)
    return save_checkpoint(random_model(config), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Engine:
    """What the service must equal."""
    return Engine(load_checkpoint(checkpoint), device="cpu", slots=32)


@pytest.fixture(scope="module")
def running_service(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    manifest = folder / "models.toml"
    manifest.write_text(f'[tiny]\ncheckpoint = "{checkpoint}"\n')
    service = Service(folder, manifest)
    try:
        service.start(workers=2)
        yield service
    finally:
        service.stop()
        print(service.logs())  # noqa: T201  shown by pytest when something failed


@pytest.fixture
def service(running_service: Service) -> Service:
    """The service with two workers alive, whatever the test before did to it."""
    while len(running_service.workers) < 2:
        running_service.start_worker()
    running_service.wait_for_workers(2)
    return running_service
