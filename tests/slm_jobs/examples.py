"""Values that tests of the store need again and again."""

from __future__ import annotations

from redis import Redis

from slm_jobs import keys
from slm_jobs.schemas import Job, JobError, JobSpec, Output, Usage, Work, WorkerInfo
from slm_jobs.store import JobStore, SweepReport

MODEL = "tinystories"
LEASE_MS = 15_000
OUTPUTS = [Output(index=0, text="a time", finish_reason="stop")]
USAGE = Usage(prompt_tokens=2, completion_tokens=2, total_tokens=4)
ERROR = JobError(code="out_of_memory", message="The engine ran out of memory.")
WORKER = WorkerInfo(id="w1", models=[MODEL], slots=64, running=1, pid=7, host="here")


def spec(prompt: str = "Once upon", **fields: object) -> JobSpec:
    return JobSpec.model_validate({"model": MODEL, "prompts": [prompt], **fields})


def create(store: JobStore, prompt: str = "Once upon", **fields: object) -> Job:
    return store.create(spec(prompt, **fields)).job


def claim(store: JobStore, worker: str = "w1") -> Work:
    [work] = store.claim_next(MODEL, worker=worker)
    return work


def complete(store: JobStore, work: Work) -> bool:
    return store.complete(work, OUTPUTS, USAGE, fingerprint="fp32-avx2")


def beat(store: JobStore, *workers: str) -> None:
    for worker in workers:
        store.heartbeat(WORKER.model_copy(update={"id": worker}), [])


def sweep(store: JobStore, redis: Redis) -> SweepReport:
    """A sweep as if the previous one's lock had run out."""
    redis.delete(keys.JANITOR)
    report = store.sweep()
    assert report is not None
    return report
