"""Who is compared. Each contestant is loaded in a process of its own; see contestant.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.workloads import Workload


class Contestant(Protocol):
    """An engine with the weights loaded: `Contestant(weights, threads, **options)`."""

    def prepare(self, workload: Workload) -> Workload:
        """Takes up the best settings for a workload; returns what of it will be run."""

    def generate(self, workload: Workload) -> list[list[int]]:
        """New tokens of every prompt, sampled."""

    def logits(self, prompts: list[list[int]]) -> list[np.ndarray]:
        """Logits [time, vocab] of prompts, all positions."""


@dataclass(frozen=True)
class Entry:
    """A contestant's family, the class that loads it, and how."""

    family: str
    load: str
    options: dict[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    exact: bool = True  # fp32: logits must be near, not only alike

    def missing(self) -> list[str]:
        return [package for package in self.requires if find_spec(package) is None]

    def convert(self, checkpoint: Path, folder: Path) -> Path:
        """Writes a checkpoint as this contestant reads it."""
        module = import_module(self.load.partition(":")[0])
        convert = getattr(module, "convert", None)
        return convert(checkpoint, folder, **self.options) if convert else checkpoint


def _ours(kernels: str, precision: str) -> Entry:
    options = {"kernels": kernels, "precision": precision}
    return Entry("ours", "benchmarks.peers.ours:Ours", options, exact=precision == "fp32")


def _transformers(name: str, dtype: str) -> Entry:
    family = {"Static": "transformers", "Continuous": "transformers-continuous"}[name]
    load = f"benchmarks.peers.transformers:{name}"
    return Entry(family, load, {"dtype": dtype}, ("transformers",), exact=dtype == "float32")


def _ctranslate2(compute_type: str) -> Entry:
    return Entry(
        "ctranslate2",
        "benchmarks.peers.ctranslate2:CTranslate2",
        {"compute_type": compute_type},
        ("ctranslate2", "transformers"),
        exact=compute_type == "float32",
    )


def _llama_cpp(quantization: str) -> Entry:
    return Entry(
        "llama_cpp",
        "benchmarks.peers.llama_cpp:LlamaCpp",
        {"quantization": quantization},
        ("llama_cpp", "gguf"),
        exact=False,  # also with f32 weights the GELU is looked up in fp16
    )


CONTESTANTS = {
    "slm_core int8": _ours("auto", "int8"),
    "slm_core bf16": _ours("auto", "bf16"),
    "slm_core fp32": _ours("auto", "fp32"),
    "slm_core bf16, PyTorch only": _ours("none", "bf16"),
    "slm_core fp32, PyTorch only": _ours("none", "fp32"),
    "llama.cpp q8_0": _llama_cpp("q8_0"),
    "llama.cpp f32": _llama_cpp("f32"),
    "CTranslate2 int8": _ctranslate2("int8"),
    "CTranslate2 float32": _ctranslate2("float32"),
    "transformers bf16": _transformers("Static", "bfloat16"),
    "transformers fp32": _transformers("Static", "float32"),
    "transformers continuous bf16": _transformers("Continuous", "bfloat16"),
    "transformers continuous fp32": _transformers("Continuous", "float32"),
    "no KV cache": Entry("no_cache", "benchmarks.peers.no_cache:NoCache"),
}
PEERS = tuple(dict.fromkeys(e.family for e in CONTESTANTS.values() if e.family != "ours"))
