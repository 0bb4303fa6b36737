"""Whatever the tokens, stop strings, flushes, faults and redeliveries: a stream holds its text."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_core import Completion, SamplingParams, Tokenizer
from slm_core.scheduler import Sequence
from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import JobSpec, Work
from tests.worker.fakes import FakeStream
from worker.output_text import OutputText
from worker.streamer import JobStream

TOKENIZER = Tokenizer()
# single bytes split characters; words make stop strings likely
TOKENS = st.one_of(
    st.integers(0, 255),
    st.sampled_from(TOKENIZER.encode(" the cat sat on a mat. Ünïcödé 🐈 日本語")),
    st.integers(0, 50256),
)


def stops_for(data: st.DataObject, texts: list[str]) -> tuple[str, ...]:
    """Strings that occur, nearly occur, or do not."""
    stops = []
    for _ in range(data.draw(st.integers(0, 3), label="stops")):
        text = data.draw(st.sampled_from(texts))
        at = data.draw(st.integers(0, len(text)))
        near = data.draw(st.sampled_from(["", "", "x", " the"]))
        stops.append(text[at : at + data.draw(st.integers(1, 6))] + near)
    return tuple(stop for stop in stops if stop)


class Attempt:
    """One run of an engine and a stream's part in it, token by token."""

    def __init__(self, stream: FakeStream, spec: JobSpec, tokens: list[list[int]]) -> None:
        work = Work(id="j", attempt=stream.attempt, model="m", spec=spec)
        self.stream = JobStream(work, cast(Any, stream), lambda: "f", TOKENIZER, lambda _: None)
        self.tokens = tokens
        self.sequences = [self._sequence(spec, i, len(ids)) for i, ids in enumerate(tokens)]

    def _sequence(self, spec: JobSpec, index: int, count: int) -> Sequence:
        stop = tuple(spec.stop)
        params = SamplingParams(max_tokens=max(1, count), stop=stop, ignore_eos=True)
        return Sequence(index, [1], params)

    def step(self, output: int) -> None:
        sequence, tokens = self.sequences[output], self.tokens[output]
        if sequence.ended or len(sequence.token_ids) == len(tokens):
            return
        token = tokens[len(sequence.token_ids)]
        sequence.append(token, TOKENIZER)
        self.stream.read(output, len(sequence.token_ids), token)

    def run_again(self, output: int) -> None:
        """After a fault the engine starts anew, and tells the same tokens."""
        for count, token in enumerate(self.sequences[output].token_ids, 1):
            self.stream.read(output, count, token)

    def completions(self) -> list[Completion]:
        return [sequence.completion(TOKENIZER) for sequence in self.sequences]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_pieces_of_an_output_are_its_text(data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.lists(TOKENS, max_size=25), min_size=1, max_size=3))
    stops = stops_for(data, [TOKENIZER.decode(ids) for ids in tokens])
    spec = JobSpec(model="m", prompts=["p"] * len(tokens), stop=list(stops), stream=True, seed=1)
    stream = FakeStream()
    attempt = Attempt(stream, spec, tokens)
    whole = Attempt(FakeStream(), spec, tokens)
    for output, _ in itertools.product(range(len(tokens)), range(25)):
        whole.step(output)
    full = [completion.text for completion in whole.completions()]

    acts = ["step"] * 8 + ["flush", "flush", "away", "lost", "fault", "redelivery"]
    for act in data.draw(st.lists(st.sampled_from(acts), max_size=60), label="acts"):
        output = data.draw(st.integers(0, len(tokens) - 1), label="output")
        if act == "step":
            attempt.step(output)
        elif act == "fault":
            attempt.run_again(output)
        elif act == "redelivery":
            stream.attempt += 1
            attempt = Attempt(stream, spec, tokens)
        else:
            stream.away, stream.lose_reply = act == "away", act == "lost"
            try:
                attempt.stream.flush()
            except StoreUnavailable:
                assert act != "flush"
            stream.away = stream.lose_reply = False
        for index, text in stream.texts.items():
            assert full[index].startswith(text)

    if data.draw(st.booleans(), label="runs to its end"):  # else it is cancelled where it stands
        for output, _ in itertools.product(range(len(tokens)), range(25)):
            attempt.step(output)
    completions = attempt.completions()
    ahead = any(stream.counts.get(i, 0) > len(c.token_ids) for i, c in enumerate(completions))
    if data.draw(st.booleans(), label="the last reply is lost"):
        stream.lose_reply = True
        try:
            attempt.stream.finish(completions)
        except StoreUnavailable:
            stream.lose_reply = False
            attempt.stream.finish(completions)
    else:
        attempt.stream.finish(completions)
    texts = [stream.texts.get(index, "") for index in range(len(tokens))]
    assert texts == [completion.text for completion in completions]
    assert stream.restarts == ahead


