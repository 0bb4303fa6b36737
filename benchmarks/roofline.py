"""What the machine could do: arithmetic and memory at measured peaks, not overlapped.

python -m benchmarks.roofline
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.measure import available_threads
from benchmarks.workloads import Workload, uniform
from slm_core import GPTConfig

KV_BYTES = {"fp32": 4, "bf16": 2, "int8": 2}  # of one number in the KV cache
_SHAPES = ((2048, 2048, 2048), (1024, 4096, 1024), (512, 1536, 6144))  # rows, in, out
_SECONDS = 0.3  # of each measurement
_READ = 1 << 30  # bytes, far more than any cache


@dataclass(frozen=True)
class Peaks:
    """The best seen: operations a second by precision (a MAC is two), and bytes read a second."""

    operations: dict[str, float]
    by: dict[str, str]
    bandwidth: float

    def limit(self, config: GPTConfig, workload: Workload, precision: str) -> float:
        """Tokens per second that a decoder at both peaks would reach, one after the other."""
        macs = 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd
        kv = 2 * config.n_layer * config.n_embd * KV_BYTES[precision] * workload.attended
        return 1 / (2 * macs / self.operations[precision] + kv / self.bandwidth)

    def to_dict(self) -> dict[str, object]:
        return {
            "gop_per_second": {p: round(rate / 1e9) for p, rate in self.operations.items()},
            "by": self.by,
            "read_gb_per_second": round(self.bandwidth / 1e9, 1),
        }


def products(
    precision: str, rows: int, width: int, out: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways to multiply [rows, width] by [width, out]. A kernel of one's own goes here too."""
    if precision == "int8":
        x = torch.randint(-127, 128, (rows, width), dtype=torch.int8)
        weight = torch.randint(-127, 128, (out, width), dtype=torch.int8)
        yield "torch._int_mm", lambda: torch._int_mm(x, weight.T)
        yield "oneDNN, prepacked", _onednn_int8(x, weight)
        return
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    x, weight = torch.randn(rows, width, dtype=dtype), torch.randn(out, width, dtype=dtype)
    yield "torch.matmul", lambda: x @ weight.T
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        linear = torch.ops.mkldnn._linear_pointwise
        yield "oneDNN, prepacked", lambda: linear(x, packed, None, "none", [], "")


def _onednn_int8(x: Tensor, weight: Tensor) -> Callable[[], object]:
    packed = torch.ops.onednn.qlinear_prepack(weight, list(x.shape))
    scales, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int64)
    unsigned = (x.to(torch.int16) + 128).to(torch.uint8)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def measure() -> Peaks:
    """With as many threads as torch is set to."""
    operations: dict[str, float] = {}
    by: dict[str, str] = {}
    for precision in KV_BYTES:
        seen = {
            name: 2 * rows * width * out / _fastest(run)
            for rows, width, out in _SHAPES
            for name, run in products(precision, rows, width, out)
        }
        by[precision] = max(seen, key=lambda name: seen[name])
        operations[precision] = seen[by[precision]]
    numbers = torch.ones(_READ // 4)
    reads = (numbers.sum, numbers.amax, numbers.view(torch.int32).sum)
    return Peaks(operations, by, _READ / min(map(_fastest, reads)))


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest call; there are at least three."""
    fastest, end = float("inf"), time.perf_counter() + _SECONDS
    calls = 0
    while calls < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - started)
        calls += 1
    return fastest


def main(
    preset: Annotated[str, typer.Option(help="Model shape.")] = "slm-30m",
    threads: Annotated[int, typer.Option(help="0: all cores.")] = 0,
) -> None:
    """Peaks of this machine, and the limits on tokens per second that follow."""
    torch.set_num_threads(threads or available_threads())
    peaks, workload = measure(), uniform()
    print(f"read {peaks.bandwidth / 1e9:.1f} GB/s")
    for precision, operations in peaks.operations.items():
        limit = peaks.limit(GPTConfig.preset(preset), workload, precision)
        print(
            f"{precision}: {operations / 1e9:,.0f} Gop/s ({peaks.by[precision]}), "
            f"{workload.name} at most {limit:,.0f} tokens/s"
        )


if __name__ == "__main__":
    typer.run(main)
