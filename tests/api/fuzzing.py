"""What holds for every answer, whatever was sent; and what is sent."""

from __future__ import annotations

import json
from typing import Any

from fakeredis import FakeRedis
from httpx2 import Response
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from api.openai.errors import _DIALECT, OpenAIError
from api.problems import PROBLEMS
from slm_jobs import keys
from tests.api.batch_calls import left_in
from tests.api.test_problems import problem

OPENAI_CODES = PROBLEMS.keys() | {dialect.code for dialect in _DIALECT.values()}

examples = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# What a server lets through: no control characters but the tab.
header = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f") | st.just("\t"),
    max_size=300,
).map(lambda text: text.strip().encode("latin-1"))
any_text = st.text(max_size=40)  # of Unicode scalars: addresses have no others
whole = st.integers() | st.sampled_from([0, 1, 100, 2**31, 2**53, 2**53 + 1, 2**63, 2**64])
number = (
    whole.map(str)
    | st.floats().map(str)
    | st.sampled_from(["", "\u0661", "1_0", "0x1", " 1", "+1"])
)


def check(response: Response) -> Any:
    """The document of an answer that is no server error; for a refusal, after what holds for it."""
    assert response.status_code < 500, response.text
    if response.status_code < 400:
        return None
    document = json.loads(response.content)  # and so it is valid UTF-8
    if "error" in document:
        assert OpenAIError.model_validate(document, strict=True).error.code in OPENAI_CODES
        return document
    return problem(response, document["code"])


def refused(response: Response, redis: FakeRedis, before: list[str]) -> bool:
    """Whether it was; then nothing of it is left. What was taken is deleted, for the next one."""
    if check(response) is None:
        forget(redis)
        return False
    assert left_in(redis) == before
    return True


def forget(redis: FakeRedis) -> None:
    """All but the API keys."""
    for name in redis.keys("*"):
        if not name.startswith(keys.KEY):
            redis.delete(name)
