"""What a request may say, and that the store's JSON loses nothing of it."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from slm_jobs.records import about, to_job
from slm_jobs.schemas import (
    MAX_PROMPTS,
    MAX_SEQUENCES,
    SEED_LIMIT,
    JobRequest,
    JobSpec,
    JobStatus,
    Output,
    Usage,
)

LARGEST_SEED = SEED_LIMIT - MAX_SEQUENCES - 1
stable = settings(settings.get_profile("slm-stable"), max_examples=60)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
keys = st.text(string.ascii_letters, min_size=1, max_size=64)
fields = st.fixed_dictionaries(
    {"prompt": texts | st.lists(texts, min_size=1, max_size=4)},
    optional={
        "max_tokens": st.integers(1, 65_536),
        "temperature": st.floats(0, 5),
        "top_k": st.none() | st.integers(1, 65_536),
        "top_p": st.floats(0, 1, exclude_min=True),
        "seed": st.none() | st.integers(0, LARGEST_SEED),
        "stop": st.lists(texts, max_size=8),
        "ignore_eos": st.booleans(),
        "n": st.integers(1, MAX_SEQUENCES // 4),
        "metadata": st.dictionaries(keys, texts, max_size=16),
    },
)


@stable
@given(fields)
def test_a_request_survives_its_json(values: dict[str, object]) -> None:
    request = JobRequest.model_validate(values)
    assert JobRequest.model_validate_json(request.model_dump_json()) == request


@stable
@given(st.integers(1, MAX_PROMPTS), st.integers(1, MAX_SEQUENCES))
def test_outputs_are_limited(prompts: int, n: int) -> None:
    values = {"prompt": ["a"] * prompts, "n": n}
    if prompts * n <= MAX_SEQUENCES:
        assert len(JobRequest.model_validate(values).prompts) == prompts
    else:
        with pytest.raises(ValidationError, match=f"is more than {MAX_SEQUENCES} outputs"):
            JobRequest.model_validate(values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": ["a", ""]},
        {"prompt": "a" * 100_001},
        {"prompt": ["a"] * (MAX_PROMPTS + 1)},
        {"prompt": "a", "max_tokens": 0},
        {"prompt": "a", "max_tokens": 65_537},
        {"prompt": "a", "temperature": -0.1},
        {"prompt": "a", "temperature": float("nan")},
        {"prompt": "a", "top_k": 0},
        {"prompt": "a", "top_p": 0},
        {"prompt": "a", "top_p": 1.01},
        {"prompt": "a", "seed": -1},
        {"prompt": "a", "seed": LARGEST_SEED + 1},
        {"prompt": "a", "stop": [""]},
        {"prompt": "a", "stop": ["a"] * 9},
        {"prompt": "a", "n": 0},
        {"prompt": "a", "n": MAX_SEQUENCES + 1},
        {"prompt": "a", "metadata": {"": "v"}},
        {"prompt": "a", "metadata": {"k": "v" * 513}},
        {"prompt": "a", "metadata": {str(n): "v" for n in range(17)}},
        {"prompt": "a", "metadata": {"k": 1}},
        {"prompt": "a", "temprature": 1},
        {"prompt": "a", "template": "b"},
        {"prompt": "a", "variables": {"b": "c"}},
        {"template": "a", "n": MAX_SEQUENCES + 1},
        {"prompt": "a", "priority": 10},
    ],
)
def test_limits(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        JobRequest.model_validate(values)


def test_a_record_of_a_newer_version_reads() -> None:
    spec = JobSpec.model_validate({"model": "m", "prompts": [[1, 2]], "from_the_future": True})
    assert spec.prompts == [[1, 2]]


def test_terminal_states() -> None:
    assert {status for status in JobStatus if not status.is_terminal} == {"queued", "running"}


@stable
@given(texts, st.lists(texts, max_size=3), st.dictionaries(keys, texts, max_size=3))
def test_a_record_reads_as_a_job(prompt: str, outputs: list[str], metadata: dict[str, str]) -> None:
    request = JobSpec(model="m", prompts=[prompt], seed=LARGEST_SEED, metadata=metadata)
    expected = [Output(index=i, text=text, finish_reason="stop") for i, text in enumerate(outputs)]
    usage = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
    job = to_job(
        "job_1",
        {
            "status": "succeeded",
            "model": "m",
            "attempt": "2",
            "priority": "0",
            "created_at": "1790000000001",
            "started_at": "1790000000002",
            "finished_at": "1790000000999",
            "about": about(request),
            "outputs": f"[{','.join(output.model_dump_json() for output in expected)}]",
            "usage": usage.model_dump_json(),
        },
    )
    assert (job.seed, job.metadata, job.outputs) == (LARGEST_SEED, metadata, expected)
    assert job.finished_at is not None
    assert job.started_at is not None
    assert (job.finished_at - job.started_at).total_seconds() == 0.997
    assert job.model_dump(mode="json")["created_at"] == "2026-09-21T14:13:20.001000Z"