def test_text_waits_only_as_long_as_it_must() -> None:
    output = OutputText(0, [" mat"], TOKENIZER)
    ids = TOKENIZER.encode("The cat sat on a map")
    shown = []
    for count, token in enumerate(ids, 1):
        output.push(count, token)
        piece = output.piece()
        shown.append(piece.text if piece else "")
    assert shown[:2] == ["The", "The cat"]
    assert shown[-1] == "The cat sat on a map"

    held = OutputText(0, ["cat sat"], TOKENIZER)
    for count, token in enumerate(ids[:2], 1):
        held.push(count, token)
    piece = held.piece()
    assert piece is not None
    assert (piece.text, piece.end) == ("The", 1)  # " cat" may become " cat sat"


def test_half_a_character_waits() -> None:
    output = OutputText(0, [], TOKENIZER)
    ids = TOKENIZER.encode("a🐈")
    assert len(ids) > 2
    for count, token in enumerate(ids[:-1], 1):
        output.push(count, token)
        piece = output.piece()
        assert piece is not None
        assert (piece.end, piece.text) == (1, "a")
    output.push(len(ids), ids[-1])
    assert (piece := output.piece()) is not None
    assert piece.text == "a🐈"


def test_a_stale_attempt_sends_nothing_more() -> None:
    stream = FakeStream()
    spec = JobSpec(model="m", prompts=["p"], stream=True, seed=1)
    attempt = Attempt(stream, spec, [[1, 2, 3]])
    attempt.step(0)
    stream.attempt = 2
    attempt.stream.flush()
    calls = len(stream.calls)
    attempt.step(0)
    attempt.stream.flush()
    assert len(stream.calls) == calls
    assert stream.texts == {}


@pytest.mark.parametrize("known", [True, False])
def test_a_redelivery_asks_what_the_stream_holds(known: bool) -> None:
    stream = FakeStream()
    spec = JobSpec(model="m", prompts=["p"], stream=True, seed=1)
    ids = TOKENIZER.encode("Once upon a time")
    first = Attempt(stream, spec, [ids])
    for _ in range(2 if known else 0):
        first.step(0)
    first.stream.flush()
    stream.attempt = 2
    again = Attempt(stream, spec, [ids])
    for _ in range(3):
        again.step(0)
        again.stream.flush()
    assert stream.texts == {0: "Once upon a"}
    assert stream.restarts == 0


@pytest.mark.parametrize("reply", ["comes", "is lost"])
def test_cancelled_before_it_came_to_where_a_lost_attempt_had_been(reply: str) -> None:
    stream = FakeStream()
    spec = JobSpec(model="m", prompts=["p", "p"], stream=True, seed=1)
    ids = TOKENIZER.encode("Once upon a time there was")
    first = Attempt(stream, spec, [ids, ids])
    for _ in range(5):
        first.step(0)
    first.stream.flush()
    stream.attempt = 2
    again = Attempt(stream, spec, [ids, ids])
    for output in (0, 0, 1):
        again.step(output)
    stream.lose_reply = reply == "is lost"
    if stream.lose_reply:
        with pytest.raises(StoreUnavailable):
            again.stream.finish(again.completions())
        stream.lose_reply = False
    again.stream.finish(again.completions())
    assert stream.texts == {0: "Once upon", 1: "Once"}
    assert stream.restarts == 1
