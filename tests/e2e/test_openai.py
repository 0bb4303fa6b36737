"""The unmodified `openai` package against a real service."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion

from slm_core import Engine, SamplingParams
from slm_core.tokenizer import Tokenizer
from tests.e2e.service import Service, until

pytestmark = pytest.mark.timeout(240)

PROMPT = "Once upon a time there was a little fox"
# `top_k` and `ignore_eos` are ours; with them each text has exactly its 40 tokens.
ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 40, "temperature": 0.8, "seed": 7}
OURS = {"top_k": 40, "ignore_eos": True}


def connect(
    service: Service, api_key: str | None = None, *, event_hooks: Any = None, **options: Any
) -> OpenAI:
    return OpenAI(
        api_key=api_key or service.api_key,
        base_url=f"{service.url}/v1",
        http_client=openai.DefaultHttpxClient(trust_env=False, event_hooks=event_hooks),
        **options,
    )


@pytest.fixture
def client(service: Service) -> Iterator[OpenAI]:
    with connect(service) as client:
        yield client


def new_key(service: Service, **settings: Any) -> str:
    response = httpx.post(
        f"{service.url}/admin/keys",
        json={"name": "test", **settings},
        headers={"Authorization": f"Bearer {service.api_key}"},
        trust_env=False,
    )
    token = response.raise_for_status().json()["token"]
    assert isinstance(token, str)
    return token


def expected(engine: Engine, prompts: list[str], n: int = 1) -> list[str]:
    """What the engine says: output i draws from seed + i."""
    texts = [prompt for prompt in prompts for _ in range(n)]
    params = [
        SamplingParams(max_tokens=40, temperature=0.8, top_k=40, seed=7 + i, ignore_eos=True)
        for i in range(len(texts))
    ]
    return [completion.text for completion in engine.generate(texts, params)]


def test_a_completion(client: OpenAI, reference: Engine) -> None:
    answer = client.completions.create(prompt=PROMPT, extra_body=OURS, **ASKED)
    [text] = expected(reference, [PROMPT])
    assert [choice.text for choice in answer.choices] == [text]
    assert (answer.choices[0].finish_reason, answer.choices[0].logprobs) == ("length", None)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-job_")
    assert answer.model == "tiny"
    assert answer.system_fingerprint
    tokens = len(Tokenizer().encode(PROMPT))
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (tokens, 40)


def test_every_form_of_prompt(client: OpenAI, reference: Engine) -> None:
    texts = [PROMPT, "The old oak"]
    ids = [Tokenizer().encode(text) for text in texts]
    echoed = [text + more for text, more in zip(texts, expected(reference, texts), strict=True)]
    for prompt in (texts, ids):
        answer = client.completions.create(prompt=prompt, echo=True, extra_body=OURS, **ASKED)
        assert [choice.text for choice in answer.choices] == echoed
    for prompt in (texts[0], ids[0]):
        answer = client.completions.create(prompt=prompt, n=3, extra_body=OURS, **ASKED)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert [choice.text for choice in answer.choices] == expected(reference, texts[:1], n=3)
    assert client.completions.create(prompt=None, **ASKED).choices


def test_stop(client: OpenAI, reference: Engine) -> None:
    [text] = expected(reference, [PROMPT])
    stop = text[20:23]
    answer = client.completions.create(prompt=PROMPT, stop=stop, extra_body=OURS, **ASKED)
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream(client: OpenAI, reference: Engine) -> None:
    texts = [PROMPT, "The old oak"]
    stream = client.completions.create(
        prompt=texts,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=OURS,
        **ASKED,
    )
    told = [""] * 4
    reasons: dict[int, str | None] = {}
    *chunks, last = stream
    for chunk in chunks:
        assert chunk.usage is None
        for choice in chunk.choices:
            told[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert told == expected(reference, texts, n=2)
    assert reasons == dict.fromkeys(range(4), "length")
    assert last.choices == []
    assert last.usage
    assert last.usage.completion_tokens == 160


def test_text_comes_while_it_is_made(client: OpenAI, service: Service) -> None:
    with client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=480, stream=True, extra_body=OURS
    ) as stream:
        first = next(stream)
        assert service.client.get(first.id.removeprefix("cmpl-")).status == "running"
        assert sum(1 for _ in stream) > 3


def test_many_at_once_with_the_async_client(service: Service, reference: Engine) -> None:
    prompts = [f"{PROMPT} number {i}" for i in range(24)]

    async def ask() -> list[str]:
        async with AsyncOpenAI(
            api_key=service.api_key,
            base_url=f"{service.url}/v1",
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        ) as client:

            async def one(prompt: str) -> str:
                answer = await client.completions.create(prompt=prompt, extra_body=OURS, **ASKED)
                return answer.choices[0].text

            async def streamed(prompt: str) -> str:
                stream = await client.completions.create(
                    prompt=prompt, stream=True, extra_body=OURS, **ASKED
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            calls = [(one, streamed)[i % 2](prompt) for i, prompt in enumerate(prompts)]
            return list(await asyncio.gather(*calls))

    assert asyncio.run(ask()) == [expected(reference, [prompt])[0] for prompt in prompts]


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    model = client.models.retrieve("tiny")
    assert (model.object, model.owned_by) == ("model", "slm")
    assert model.created > 1_600_000_000


def test_typed_errors(client: OpenAI, service: Service) -> None:
    def fails(kind: type[openai.APIStatusError], code: str, **asked: Any) -> openai.APIStatusError:
        with pytest.raises(kind) as caught:
            client.completions.create(**{**ASKED, "prompt": PROMPT, **asked})
        assert type(caught.value) is kind
        assert caught.value.code == code
        assert caught.value.request_id
        return caught.value

    assert fails(openai.BadRequestError, "invalid_request", temperature=3).param == "temperature"
    error = fails(openai.BadRequestError, "unsupported_parameter", logprobs=3)
    assert (error.param, error.type) == ("logprobs", "invalid_request_error")
    fails(openai.BadRequestError, "context_length_exceeded", prompt="word " * 600)
    fails(openai.NotFoundError, "model_not_found", model="gpt-3.5-turbo-instruct")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-3.5-turbo-instruct")
    with (
        connect(service, "slm_wrong") as stranger,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        stranger.completions.create(prompt=PROMPT, **ASKED)
    assert caught.value.code == "invalid_api_key"
    with (
        connect(service, new_key(service)) as humble,
        pytest.raises(openai.PermissionDeniedError),
    ):
        humble.completions.create(prompt=PROMPT, extra_body={"priority": 9}, **ASKED)


def test_a_limit_is_waited_for(service: Service) -> None:
    key = new_key(service, requests_per_minute=30)
    asked = {"model": "tiny", "prompt": "A", "max_tokens": 1}
    with connect(service, key, max_retries=0) as hasty:

        def exhaust() -> None:
            for _ in range(60):
                hasty.completions.create(**asked)

        with pytest.raises(openai.RateLimitError) as caught:
            exhaust()
        assert caught.value.code == "rate_limit_exceeded"
        headers = caught.value.response.headers
        assert 1 <= int(headers["retry-after"]) <= 3
        assert headers["x-ratelimit-limit-requests"] == "30"
        assert headers["x-ratelimit-remaining-requests"] == "0"
    with connect(service, key, max_retries=5) as patient:
        raw = patient.completions.with_raw_response.create(**asked)
        assert raw.retries_taken >= 1
        assert raw.parse().choices


def test_an_outage_is_waited_for(service: Service) -> None:
    failed = threading.Event()

    def notice(response: Any) -> None:
        if response.status_code == 503:
            failed.set()

    def restart() -> None:
        failed.wait(20)
        service.redis.start()

    service.redis.kill()
    restarting = threading.Thread(target=restart)
    restarting.start()
    try:
        hooks = {"response": [notice]}
        with connect(service, max_retries=20, event_hooks=hooks) as client:
            raw = client.completions.with_raw_response.create(prompt=PROMPT, **ASKED)
    finally:
        restarting.join()
    assert raw.retries_taken >= 1
    assert raw.parse().choices[0].text


def test_who_closes_a_stream_cancels_its_job(client: OpenAI, service: Service) -> None:
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=480, n=8, stream=True, extra_body=OURS
    )
    job_id = next(stream).id.removeprefix("cmpl-")
    stream.close()
    until(lambda: service.client.get(job_id).status == "cancelled", "the job is cancelled", 10)


def test_who_waits_no_longer_cancels_the_job(service: Service) -> None:
    key = new_key(service)
    asked = {"model": "tiny", "prompt": [PROMPT] * 8, "n": 8, "max_tokens": 480}
    with (
        connect(service, key, max_retries=0, timeout=0.3) as hasty,
        pytest.raises(openai.APITimeoutError),
    ):
        hasty.completions.create(extra_body=OURS, **asked)

    def statuses() -> list[str]:
        response = httpx.get(
            f"{service.url}/jobs", headers={"Authorization": f"Bearer {key}"}, trust_env=False
        )
        return [job["status"] for job in response.raise_for_status().json()["data"]]

    until(lambda: statuses() == ["cancelled"], "the job is cancelled", 10)


def test_a_call_with_a_key_of_its_own_is_one_job(client: OpenAI) -> None:
    headers = {"Idempotency-Key": "story-12"}
    first, again = (
        client.completions.create(prompt=PROMPT, extra_headers=headers, **ASKED) for _ in range(2)
    )
    assert first == again


# The file of OpenAI's guide to batches, for completions and with a model of ours.
BATCH_FILE = "".join(
    json.dumps(
        {
            "custom_id": f"request-{i}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "tiny", "prompt": text, "max_tokens": 40, "seed": 7, "top_k": 40}
            | {"temperature": 0.8, "ignore_eos": True},
        }
    )
    + "\n"
    for i, text in enumerate(("Hello world!", "You are an unhelpful assistant."), 1)
).encode()
CHAT_FILE = BATCH_FILE.replace(b"/v1/completions", b"/v1/chat/completions")
BATCH: dict[str, Any] = {"endpoint": "/v1/completions", "completion_window": "24h"}
UNFINISHED = ("validating", "in_progress", "cancelling")


def answers(output: str) -> dict[str, str]:
    """The texts of an output file by custom_id; each line parses with OpenAI's types."""
    found = {}
    for line in map(json.loads, output.splitlines()):
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        body = Completion.model_validate(line["response"]["body"], strict=True)
        [choice] = body.choices
        assert choice.finish_reason == "length"
        assert body.usage
        assert body.usage.completion_tokens == 40
        assert body.system_fingerprint
        found[line["custom_id"]] = choice.text
    return found


