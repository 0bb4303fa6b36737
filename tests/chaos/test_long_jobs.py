"""Jobs that outlast every timeout of the broker and of the store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from slm_client.redis_server import RedisServer
from slm_core import Engine, SamplingParams, load_checkpoint
from slm_jobs.schemas import Job, JobSpec, JobStatus
from slm_jobs.store import JobStore
from tests.chaos.stack import ROOT
from tests.e2e.service import until

JOBS = 5
REDELIVERIES = 3  # of their tickets: one is acknowledged, and not delivered a third time
LEASE_SECONDS = 2.0


@pytest.mark.timeout(300)
def test_jobs_longer_than_every_timeout_run_once(
    checkpoint: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    """A second after it was taken a ticket is delivered again, to another thread or worker; leases
    end after two. The jobs run on."""
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'[tiny]\ncheckpoint = "{checkpoint}"\n')
    env = {
        **os.environ,
        "SLM_REDIS_URL": redis_server.url,
        "SLM_MODELS_FILE": str(manifest),
        "SLM_SLOTS": "4",
        "SLM_THREADS": "1",
        "SLM_LEASE_SECONDS": str(LEASE_SECONDS),
        "PYTHONUNBUFFERED": "1",
    }
    command = f"{sys.executable} -m celery -A tests.chaos.impatient_app worker -n".split()
    sampling = {"max_tokens": 480, "ignore_eos": True, "seed": 3}
    log = tmp_path / "log"
    with Redis.from_url(redis_server.url, decode_responses=True) as redis, log.open("wb") as out:
        redis.flushall()
        store = JobStore(redis, lease_seconds=LEASE_SECONDS)
        spec = JobSpec(model="tiny", prompts=["Once upon a time"], n=4, **sampling)
        ids = [store.create(spec).job.id for _ in range(JOBS)]

        def jobs() -> list[Job]:
            return [store.get(job_id) for job_id in ids]

        workers = [
            subprocess.Popen(
                [*command, name, "--without-gossip", "--without-mingle"],
                env=env,
                cwd=ROOT,
                stdout=out,
            )
            for name in ("one@%h", "two@%h")
        ]
        try:
            until(
                lambda: log.read_text().count("redelivered") >= REDELIVERIES,
                "tickets are delivered again",
            )
            before = jobs()
            until(lambda: all(job.status.is_terminal for job in jobs()), "they end", 150)
            after = jobs()
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait(30)
    assert JobStatus.RUNNING in [job.status for job in before]
    assert [(job.status, job.attempt) for job in after] == [(JobStatus.SUCCEEDED, 1)] * JOBS
    engine = Engine(load_checkpoint(checkpoint), device="cpu", slots=4)
    [expected] = engine.generate(["Once upon a time"], SamplingParams(**sampling))
    assert {job.outputs[0].text for job in after} == {expected.text}
