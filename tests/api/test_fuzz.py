"""Whatever is posted to `/jobs` is taken or refused in JSON; nothing makes the service fail."""

from __future__ import annotations

import json
from typing import Any

from fakeredis import FakeRedis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from api.problems import PROBLEMS
from slm_jobs import keys
from slm_jobs.schemas import Job, JobRequest, JobSpec
from slm_jobs.store import JobStore

FIELDS = [*JobRequest.model_fields, "messages"]
# Lone surrogates too: `json.dumps` escapes them.
text = st.text(st.characters(exclude_categories=()), max_size=30)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | text
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)
plausible = st.fixed_dictionaries(
    {"prompt": text | st.lists(text, max_size=18)},
    optional={
        "max_tokens": st.integers(-1, 140),
        "temperature": st.floats(-1, 6) | st.integers(-1, 6),
        "top_k": st.none() | st.integers(-1, 70_000),
        "top_p": st.floats(-0.5, 1.5),
        "seed": st.none() | st.integers(-1, 2**64),
        "n": st.integers(0, 70),
        "stop": st.lists(text, max_size=9),
        "model": st.none() | st.sampled_from(["tiny", "small"]) | text,
        "metadata": st.dictionaries(text, text, max_size=3),
        "ignore_eos": st.booleans(),
        "queue_timeout": st.none() | st.floats() | st.integers(-1, 700_000),
        "run_timeout": st.none() | st.floats() | st.integers(-1, 700_000),
    },
)
sane = st.text(min_size=1, max_size=30)  # of Unicode scalars
sound = st.fixed_dictionaries(
    {
        "prompt": sane | st.lists(sane, min_size=1, max_size=16),
        "max_tokens": st.integers(1, 300),
        "model": st.just("small"),
    },
    optional={
        "temperature": st.floats(0, 5) | st.integers(0, 5),
        "top_k": st.none() | st.integers(1, 65_536),
        "top_p": st.floats(0, 1, exclude_min=True),
        "seed": st.none() | st.integers(0, 2**62),
        "n": st.integers(1, 4),
        "stop": st.lists(sane, max_size=8),
        "metadata": st.dictionaries(sane, sane, max_size=3),
        "ignore_eos": st.booleans(),
    },
)
wild = st.dictionaries(st.sampled_from(FIELDS) | text, anything, max_size=6)
bodies = st.one_of(
    st.builds(json.dumps, plausible).map(str.encode),
    st.builds(json.dumps, wild).map(str.encode),
    st.builds(json.dumps, anything).map(str.encode),
    st.binary(max_size=60),
)


def state(redis: FakeRedis) -> list[str]:
    return sorted(redis.keys("*"))


def delete_jobs(redis: FakeRedis) -> None:
    """All but the API keys."""
    for name in redis.keys("*"):
        if not name.startswith(keys.KEY):
            redis.delete(name)


def check(client: TestClient, redis: FakeRedis, content: bytes, content_type: str) -> None:
    before = state(redis)
    response = client.post("/jobs", content=content, headers={"Content-Type": content_type})
    answer: Any = json.loads(response.content)  # and so it is valid UTF-8
    if response.status_code == 202:
        assert client.get(response.headers["location"]).json() == answer
        Job.model_validate_json(response.content)
        delete_jobs(redis)
    else:
        assert 400 <= response.status_code < 500, answer
        assert PROBLEMS[answer["code"]].status == response.status_code
        assert state(redis) == before


_examples = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_examples
@given(content=bodies)
def test_bodies(client: TestClient, redis: FakeRedis, content: bytes) -> None:
    check(client, redis, content, "application/json")


@_examples
@given(body=sound)
def test_sound_bodies(
    client: TestClient, store: JobStore, redis: FakeRedis, body: dict[str, Any]
) -> None:
    check(client, redis, json.dumps(body).encode(), "application/json")
    assert client.post("/jobs", json=body).status_code == 202
    [work] = store.claim_next("small", worker="w1")
    prompts = JobRequest.model_validate(body).prompts
    asked = {**body, "prompts": prompts, "seed": work.spec.seed, "request_id": work.spec.request_id}
    assert work.spec == JobSpec.model_validate(asked)
    assert body.get("seed") in (None, work.spec.seed)
    delete_jobs(redis)


@_examples
@given(
    content_type=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
    | st.sampled_from(["", "slm+", "+"]).map("application/{}json".format)
    | st.sampled_from([";", " ", ";charset=utf-8", "x", "/json"]).map("application/json{}".format)
)
def test_content_types(client: TestClient, redis: FakeRedis, content_type: str) -> None:
    check(client, redis, b'{"prompt": "a", "max_tokens": 1}', content_type)
