"""A sampling parameter is known everywhere: whoever adds one is told here what still lacks it.

CONTRIBUTING.md has the places in order.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from api.batches.options import value_of
from api.openai.schemas import CompletionRequest
from slm_client.batch import BatchParams
from slm_client.job import Params
from slm_core import SamplingParams
from slm_core.native import _DRAW
from slm_jobs.schemas import GenerationParams, JobSpec, Work
from tests.docs.pages import section
from worker.translation import to_requests

# A value of each that is not its default.
OTHERS: dict[str, Any] = {
    "max_tokens": 7,
    "temperature": 0.5,
    "top_k": 9,
    "top_p": 0.5,
    "seed": 11,
    "stop": ["x"],
    "ignore_eos": True,
}
SAMPLING = [field.name for field in fields(SamplingParams)]
PARAMETERS = list(GenerationParams.model_fields)  # `n` is no engine's


def test_each_has_a_value_here() -> None:
    assert set(OTHERS) == set(SAMPLING) == set(PARAMETERS) - {"n"}
    defaults = GenerationParams().model_dump()
    assert [name for name, value in OTHERS.items() if defaults[name] == value] == []


def test_a_worker_hands_it_to_the_engine() -> None:
    work = Work(id="job_1", attempt=1, model="m", spec=JobSpec(model="m", prompts=["a"], **OTHERS))
    [(_, params)] = to_requests(work)
    assert params == SamplingParams(**OTHERS)


def test_the_kernels_draw_by_it() -> None:
    ends = {"max_tokens", "stop", "ignore_eos"}  # the engine sees to these
    assert set(SAMPLING) - ends - {"seed"} <= set(_DRAW.names or ())


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_reads_as_text(name: str) -> None:
    """In a query, a form, and the cells of a table, as GenerationParams would have it."""
    value = {**OTHERS, "n": 3}[name]
    if not isinstance(value, list):
        assert value_of(name, str(value).lower()) == value


def test_openai_clients_may_send_it() -> None:
    request = CompletionRequest(model="m", **OTHERS, n=3).job_request()
    assert {name: getattr(request, name) for name in OTHERS} == OTHERS


def test_our_client_knows_it() -> None:
    assert set(PARAMETERS) <= Params.__annotations__.keys()
    assert set(PARAMETERS) <= BatchParams.__annotations__.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_guide_tells_of_it(name: str) -> None:
    assert f"`{name}`" in section("docs/api.md", "A job")
