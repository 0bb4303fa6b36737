"""Reads everything when all is over, and says what is not as it was promised."""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from slm_client import Client
from slm_client.batch import Batch, Result
from slm_client.job import Job
from slm_core import Completion, Engine, SamplingParams
from slm_jobs import keys
from slm_jobs.settings import Settings
from tests.chaos import keyspace
from tests.chaos.history import History
from tests.chaos.ledger import Asked, AskedBatch, Ledger, ending
from tests.chaos.load import BATCH_EVENTS, JOB_EVENTS
from tests.chaos.receiver import Receiver
from tests.chaos.stack import Stack

_ALLOWED_ERRORS = {  # of failed jobs, and whether the request must have asked for it
    "attempts_exhausted": "",
    "deadline_exceeded": "run_timeout",
}
_MOST_CRASHES = Settings.model_fields["max_crashes"].default
_ENDS = {*JOB_EVENTS[1:], *BATCH_EVENTS[2:]}
_SUPPRESSED = re.compile(
    r"(?:(\d+) rows were )?stale, not committed|its lease was lost, dropped"
    r"|was settled before, or replaced"
)
_SAMPLING = ("max_tokens", "temperature", "top_k", "seed", "ignore_eos")


def wait_for_quiet(stack: Stack, timeout: float) -> list[str]:
    """What still waits or runs after that time; nothing, as it should be."""
    deadline, awake = time.monotonic() + timeout, ["Redis"]
    with stack.redis() as redis:
        while awake and time.monotonic() < deadline:
            time.sleep(0.2)
            try:
                awake = keyspace.awake(redis)
            except RedisError as error:
                awake = [str(error)]
    return awake