def expected_of_batch(engine: Engine) -> dict[str, str]:
    prompts = [json.loads(line)["body"]["prompt"] for line in BATCH_FILE.splitlines()]
    return {f"request-{i}": expected(engine, [text])[0] for i, text in enumerate(prompts, 1)}


def test_a_batch_as_openai_documents_it(client: OpenAI, reference: Engine) -> None:
    file = client.files.create(file=("batchinput.jsonl", BATCH_FILE), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, metadata={"description": "nightly eval job"}, **BATCH
    )
    until(lambda: client.batches.retrieve(batch.id).status not in UNFINISHED, "it ends", 30)
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.request_counts
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 2, "failed": 0}
    assert batch.error_file_id is None
    assert batch.output_file_id
    assert answers(client.files.content(batch.output_file_id).text) == expected_of_batch(reference)
    assert batch.id in [found.id for found in client.batches.list()]
    assert {file.id, batch.output_file_id} <= {found.id for found in client.files.list()}
    assert client.files.delete(file.id).deleted


def test_a_batch_with_the_async_client(service: Service, reference: Engine) -> None:
    async def run() -> dict[str, str]:
        async with AsyncOpenAI(
            api_key=service.api_key,
            base_url=f"{service.url}/v1",
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        ) as client:
            file = await client.files.create(file=("rows.jsonl", BATCH_FILE), purpose="batch")
            batch = await client.batches.create(input_file_id=file.id, **BATCH)
            async with asyncio.timeout(30):
                while batch.status in UNFINISHED:
                    await asyncio.sleep(0.05)
                    batch = await client.batches.retrieve(batch.id)
            assert batch.output_file_id
            async with client.files.with_streaming_response.content(
                batch.output_file_id
            ) as response:
                output = b"".join([piece async for piece in response.iter_bytes()])
            assert [found.id async for found in client.batches.list(limit=1)]
            return answers(output.decode())

    assert asyncio.run(run()) == expected_of_batch(reference)


def test_a_batch_of_chats_is_refused(client: OpenAI) -> None:
    file = client.files.create(file=("chats.jsonl", CHAT_FILE), purpose="batch")
    asked: Any = {**BATCH, "endpoint": "/v1/chat/completions"}
    with pytest.raises(openai.BadRequestError, match="prompt") as caught:
        client.batches.create(input_file_id=file.id, **asked)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "endpoint")
    batch = client.batches.create(input_file_id=file.id, **BATCH)
    assert batch.status == "failed"
    assert batch.errors
    assert [error.line for error in batch.errors.data or ()] == [1, 2]


def test_a_batch_is_cancelled(client: OpenAI) -> None:
    rows = [json.loads(BATCH_FILE.splitlines()[0]) for _ in range(400)]
    for i, row in enumerate(rows):
        row["custom_id"] = f"row-{i}"
        row["body"]["max_tokens"] = 400
    sent = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = client.files.create(file=("rows.jsonl", sent), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, **BATCH)
    until(lambda: client.batches.retrieve(batch.id).in_progress_at, "it runs", 30)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    until(lambda: client.batches.retrieve(batch.id).status == "cancelled", "it has ended", 30)
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts
    assert counts.failed > 0
    assert counts.completed + counts.failed == 400
