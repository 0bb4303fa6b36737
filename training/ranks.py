"""The processes that train one model together: `torchrun --nproc-per-node N -m training.train ...`.

Every rank holds the whole model and takes its own rows of each batch; gradients are summed. Without
torchrun there is one rank, and nothing is sent. Knows nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

# An evaluation keeps the other ranks waiting; torchrun ends all when one of them dies.
_PATIENCE = timedelta(hours=1)


class RankLost(Exception):
    """Another rank of the run has ended."""


@dataclass(frozen=True)
class Ranks:
    """`rank` of `world`; `local` is its number on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """As torchrun tells it."""
        told = os.environ.get
        return cls(int(told("RANK", 0)), int(told("WORLD_SIZE", 1)), int(told("LOCAL_RANK", 0)))

    @property
    def leads(self) -> bool:
        """Whether this rank writes files and tells people."""
        return self.rank == 0

    @property
    def label(self) -> str:
        """What begins a line that this rank writes; the leader's needs no name."""
        return "" if self.leads else f"rank {self.rank}: "

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """The ranks are connected within; NCCL carries GPUs, gloo CPUs."""
        if self.world == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
        self._sum(
            torch.zeros(1, device=device)
        )  # all are there: files that they looked at may change
        try:
            yield
        finally:
            dist.destroy_process_group()

    def share(self, rows: NDArray[np.int64], parts: int) -> list[tuple[NDArray[np.int64], float]]:
        """This rank's rows of a batch in at most `parts` parts, each with its share of the batch.

        A share weights the mean over a part, so that parts and ranks of different sizes add up to
        the mean over the batch.
        """
        count = parts * self.world
        bounds = [len(rows) * i // count for i in range(count + 1)]
        mine = range(self.rank * parts, (self.rank + 1) * parts)
        return [
            (rows[bounds[i] : bounds[i + 1]], (bounds[i + 1] - bounds[i]) / len(rows))
            for i in mine
            if bounds[i] < bounds[i + 1]
        ]

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replaces the gradient of each parameter by its sum over the ranks."""
        if self.world == 1:
            return
        gradients = [cast(Tensor, p.grad) for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._sum(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(part.view_as(gradient))

    def agree(self, values: Tensor, *own: float) -> list[float]:
        """`values` [n] and own numbers, each summed over the ranks. Waits for the device."""
        if self.world == 1:
            return [*values.tolist(), *own]
        both = torch.cat([values.double(), values.new_tensor(own, dtype=torch.float64)])
        self._sum(both)
        return cast(list[float], both.tolist())

    @staticmethod
    def _sum(values: Tensor) -> None:
        try:
            dist.all_reduce(values)
        except RuntimeError as error:
            raise RankLost(str(error).splitlines()[0]) from error
