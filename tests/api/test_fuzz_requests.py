"""Any header, query and address is understood or refused; nothing makes the service fail."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from fakeredis import FakeRedis
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from api.jobs import MAX_WAIT_SECONDS, preferred_wait
from slm_jobs.api_keys import NewKey
from slm_jobs.store import JobStore
from tests.api.batch_calls import claim_all, left_in, take
from tests.api.fake_worker import answer
from tests.api.fuzzing import any_text, check, examples, header, number, refused

BODY = {"prompt": "a", "max_tokens": 5}


@pytest.fixture
def job(client: TestClient, store: JobStore) -> str:
    """One that has ended."""
    made: str = client.post("/jobs", json={**BODY, "stream": True}).json()["id"]
    [work] = store.claim_next("tiny", worker="w1")
    answer(store, work)
    return made


@pytest.fixture
def batch(client: TestClient, store: JobStore) -> str:
    """One that has ended, with a result."""
    made: str = take(client, "a")["id"]
    for work in claim_all(store):
        answer(store, work)
    return made


# Headers


@examples
@given(value=header | header.map(b"Bearer ".__add__), token=st.booleans())
@example(value=b"Bearer", token=False)
@example(value=b"Bearer slm_\xb2\xb2\xb2", token=False)
@example(value=b"bearer  \t", token=True)
@example(value=b"Basic ", token=True)
def test_authorization(client: TestClient, key: NewKey, value: bytes, token: bool) -> None:
    """Nothing but the token opens, however it is dressed up."""
    text = value + key.token.encode() if token else value
    response = client.get("/models", headers=[(b"authorization", text)])
    good = text.lower().startswith(b"bearer ") and text[7:].strip() == key.token.encode()
    assert response.status_code == (200 if good else 401), text
    check(response)


@examples
@given(value=header)
@example(value=b'"')
@example(value=b'""')
@example(value=b"k" * 256)
@pytest.mark.parametrize("path", ["/jobs", "/batches"])
def test_idempotency_keys(client: TestClient, redis: FakeRedis, path: str, value: bytes) -> None:
    body = BODY if path == "/jobs" else {"rows": ["a"], "max_tokens": 5}
    headers = [(b"idempotency-key", value)]
    before = left_in(redis)
    first = client.post(path, json=body, headers=headers)
    if first.status_code == 202:
        again = client.post(path, json=body, headers=headers)
        assert again.json()["id"] == first.json()["id"]
    refused(first, redis, before)


@examples
@given(values=st.lists(header.map(lambda value: value.decode("latin-1")), max_size=3))
@example(values=["wait=999999999"])
@example(values=['respond-async, wait = "7"', "wait=8"])
@example(values=["wait=\u00b2"])
def test_prefer(values: list[str]) -> None:
    """Asked of its parser: a service would wait."""
    assert 0 <= preferred_wait(values) <= MAX_WAIT_SECONDS


places = st.builds("{}:{}".format, number, number | st.just("end"))


@examples
@given(value=header | places.map(lambda place: place.encode("utf-8")))
@example(value=b"0:end")
@example(value=b"9999:99999999")
@example(value=b"0:1\xb2")
def test_last_event_ids(client: TestClient, job: str, value: bytes) -> None:
    response = client.get(f"/jobs/{job}/stream", headers=[(b"last-event-id", value)])
    if check(response) is None:
        assert response.text.rstrip().rpartition("event: done")[1]


OTHERS = ("accept", "content-encoding", "content-length", "content-type", "host", "range")


@examples
@given(
    headers=st.dictionaries(
        st.sampled_from([*OTHERS, "prefer", "x-request-id"]), header, max_size=3
    )
)
@example(headers={"host": b"testserver:99999"})
@example(headers={"content-type": b"multipart/form-data; boundary="})
@example(headers={"content-type": b'text/plain; charset="'})
@example(headers={"content-type": b"multipart/form-data; boundary*=utf-9''%ff"})
def test_other_headers(client: TestClient, redis: FakeRedis, headers: dict[str, bytes]) -> None:
    if b"wait" in headers.get("prefer", b"").lower():
        headers = {**headers, "prefer": b""}
    given_ = [(name.encode(), value) for name, value in headers.items()]
    for path in ("/jobs", "/batches", "/v1/files"):
        before = left_in(redis)
        response = client.post(path, content=b'{"prompt": "a", "max_tokens": 5}', headers=given_)
        refused(response, redis, before)
        assert response.headers["x-request-id"].isascii()


# Addresses

QUERIES = {
    "/jobs": ("cursor", "limit", "status", "created_after", "created_before", "key"),
    "/batches": ("cursor", "limit"),
    "/callbacks": ("cursor", "limit", "key"),
    "/v1/files": ("after", "limit", "order", "purpose"),
    "/v1/batches": ("after", "limit"),
    "/jobs/{job}": ("wait",),
    "/batches/{batch}": ("wait",),
    "/batches/{batch}/results": ("after", "limit", "follow"),
    "/batches/{batch}/errors": ("after", "limit", "follow"),
}
times = st.datetimes().map(lambda time: f"{time.isoformat()}Z") | st.sampled_from(
    ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0000-00-00T00:00:00Z"]
)
parameters = number | times | any_text | st.sampled_from(["true", "desc", "queued", "9" * 16])


@examples
@given(data=st.data())
@pytest.mark.parametrize("path", QUERIES)
def test_queries(client: TestClient, job: str, batch: str, path: str, data: Any) -> None:
    asked = data.draw(st.lists(st.tuples(st.sampled_from(QUERIES[path]), parameters), max_size=3))
    response = client.get(path.format(job=job, batch=batch), params=asked)
    check(response)


IDS = ("/jobs/{}", "/jobs/{}/stream", "/batches/{}", "/batches/{}/results", "/v1/files/{}/content")
ids = any_text | st.builds(
    str.__add__, st.sampled_from(["job_", "batch_", "file-", "file-out_", "file-err_"]), any_text
)


@examples
@given(path=st.sampled_from(IDS), id_=ids)
@example(path="/jobs/{}", id_="job_*")
@example(path="/batches/{}", id_="batch_1:0")
@example(path="/v1/files/{}/content", id_="../../jobs")
def test_ids(client: TestClient, redis: FakeRedis, path: str, id_: str) -> None:
    before = left_in(redis)
    response = client.get(path.format(quote(id_, safe="")))
    refused(response, redis, before)


@examples
@given(
    path=st.binary(max_size=40), method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"])
)
def test_paths(client: TestClient, path: bytes, method: str) -> None:
    check(client.request(method, "/" + quote(path)))