class Auditor:
    """`wrong` fills with a line for each broken promise."""

    def __init__(
        self, stack: Stack, ledger: Ledger, receiver: Receiver, history: History, engine: Engine
    ) -> None:
        self.wrong: list[str] = []
        self.lost = 0
        self.doubled = 0
        self.figures: dict[str, Any] = {}
        self._stack = stack
        self._ledger = ledger
        self._receiver = receiver
        self._history = history
        self._engine = engine

    def audit(self) -> None:
        with self._stack.redis() as redis, self._client() as client:
            jobs = {job.id: job for job in _all_jobs(redis, client)}
            self._audit_jobs(jobs)
            self._audit_batches(client)
            self._audit_history(jobs)
            self._audit_callbacks(redis)
            self.wrong += [f"orphan in Redis: {key}" for key in keyspace.orphans(redis)]
        self.wrong += self._stack.surprises
        self._count(jobs)

    def _client(self) -> Client:
        return self._stack.client(self._stack.api_key, self._stack.urls[-1], 20)

    # Jobs

    def _audit_jobs(self, jobs: dict[str, Job]) -> None:
        found: defaultdict[int, list[str]] = defaultdict(list)
        for job in jobs.values():
            found[int(job.metadata["number"])].append(job.id)
        for asked in self._ledger.jobs:
            self.wrong += [f"job {asked.number}: {trouble}" for trouble in asked.troubles]
            if asked.streamed_wrong:
                self.wrong.append(f"job {asked.number} streamed {asked.streamed_wrong}")
            ids = {*asked.ids, *found[asked.number]}
            if len(ids) > 1:
                self._note_doubled(f"request {asked.number} made {ids}")
            for job_id in ids:
                self._audit_job(asked, job_id, jobs.get(job_id))
        self._audit_texts(jobs)

    def _audit_job(self, asked: Asked, job_id: str, job: Job | None) -> None:
        if asked.deleted:
            if job:
                self.wrong.append(f"{job_id} was deleted and is there")
            return
        if job is None or not job.ended:
            self._note_lost(f"{job_id} is {job.status if job else 'not there'}")
            return
        if asked.seen - {ending(job.raw)}:
            self._note_doubled(f"{job_id} was read with two results: {asked.seen}, {job.raw}")
        if job.error:
            needed = _ALLOWED_ERRORS.get(job.error.code)
            early = needed == "" and self._history.starts(job_id) < _MOST_CRASHES
            if needed is None or (needed and needed not in asked.body) or early:
                self.wrong.append(f"{job_id} failed: {job.error}")
        if job.status == "cancelled" and not asked.cancelled:
            self.wrong.append(f"{job_id} was cancelled by nobody")
        if job.status == "expired" and "queue_timeout" not in asked.body:
            self.wrong.append(f"{job_id} expired without a deadline")
        if job.succeeded and len(job.outputs) != _outputs(asked.body):
            self.wrong.append(f"{job_id} has {len(job.outputs)} outputs")

    def _audit_texts(self, jobs: dict[str, Job]) -> None:
        """As the engine makes them in this process; what was cut off, as their beginning."""
        wanted = []
        for job in jobs.values():
            body = self._ledger.jobs[int(job.metadata["number"])].body
            prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
            asked = {**body, "seed": job.seed}
            for output in job.outputs:
                params = _params(asked, output.index)
                wanted.append((job.id, output, prompts[output.index // body["n"]], params))
        completions = self._generate((prompt, params) for _, _, prompt, params in wanted)
        for (job_id, output, _, _), completion in zip(wanted, completions, strict=True):
            if not _agree(output.text, output.finish_reason, completion):
                self.wrong.append(f"{job_id}: {output} instead of {completion}")

    def _generate(self, requests: Iterable[tuple[str, SamplingParams]]) -> list[Completion]:
        prompts, params = zip(*requests, strict=True) if (requests := list(requests)) else ((), ())
        return self._engine.generate(list(prompts), list(params)) if prompts else []

    # Batches

    def _audit_batches(self, client: Client) -> None:
        self.figures["rows"] = 0
        for asked in self._ledger.batches:
            self.wrong += [f"batch of {len(asked.rows)} rows: {each}" for each in asked.troubles]
            if len(asked.ids) > 1:
                self._note_doubled(f"one Idempotency-Key made {asked.ids}")
            for batch_id in asked.ids:
                batch = client.batches.get(batch_id)
                if not batch.ended:
                    self._note_lost(f"{batch_id} is {batch.status}")
                    continue
                self.figures["rows"] += len(asked.rows)
                results = list(client.batches.results(batch_id))
                errors = list(client.batches.errors(batch_id))
                self._audit_rows(asked, batch, results, errors)

    def _audit_rows(
        self, asked: AskedBatch, batch: Batch, results: list[Result], errors: list[Result]
    ) -> None:
        times = Counter(row.custom_id for row in [*results, *errors])
        for row in asked.rows:
            if times[row["custom_id"]] == 0:
                self._note_lost(f"{batch.id} has no {row['custom_id']}")
            elif times[row["custom_id"]] > 1:
                self._note_doubled(
                    f"{batch.id} has {row['custom_id']} {times[row['custom_id']]} times"
                )
        seen = [(row.seq, row.custom_id, row.text) for row in asked.results]
        if seen != [(row.seq, row.custom_id, row.text) for row in results]:
            self._note_doubled(f"the results of {batch.id} were read with other contents before")
        if (batch.counts.succeeded, batch.counts.unsuccessful) != (len(results), len(errors)):
            self.wrong.append(f"{batch.id} counts {batch.counts}")
        for row in errors:
            code = row.error.code if row.error else ""
            starts = self._history.starts(f"{batch.id}:{row.custom_id.removeprefix('row-')}")
            crashed = code == "attempts_exhausted" and starts >= _MOST_CRASHES
            if not (crashed or (asked.cancelled and code in ("cancelled", "batch_cancelled"))):
                self.wrong.append(f"{batch.id} {row.custom_id}: {row.error}")
        self._audit_row_texts(asked, batch, results)

    def _audit_row_texts(self, asked: AskedBatch, batch: Batch, results: list[Result]) -> None:
        n, wanted = asked.options["n"], []
        numbers = {row["custom_id"]: number for number, row in enumerate(asked.rows)}
        for row in results:
            number = numbers[row.custom_id]
            for output in row.outputs:
                params = _params(asked.options, number * n + output.index)
                wanted.append((row, output, asked.rows[number]["prompt"], params))
        completions = self._generate((prompt, params) for _, _, prompt, params in wanted)
        for (row, output, _, _), completion in zip(wanted, completions, strict=True):
            if not _agree(output.text, output.finish_reason, completion):
                self.wrong.append(f"{batch.id} {row.custom_id}: {output}, not {completion}")

    # What Redis wrote down

    def _audit_history(self, jobs: dict[str, Job]) -> None:
        ends = self._history.ends
        for work, times in ends.items():
            if times > 1:
                self._note_doubled(f"{work} ended {times} times")
        for job_id in {*jobs, *(job_id for asked in self._ledger.jobs for job_id in asked.ids)}:
            if not ends[job_id]:
                self._note_lost(f"{job_id} has no end in Redis's log")

    def _audit_callbacks(self, redis: Redis) -> None:
        """Each that was to be told came at least once, and none that was not."""
        wanted: set[str] = set()
        for key in redis.scan_iter(keys.DELIVERIES_OF + "*", count=1_000):
            ids = redis.lrange(key, 0, -1)
            wanted.update(ids)
            if len(set(ids)) != len(ids):
                self._note_doubled(f"an event was told under one id twice: {ids}")
        ends = Counter(name.partition("-")[0] for name in wanted if name.partition("-")[2] in _ENDS)
        self.wrong += [f"{work} has {n} ends to tell of" for work, n in ends.items() if n > 1]
        for work in self._told_of():
            if not ends[work]:
                self.wrong.append(f"{work} asked for callbacks and has none of its end")
        missing = wanted - set(self._receiver.taken)
        self.wrong += [f"callback {name} never came" for name in missing]
        self.wrong += [f"{name} was not signed" for name in self._receiver.forged]
        self.wrong += [f"{name} came with two bodies" for name in self._receiver.changed]
        self.wrong += [f"{n} came unasked" for n in set(self._receiver.taken) - wanted]
        self.figures["callbacks"] = len(wanted)

    def _told_of(self) -> Iterator[str]:
        """Jobs and batches whose end is to be told."""
        for asked in self._ledger.jobs:
            if "callback_url" in asked.body and not asked.deleted:
                yield from asked.ids
        for batch in self._ledger.batches:
            yield from batch.ids

    # Figures

    def _count(self, jobs: dict[str, Job]) -> None:
        recoveries = [
            seconds
            for death in self._stack.deaths
            if death.role == "worker"
            for seconds in self._history.recoveries(death)
        ]
        suppressed = [match for line in self._stack.logs() if (match := _SUPPRESSED.search(line))]
        fenced = sum(int(match[1] or 1) for match in suppressed)
        replays = sum(asked.replays for asked in self._ledger.jobs)
        self.figures |= {
            "jobs": len(jobs) + sum(asked.deleted for asked in self._ledger.jobs),
            "ends": dict(
                Counter(job.error.code if job.error else job.status for job in jobs.values())
            ),
            "deleted": sum(asked.deleted for asked in self._ledger.jobs),
            "refusals": sum(asked.refusals for asked in self._ledger.jobs),
            "batches": len(self._ledger.batches),
            "run_again": self._history.restarts,
            "lost": self.lost,
            "doubled": self.doubled,
            "duplicates_suppressed": fenced + replays + self._receiver.repeats,
            "fenced": fenced,
            "idempotent_replays": replays,
            "repeated_callbacks": self._receiver.repeats,
            "slowest_submit_s": round(self._ledger.slowest_seconds, 2),
            "recoveries": len(recoveries),
            "recovery_p50_s": _quantile(recoveries, 50),
            "recovery_p95_s": _quantile(recoveries, 95),
            "recovery_worst_s": round(max(recoveries, default=0.0), 1),
        }

    def _note_lost(self, what: str) -> None:
        self.lost += 1
        self.wrong.append(f"lost: {what}")

    def _note_doubled(self, what: str) -> None:
        self.doubled += 1
        self.wrong.append(f"doubled: {what}")


def _all_jobs(redis: Redis, client: Client) -> Iterator[Job]:
    """Through the api, every one that Redis has: also those whose answer was lost."""
    for key in redis.scan_iter(keys.JOB + "*", count=1_000):
        yield client.get(key.removeprefix(keys.JOB))


def _outputs(body: dict[str, Any]) -> int:
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    return len(prompts) * int(body["n"])


def _params(asked: dict[str, Any], offset: int) -> SamplingParams:
    given = {name: asked[name] for name in _SAMPLING if name in asked}
    return SamplingParams(**{**given, "seed": asked["seed"] + offset})


def _agree(text: str, finish_reason: str, completion: Completion) -> bool:
    if finish_reason == "cancelled":  # half a character at the end reads as U+FFFD
        return completion.text.startswith(text.rstrip("\ufffd"))
    return (text, finish_reason) == (completion.text, completion.finish_reason)


def _quantile(values: list[float], percent: int) -> float:
    if len(values) < 2:
        return round(values[0], 1) if values else 0.0
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 1)
