"""The thread that sends text: when, how often, and what a Redis that is away costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import pytest

from slm_core import Completion, Tokenizer
from slm_core.scheduler import Usage
from slm_jobs.schemas import JobSpec, Work
from tests.worker.fakes import FakeStream
from tests.worker.test_batcher import until
from worker.streamer import INTERVAL_SECONDS, JobStream, Streamer

TEXT = "Once upon a time there was a fox who liked to walk in the forest every day. " * 8
IDS = Tokenizer().encode(TEXT)


def work(stream: bool = True) -> Work:
    return Work(
        id="j", attempt=1, model="m", spec=JobSpec(model="m", prompts=["p"], stream=stream, seed=1)
    )


@pytest.fixture
def kept() -> FakeStream:
    return FakeStream()


@pytest.fixture
def streamer(kept: FakeStream) -> Iterator[Streamer]:
    streamer = Streamer(cast(Any, kept), lambda model: f"{model}/1")
    streamer.start()
    yield streamer
    streamer.stop(5)


def decode(stream: JobStream, first: int, last: int, seconds: float = 0.0) -> None:
    for count in range(first, last + 1):
        stream.take(0, count, IDS[count - 1])
        time.sleep(seconds)


def completion(count: int) -> list[Completion]:
    text = Tokenizer().decode(IDS[:count])
    return [Completion(text, IDS[:count], "length", Usage(1, count))]


def test_the_first_token_goes_out_at_once(streamer: Streamer, kept: FakeStream) -> None:
    with streamer.open(work()) as other, streamer.open(work()) as stream:
        assert other is not None
        assert stream is not None
        decode(other, 1, 1)
        until(lambda: len(kept.calls) == 1)  # the next round is 50 ms away
        kept.texts, kept.counts = {}, {}  # this keeps one stream
        began = time.monotonic()
        decode(stream, 1, 1)
        until(lambda: len(kept.calls) == 2)
        assert kept.calls[1] - began < INTERVAL_SECONDS / 2
    assert kept.texts == {0: "Once"}
    assert kept.fingerprint == "m/1"


def test_tokens_go_out_together_at_most_20_times_a_second(
    streamer: Streamer, kept: FakeStream
) -> None:
    with streamer.open(work()) as stream:
        assert stream is not None
        decode(stream, 1, 100, seconds=0.004)
        stream.finish(completion(100))
    assert kept.texts == {0: completion(100)[0].text}
    sent = kept.calls[:-1]  # the end waits for nobody
    assert all(b - a >= INTERVAL_SECONDS for a, b in pairwise(sent))
    assert 3 <= len(sent) <= 10


def test_several_outputs_share_the_20_events_a_second(streamer: Streamer, kept: FakeStream) -> None:
    outputs, job = 4, work()
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"n": outputs})})
    with streamer.open(job) as stream:
        assert stream is not None
        for count in range(1, len(IDS) + 1):
            for output in range(outputs):
                stream.take(output, count, IDS[count - 1])
            time.sleep(0.006)
        sent = list(kept.calls)
    assert len(sent) >= 3
    # the first send may hold fewer outputs; each later one holds all of them
    assert all(b - a >= outputs * INTERVAL_SECONDS for a, b in pairwise(sent[1:]))


def test_the_end_sends_the_rest_at_once(streamer: Streamer, kept: FakeStream) -> None:
    with streamer.open(work()) as stream:
        assert stream is not None
        decode(stream, 1, 40)
        stream.finish(completion(40))
        assert kept.texts == {0: completion(40)[0].text}
        calls = len(kept.calls)
        time.sleep(2 * INTERVAL_SECONDS)
        assert len(kept.calls) == calls  # nothing comes after it


def test_while_redis_is_away_text_stays_and_is_sent_later(
    streamer: Streamer, kept: FakeStream
) -> None:
    with streamer.open(work()) as stream:
        assert stream is not None
        kept.away = True
        decode(stream, 1, 50)
        time.sleep(0.1)
        assert kept.texts == {}
        kept.away = False
        until(lambda: kept.counts == {0: 50})
        assert kept.texts == {0: completion(50)[0].text}


def test_jobs_without_a_stream_cost_nothing(streamer: Streamer, kept: FakeStream) -> None:
    with streamer.open(work(stream=False)) as stream:
        assert stream is None


def test_a_mistake_silences_its_own_stream_only(
    streamer: Streamer,
    kept: FakeStream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with streamer.open(work()) as bad, streamer.open(work()) as good:
        assert bad is not None
        assert good is not None
        monkeypatch.setattr(bad, "_append", lambda _: 1 / 0)
        decode(bad, 1, 1)
        until(lambda: "its stream failed" in caplog.text)
        decode(good, 1, 30)
        until(lambda: kept.counts == {0: 30})
