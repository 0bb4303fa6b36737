"""What a run computes on: device, precision, compiler, threads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from training.ranks import Ranks
from training.recipe import Recipe

_COMPILER = ("torch._dynamo.", "torch._inductor.", "torch._functorch.")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class CompilerFailed(Exception):
    """torch.compile could not make what it should. Says why, in a line."""


@contextmanager
def compiling() -> Iterator[None]:
    """What torch's compiler raises within becomes CompilerFailed.

    Its exceptions are known by their modules: importing these takes seconds.
    """
    try:
        yield
    except Exception as error:
        if not any(f"{kind.__module__}.".startswith(_COMPILER) for kind in type(error).__mro__):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise CompilerFailed(lines[0] if lines else type(error).__name__) from error


@dataclass(frozen=True)
class Machine:
    """`precision` is that of products; weights and sums are fp32."""

    device: torch.device
    precision: Literal["fp32", "bf16", "fp16"]

    def autocast(self) -> torch.autocast:
        dtype = _DTYPES.get(self.precision)
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def seed(self, number: int) -> None:
        """Of all chance from now on. (torch.manual_seed also looks for every other device.)"""
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)

    def __str__(self) -> str:
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision}"
        return f"CPU, {torch.get_num_threads()} threads, {self.precision}"


def choose_machine(recipe: Recipe, ranks: Ranks) -> Machine:
    """The machine that a recipe asks for; sets the number of CPU threads.

    Raises ValueError for what is not there, and says what to do.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    there = torch.cuda.is_available()
    if recipe.device == "cuda" and not there:
        raise ValueError("device: PyTorch finds no CUDA here; say --device cpu")
    kind = "cuda" if there and recipe.device != "cpu" else "cpu"
    if kind == "cpu":
        if recipe.precision == "fp16":
            raise ValueError("precision: fp16 needs CUDA; on a CPU there are bf16 and fp32")
        if recipe.compile and not _has_compiler():
            raise ValueError(
                "compile: torch.compile needs a C++ compiler; install g++ or clang++, "
                "or say --no-compile, which is several times slower"
            )
        device = torch.device("cpu")
    else:
        if ranks.local >= torch.cuda.device_count():
            raise ValueError(
                f"{torch.cuda.device_count()} GPUs, but more ranks; lower "
                "--nproc-per-node, or say --device cpu"
            )
        device = torch.device("cuda", ranks.local)
    precision = _auto_precision(kind) if recipe.precision == "auto" else recipe.precision
    return Machine(device, precision)


def _auto_precision(kind: str) -> Literal["fp32", "bf16", "fp16"]:
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    able = torch.cpu.get_capabilities()
    names = ("avx512_bf16", "amx_bf16", "bf16")  # the last is ARM's
    return "bf16" if any(able.get(name) for name in names) else "fp32"


def _has_compiler() -> bool:
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX", "").strip() else []
    return any(shutil.which(name) for name in [*names, "g++", "clang++"])
