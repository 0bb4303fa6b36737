"""What a worker tells Prometheus, in the manner of vLLM; docs/metrics.md says what series mean.

Nothing here is called for each token, nor by the thread that decodes: that one counts in
`step_stats`, which is read when somebody asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from slm_jobs.batch_schemas import RowEnd
from slm_jobs.metrics import EXHAUSTED, EndMetrics, new_registry
from slm_jobs.schemas import JobError, Output, Work
from worker import step_stats
from worker.lane import Measured
from worker.submission import Submission

ERROR_CODES = (
    "invalid_request",
    "engine_fault",
    "internal_error",
    "job_timeout",
    "deadline_exceeded",
    EXHAUSTED,
)
REASONS = ("stop", "length", "cancelled")
LATENCY_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)


class WorkerMetrics:
    """Every series is there from the start, at 0, for each model of `slots`, which says how many
    its engine has. `measured` tells what lanes have come to. Methods are safe for threads."""

    def __init__(
        self, slots: Mapping[str, int], measured: Callable[[], Mapping[str, Measured]]
    ) -> None:
        self.registry = new_registry()
        self.ends = EndMetrics(self.registry, slots, ERROR_CODES)
        self._first_token = self._latency(
            slots, "time_to_first_token_seconds", "From a job's creation to its first token."
        )
        self._whole = self._latency(
            slots, "e2e_request_latency_seconds", "From a job's creation to its end."
        )
        self._queue = self._latency(
            slots, "request_queue_time_seconds", "From a job's creation to its claim by a worker."
        )
        self._prefill = self._latency(
            slots, "request_prefill_time_seconds", "From a job's claim to its first token."
        )
        self._decode = self._latency(
            slots, "request_decode_time_seconds", "From a job's first token to its last."
        )
        self._success = Counter(
            "slm_request_success_total",
            "Jobs and rows that ended with what they have, by finish reason.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._fenced = Counter(
            "slm_fence_rejections_total",
            "Results of jobs and rows that were refused, since their lease was lost.",
            ["model_name"],
            registry=self.registry,
        )
        for model in slots:
            self._fenced.labels(model)
            for reason in REASONS:
                self._success.labels(model, reason)
        self.registry.register(_Engines(slots, measured))

    def _latency(self, models: Mapping[str, int], name: str, about: str) -> Histogram:
        histogram = Histogram(
            f"slm_{name}", about, ["model_name"], buckets=LATENCY_BUCKETS, registry=self.registry
        )
        for model in models:
            histogram.labels(model)
        return histogram

    def job_ended(
        self, work: Work, submission: Submission, outputs: Sequence[Output], error: JobError | None
    ) -> None:
        """What a job came to stands in Redis since this moment."""
        model, claimed = work.model, submission.submitted_at
        first = submission.first_token_at
        self._queue.labels(model).observe(work.waited_seconds)
        if first is not None:
            self._prefill.labels(model).observe(first - claimed)
            self._first_token.labels(model).observe(work.waited_seconds + first - claimed)
        if error:
            self.ends.failed(model, error.code, job=True)
            return
        reason = _reason(outputs)
        self._success.labels(model, reason).inc()
        if reason != "cancelled":  # how long that took was its client's choice
            if first is not None:
                self._decode.labels(model).observe(submission.last_at - first)
            self._whole.labels(model).observe(work.waited_seconds + time.monotonic() - claimed)

    def job_failed(self, work: Work, error: JobError) -> None:
        """Without any text."""
        self.ends.failed(work.model, error.code, job=True)

    def rows_ended(self, ends: Sequence[RowEnd], written: Sequence[bool]) -> None:
        """Rows wait for hours by design, so their times would hide those of jobs."""
        for end, done in zip(ends, written, strict=True):
            model = end.work.model
            if not done:
                self.fenced(model)
            elif end.error:
                self.ends.failed(model, end.error.code, job=False)
            else:
                self._success.labels(model, _reason(end.outputs)).inc()

    def fenced(self, model: str) -> None:
        """A result was refused: somebody else has the work, or soon will."""
        self._fenced.labels(model).inc()


def _reason(outputs: Sequence[Output]) -> str:
    """What cut any of the outputs short, or that nothing did."""
    reasons = {output.finish_reason for output in outputs}
    return next((reason for reason in ("cancelled", "length") if reason in reasons), "stop")


class _Engines(Collector):
    """Shows what lanes and engines have counted."""

    def __init__(
        self, slots: Mapping[str, int], measured: Callable[[], Mapping[str, Measured]]
    ) -> None:
        self._slots = slots
        self._measured = measured

    def collect(self) -> Iterator[Metric]:
        found = self._measured()
        for name, about, count in _COUNTERS:
            counter = CounterMetricFamily(f"slm_{name}", about, labels=["model_name"])
            for model, measured in found.items():
                counter.add_metric([model], count(measured))
            yield counter
        for name, about, read in _GAUGES:
            gauge = GaugeMetricFamily(f"slm_{name}", about, labels=["model_name"])
            for model, measured in found.items():
                gauge.add_metric([model], read(measured))
            yield gauge
        slots = GaugeMetricFamily(
            "slm_engine_slots", "Sequences that the engine decodes at once.", labels=["model_name"]
        )
        for model, number in self._slots.items():
            slots.add_metric([model], number)
        yield slots
        yield from self._histograms(found)

    def _histograms(self, found: Mapping[str, Measured]) -> Iterator[Metric]:
        between = HistogramMetricFamily(
            "slm_inter_token_latency_seconds",
            "From a sequence's token to its next one.",
            labels=["model_name"],
        )
        steps = HistogramMetricFamily(
            "slm_engine_step_seconds",
            "A step of the engine; in phase prefill it also took prompts in.",
            labels=["model_name", "phase"],
        )
        for model, measured in found.items():
            counted = measured.steps
            between.add_metric([model], *_cumulative(counted.inter_token))
            steps.add_metric([model, "prefill"], *_cumulative(counted.prefill_steps))
            steps.add_metric([model, "decode"], *_cumulative(counted.decode_steps))
        yield between
        yield steps


_COUNTERS: tuple[tuple[str, str, Callable[[Measured], int]], ...] = (
    ("prompt_tokens", "Tokens of prompts taken in.", lambda m: m.engine.prefill_tokens),
    ("generation_tokens", "Tokens generated.", lambda m: m.steps.generated_tokens),
    (
        "engine_tokens_needed",
        "Positions to compute: prompts, and one for each sequence and step.",
        lambda m: m.engine.prefill_tokens + m.engine.decode_tokens,
    ),
    (
        "engine_tokens_computed",
        "Positions computed, padding and what was computed before included.",
        lambda m: m.engine.computed_tokens,
    ),
)
_GAUGES: tuple[tuple[str, str, Callable[[Measured], float]], ...] = (
    ("slots_in_use", "Sequences being decoded.", lambda m: m.slots_in_use),
    (
        "kv_cache_usage_ratio",
        "Share of the KV cache's positions that sequences hold; 0 without a cache.",
        lambda m: m.engine.kv_tokens / max(m.engine.kv_capacity, 1),
    ),
)


def _cumulative(histogram: step_stats.Histogram) -> tuple[list[tuple[str, float]], float]:
    """Buckets as Prometheus has them, each with all below it, and the sum of the values."""
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.total
