"""Where jobs meet the model: `slm_jobs` terms become `slm_core` terms, and back, only here."""

from __future__ import annotations

from slm_core import Completion, SamplingParams
from slm_core.errors import SlmCoreError
from slm_jobs.schemas import JobError, Output, Usage, Work
from worker.submission import EngineFault, Request

DEADLINE_EXCEEDED = JobError(
    code="deadline_exceeded", message="its run_timeout passed before it had ended"
)


def to_requests(work: Work) -> list[Request]:
    """A prompt and its parameters for every output, in order; output i draws from seed + i."""
    job = work.spec
    if job.seed is None:
        raise ValueError(f"{work.id} was stored without a seed")
    prompts = [prompt for prompt in job.prompts for _ in range(job.n)]
    return [
        (
            prompt,
            SamplingParams(
                max_tokens=job.max_tokens,
                temperature=job.temperature,
                top_k=job.top_k,
                top_p=job.top_p,
                seed=job.seed + index,
                stop=tuple(job.stop),
                ignore_eos=job.ignore_eos,
            ),
        )
        for index, prompt in enumerate(prompts)
    ]


def to_outputs(work: Work, completions: list[Completion]) -> tuple[list[Output], Usage]:
    """Outputs and usage; a prompt's tokens count once, however many continuations it has."""
    outputs = [
        Output(index=index, text=c.text, finish_reason=c.finish_reason)
        for index, c in enumerate(completions)
    ]
    prompt_tokens = sum(c.usage.prompt_tokens for c in completions[:: work.spec.n])
    completion_tokens = sum(c.usage.completion_tokens for c in completions)
    usage = Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )
    return outputs, usage


def to_error(error: Exception) -> JobError:
    """Why work failed, for who asked for it."""
    if isinstance(error, SlmCoreError):
        return JobError(code="invalid_request", message=str(error))
    if isinstance(error, EngineFault):
        return JobError(code="engine_fault", message=str(error))
    return JobError(code="internal_error", message=f"the worker failed: {type(error).__name__}")


def timed_out(seconds: float) -> JobError:
    return JobError(code="job_timeout", message=f"did not end within {seconds:g} s")
