"""Every setting of api and worker, from environment variables `SLM_*`."""

from __future__ import annotations

import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from slm_jobs.errors import SettingsError
from slm_jobs.logs import log_handler
from slm_jobs.redis_url import RedisUrl

PACKAGED_MANIFEST = Path(__file__).with_name("models.toml")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SLM_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,  # it may hold a password
        description="Redis for jobs and for Celery's tickets; `rediss://` for TLS,"
        " `redis+sentinel://` for Sentinel.",
    )
    redis_timeout_seconds: float = Field(
        2.0,
        gt=0,
        description="Longest wait for one reply of Redis; without it the api answers 503.",
    )
    models_file: Path = Field(
        PACKAGED_MANIFEST,
        description="Manifest of the models (TOML); several, with `:` between, are merged.",
    )
    lease_seconds: float = Field(
        15.0,
        gt=0,
        description="A running job goes back to the queue this long after its worker fell silent.",
    )
    max_crashes: int = Field(
        3, ge=1, description="Lost leases after which a job fails with `attempts_exhausted`."
    )
    job_ttl_seconds: int = Field(
        86_400, ge=1, description="How long an ended job's record is kept."
    )
    batch_ttl_seconds: int = Field(
        604_800,
        ge=1,
        description="How long an ended batch, its results, files, and callbacks are kept.",
    )
    dead_letter_ttl_seconds: int = Field(
        604_800, ge=1, description="How long a failed job is kept, to be looked at and redriven."
    )
    max_batch_bytes: int = Field(
        1 << 30, ge=1, description="Largest upload of a batch or a file, unpacked."
    )
    max_waiting_jobs: int = Field(
        100_000, ge=1, description="Jobs of a model that may wait; more are answered with 503."
    )
    allowed_hosts: str = Field(
        "localhost,127.0.0.1,[::1]",
        description="Names under which the api may be called, with commas between; *: any.",
    )
    sync_timeout_seconds: float = Field(
        600.0, gt=0, description="How long an answer that waits for its text may take."
    )
    log_format: Literal["text", "json"] = Field("text", description="What log lines look like.")
    slots: int = Field(64, ge=1, le=4096, description="Sequences that a worker decodes at once.")
    reserved_slots: int = Field(
        4,
        ge=0,
        description="Slots of a worker that batches leave free, so that jobs start at once.",
    )
    worker_models: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, description="Models that a worker serves, with commas between; default: all."
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of a worker's engine; default: all cores."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where a worker decodes.")
    kernels: Literal["auto", "none", "avx512_bf16", "avx512", "avx2", "baseline"] = Field(
        "auto",
        description="Native CPU kernels of a worker: the best that is built and runs here, one for"
        " a fleet of different processors, or none.",
    )
    slice_seconds: float = Field(
        30.0, gt=0, description="How long a ticket claims work before it makes room for another."
    )
    job_timeout_seconds: float = Field(
        900.0,
        gt=0,
        description="A job that runs longer fails with `job_timeout`, and keeps its text so far.",
    )
    drain_seconds: float = Field(
        20.0, ge=0, description="Grace after SIGTERM: running jobs may end, then are handed back."
    )
    callback_schedule_seconds: Annotated[tuple[float, ...], NoDecode] = Field(
        (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400),
        min_length=1,
        description="Pauses before each attempt to deliver a callback, with commas between; the"
        " first is made at once.",
    )
    callback_timeout_seconds: float = Field(
        20.0, gt=0, description="How long an attempt to deliver a callback may take in all."
    )
    callback_connect_timeout_seconds: float = Field(
        5.0, gt=0, description="How long its receiver's name and connection may take of that."
    )
    callback_concurrency: int = Field(
        256, ge=1, description="Callbacks that a callback process delivers at once."
    )
    callback_per_host: int = Field(
        8,
        ge=1,
        description="How many of these may go to one host, for one API key; an eighth of all at"
        " most for all keys together.",
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Port at which a worker or callback process serves `/metrics`; default: none.",
    )
    metrics_host: str = Field("127.0.0.1", description="Address that this port is opened at.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe log records to print."
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str) -> str:
        RedisUrl.parse(url)
        return url

    @field_validator("worker_models", mode="before")
    @classmethod
    def _split_names(cls, names: object) -> object:
        return names.replace(",", " ").split() or None if isinstance(names, str) else names

    @field_validator("callback_schedule_seconds", mode="before")
    @classmethod
    def _split_numbers(cls, numbers: object) -> object:
        return numbers.replace(",", " ").split() if isinstance(numbers, str) else numbers

    @field_validator("callback_schedule_seconds")
    @classmethod
    def _check_schedule(cls, pauses: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= pause <= 7 * 86_400 for pause in pauses):
            raise ValueError("each pause is 0 to 604800 seconds")
        if pauses[0] != 0:
            raise ValueError("the first attempt is made at once: begin with 0")
        return pauses

    @cached_property
    def redis_address(self) -> RedisUrl:
        """What `redis_url` says."""
        return RedisUrl.parse(self.redis_url)

    @cached_property
    def models_files(self) -> tuple[Path, ...]:
        """What `models_file` holds: the manifests, in the order of their merging."""
        return tuple(map(Path, str(self.models_file).split(os.pathsep)))

    @cached_property
    def heartbeat_seconds(self) -> float:
        """Three signs of life fit into a lease."""
        return self.lease_seconds / 3

    def configure_logging(self) -> None:
        """One form of log lines for every process of the service."""
        logging.basicConfig(level=self.log_level, handlers=[log_handler(self.log_format)])

    @classmethod
    def from_environment(cls) -> Settings:
        """Raises SettingsError that names the variables in one line."""
        try:
            return cls()
        except ValidationError as error:
            wrong = (
                f"SLM_{str(e['loc'][0]).upper()}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise SettingsError("; ".join(wrong)) from None
