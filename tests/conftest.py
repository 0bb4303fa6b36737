"""Shared fixtures. Every server that a test needs is its own, on a free port, and stopped again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several processes hinder each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Run in the background, we may have been told to ignore these, which our children would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

from slm_client.redis_server import RedisServer, free_port
from slm_core import GPTConfig, save_checkpoint
from tests.slm_core.conftest import random_model


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis for the whole run; tests flush it."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: any mistake in seeds or slots shows at once in the text.

    Wide enough that a job of some hundred tokens still runs when a test looks again.
    """
    config = GPTConfig(n_layer=2, n_head=4, n_embd=256, context_length=512)
    return save_checkpoint(random_model(config), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Where a stack may keep its data; does not exist yet."""
    return tmp_path / "data"
