from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slm_core import Engine, load_checkpoint
from tests.e2e.service import Service


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
    with Service(folder, manifest) as service:
        service.start(workers=2)
        yield service


@pytest.fixture
def service(running_service: Service) -> Service:
    """The service with two workers alive, whatever the test before did to it."""
    while len(running_service.workers) < 2:
        running_service.start_worker()
    running_service.wait_for_workers(2)
    return running_service
