"""Makes the engine of a manifest's entry. Call it in the thread that steps it."""

from __future__ import annotations

from functools import partial

import torch

from slm_core import Engine
from slm_core.checkpoint import read_config
from slm_core.model import untrained_model
from slm_jobs.manifest import ModelSpec
from slm_jobs.settings import Settings

# Without a KV cache more rows make a step longer and no token cheaper, and other models wait.
NO_CACHE_SLOTS = 4


def load_engine(spec: ModelSpec, settings: Settings) -> Engine:
    """Raises CheckpointError, and ValueError for what this machine does not have."""
    if settings.threads:  # else torch takes every core that this process may use
        torch.set_num_threads(settings.threads)
    slots, reserved = slots_of(spec, settings)
    make = partial(Engine.from_checkpoint, spec.checkpoint)
    if spec.untrained:
        make = partial(Engine, untrained_model(read_config(spec.checkpoint)))
    return make(
        device=settings.device,
        precision=spec.precision,
        slots=slots,
        reserved_slots=reserved,
        kernels=settings.kernels,
        kv_cache=spec.kv_cache,
    )


def slots_of(spec: ModelSpec, settings: Settings) -> tuple[int, int]:
    """The slots of a model's engine, and how many of them rows of batches leave free."""
    slots = settings.slots if spec.kv_cache else min(settings.slots, NO_CACHE_SLOTS)
    return slots, min(settings.reserved_slots, slots - 1)
