from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from slm_core import GPT, Engine, GPTConfig, kernels
from slm_core.linear import PRECISIONS, Precision, int8_is_exact

KERNELS = ["none", *kernels.supported()]  # every way to compute that this machine has
MakeEngine = Callable[..., Engine]


def precisions(computer: str) -> list[Precision]:
    """Those that one of `KERNELS` has on this processor."""
    return [p for p in PRECISIONS if p != "int8" or computer != "none" or int8_is_exact()]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(params=KERNELS)
def make_engine(request: pytest.FixtureRequest) -> MakeEngine:
    """`Engine` on PyTorch alone, and on every variant of the kernels that runs here."""
    return partial(Engine, kernels=request.param)


def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """Random weights large enough that greedy text is not one token repeated."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="session")
def model() -> GPT:
    return random_model(GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=128))
