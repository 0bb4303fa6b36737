"""The engine against a naive twin that has no cache, no padding and no batch."""

from __future__ import annotations

import random

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_core import GPT, Completion, Engine, GPTConfig, SamplingParams
from slm_core.errors import InvalidParams, PromptTooLong
from slm_core.linear import PRECISIONS, Precision
from tests.slm_core.conftest import KERNELS, MakeEngine, precisions, random_model, torch_threads

EOS = 50256


@torch.no_grad()
def naive_greedy(model: GPT, prompt: list[int], max_tokens: int) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + max_tokens:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def random_prompts(
    count: int, lengths: list[int], seed: int = 0, vocab: int = 50257
) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(vocab) for _ in range(rng.choice(lengths))] for _ in range(count)]


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


@pytest.mark.parametrize(
    ("config", "slots"),
    [
        (GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=128), 8),
        (GPTConfig(n_layer=1, n_head=1, n_embd=32, context_length=100, vocab_size=300), 5),
        (GPTConfig(n_layer=3, n_head=4, n_embd=128, context_length=64, vocab_size=1000), 1),
        (GPTConfig(n_layer=2, n_head=3, n_embd=96, context_length=70, vocab_size=50), 64),
    ],
)
def test_greedy_equals_the_naive_loop(
    config: GPTConfig, slots: int, make_engine: MakeEngine
) -> None:
    model = random_model(config, seed=slots)
    engine = make_engine(model, slots=slots)
    lengths = [n for n in (1, 2, 15, 16, 17, 33, 63, 64, 65, 90) if n + 6 <= config.context_length]
    prompts = random_prompts(3 * slots if slots < 64 else 20, lengths, vocab=config.vocab_size)
    budgets = [1 + i % 6 for i in range(len(prompts))]
    completions = engine.generate(prompts, [greedy(n) for n in budgets])
    for prompt, budget, completion in zip(prompts, budgets, completions, strict=True):
        assert completion.token_ids == naive_greedy(model, prompt, budget)
        assert completion.finish_reason == "length"


def test_a_prompt_may_fill_the_context_to_the_last_token(
    model: GPT, make_engine: MakeEngine
) -> None:
    engine = make_engine(model, slots=2)
    length = model.config.context_length
    for prompt_tokens in (1, length - 1):
        [prompt] = random_prompts(1, [prompt_tokens])
        budget = length - prompt_tokens
        [completion] = engine.generate([prompt], greedy(budget))
        assert completion.token_ids == naive_greedy(model, prompt, budget)


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(
    model: GPT, make_engine: MakeEngine
) -> None:
    engine = make_engine(model, slots=2)
    with pytest.raises(PromptTooLong, match=r"100 tokens and max_tokens 29 make 129.* holds 128"):
        engine.generate([[1], [1] * 100], greedy(29))
    assert not engine.has_work


@pytest.mark.parametrize("prompt", ["", [], [50257], [-1]])
def test_bad_prompts_are_refused(
    model: GPT, prompt: str | list[int], make_engine: MakeEngine
) -> None:
    with pytest.raises(InvalidParams):
        make_engine(model, slots=1).add(prompt, greedy(1))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_same_seed_gives_the_same_text_in_any_company(model: GPT, data: st.DataObject) -> None:
    """Alone or among others, in few slots or many, with one thread or two: bitwise the same."""
    kernels = data.draw(st.sampled_from(KERNELS), label="kernels")
    precision = data.draw(st.sampled_from(precisions(kernels)), label="precision")
    how = {"kernels": kernels, "precision": precision}
    count = data.draw(st.integers(1, 24), label="prompts")
    slots = data.draw(st.sampled_from([1, 3, 8, 13, 64]), label="slots")
    threads = data.draw(st.sampled_from([1, 2]), label="threads")
    rng = random.Random(count)
    prompts = random_prompts(count, [1, 5, 16, 30, 64, 70], seed=count)
    params = [
        SamplingParams(
            max_tokens=rng.choice([1, 7, 20]),
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_k=rng.choice([1, 5, 40, 64, 65, 200, None]),
            top_p=rng.choice([0.5, 0.95, 1.0]),
            seed=rng.randrange(2**63),
            ignore_eos=True,
        )
        for _ in prompts
    ]
    alone = Engine(model, slots=1, **how)
    expected = [alone.generate([p], q)[0] for p, q in zip(prompts, params, strict=True)]
    with torch_threads(threads):
        assert Engine(model, slots=slots, **how).generate(prompts, params) == expected


def test_seeds_differ_and_a_missing_seed_is_drawn(model: GPT, make_engine: MakeEngine) -> None:
    engine = make_engine(model, slots=8)
    texts = {
        tuple(engine.generate([[1, 2, 3]], SamplingParams(max_tokens=8, seed=seed))[0].token_ids)
        for seed in (1, 2, 3, None, None)
    }
    assert len(texts) == 5


def test_end_of_text_stops_and_is_not_part_of_the_text(make_engine: MakeEngine) -> None:
    model = random_model(GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=32))
    with torch.no_grad():  # make end-of-text the likeliest everywhere
        model.ln_f.weight.zero_()
        model.ln_f.bias.copy_(model.wte.weight[EOS])
        model.wte.weight[EOS] *= 10
    engine = make_engine(model, slots=2)
    [stopped] = engine.generate("Once", SamplingParams(max_tokens=5, temperature=0))
    assert (stopped.text, stopped.token_ids, stopped.finish_reason) == ("", [], "stop")
    assert stopped.usage.total_tokens == 1
    [ignored] = engine.generate("Once", greedy(5))
    assert ignored.token_ids == [EOS] * 5
    assert ignored.finish_reason == "length"


def test_a_stop_string_is_cut_and_costs_nobody_else(model: GPT, make_engine: MakeEngine) -> None:
    engine = make_engine(model, slots=4)
    [free] = engine.generate("Once", greedy(20))
    stop = free.text[9:14]
    expected = free.text[: free.text.index(stop)]
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, stop=("§§", stop))
    stopped, mate = engine.generate(["Once", "Once"], [params, greedy(20)])
    assert (stopped.text, stopped.finish_reason) == (expected, "stop")
    assert len(stopped.token_ids) < 20
    assert mate == free


def test_cancel_keeps_the_partial_text_and_frees_the_slot(
    model: GPT, make_engine: MakeEngine
) -> None:
    engine = make_engine(model, slots=1)
    first, second = engine.add("Once", greedy(50)), engine.add("Twice", greedy(3))
    for _ in range(5):
        engine.step()
    engine.cancel(first)
    engine.cancel(12345)
    done: dict[int, Completion] = {}
    while engine.has_work:
        done.update((e.sequence, e.completion) for e in engine.step() if e.completion)
    assert done[first].finish_reason == "cancelled"
    assert 5 <= len(done[first].token_ids) < 50
    assert engine.generate("Twice", greedy(3)) == [done[second]]


def test_waiting_work_can_be_cancelled(model: GPT, make_engine: MakeEngine) -> None:
    engine = make_engine(model, slots=1)
    engine.add("Once", greedy(3))
    waiting = engine.add("Twice", greedy(2))
    engine.cancel(waiting)
    events = engine.step()
    assert [e.completion.finish_reason for e in events if e.completion] == ["cancelled"]


def test_priority_goes_first_then_age(model: GPT, make_engine: MakeEngine) -> None:
    engine = make_engine(model, slots=1)
    ids = [engine.add("Once", greedy(2), priority=p) for p in (0, 5, -1, 5, 0)]
    ended = []
    while engine.has_work:
        ended += [e.sequence for e in engine.step() if e.completion]
    assert ended == [ids[i] for i in (1, 3, 0, 4, 2)]


def test_who_has_priority_finds_a_reserved_slot_at_once(
    model: GPT, make_engine: MakeEngine
) -> None:
    engine = make_engine(model, slots=4, reserved_slots=2)
    bulk = [engine.add("Once", greedy(9), priority=-1) for _ in range(5)]
    assert {event.sequence for event in engine.step()} == {*bulk[:2]}
    urgent = [engine.add("Once", greedy(9)) for _ in range(2)]
    assert {event.sequence for event in engine.step()} == {*bulk[:2], *urgent}
    engine.cancel(bulk[0])
    engine.step()
    assert {event.sequence for event in engine.step()} == {bulk[1], *urgent}
    done = set()
    while engine.has_work:
        done |= {event.sequence for event in engine.step() if event.completion}
    assert done == {*bulk[1:], *urgent}
    with pytest.raises(ValueError, match="reserved_slots"):
        make_engine(model, reserved_slots=-1)


def test_a_lone_slot_cannot_be_reserved(model: GPT, make_engine: MakeEngine) -> None:
    engine = make_engine(model, slots=1, reserved_slots=4)
    engine.add("Once", greedy(1), priority=-1)
    assert engine.step()


def test_a_deadline_keeps_the_partial_text(model: GPT, make_engine: MakeEngine) -> None:
    now = 100.0
    engine = make_engine(model, slots=1, clock=lambda: now)
    running = engine.add("Once", greedy(50), deadline=103.0)
    waiting = engine.add("Twice", greedy(2), deadline=102.0)
    in_time = engine.add("Thrice", greedy(2), deadline=1e9)
    done: dict[int, tuple[str, int]] = {}
    while engine.has_work:
        for event in engine.step():
            if event.completion:
                c = event.completion
                done[event.sequence] = (c.finish_reason, len(c.token_ids))
        now += 1
    assert done == {waiting: ("deadline", 0), running: ("deadline", 3), in_time: ("length", 2)}


def test_every_live_sequence_gets_one_token_a_step(model: GPT, make_engine: MakeEngine) -> None:
    engine = make_engine(model, slots=3)
    for _ in range(4):
        engine.add("Once", greedy(3))
    tokens = [[e.sequence for e in engine.step() if e.token is not None] for _ in range(6)]
    assert tokens == [[0, 1, 2]] * 3 + [[3]] * 3


def test_a_long_prompt_waits_for_the_next_step(make_engine: MakeEngine) -> None:
    """So that what runs is never held up by more than the prefill budget."""
    model = random_model(GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=1024))
    engine = make_engine(model, slots=4)
    for length in (900, 900, 10):
        engine.add([1] * length, greedy(8))
    assert [len(engine.step()) for _ in range(3)] == [1, 2 + 1, 3]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_those_that_serve(
    model: GPT, make_engine: MakeEngine, precision: Precision
) -> None:
    engine = make_engine(model, slots=2, precision=precision)
    [ids] = random_prompts(1, [40])
    logits = engine.logits(ids)
    torch.testing.assert_close(logits, model.logits(ids), rtol=0.1, atol=2.0)
    expected = [logits[i].argmax() for i in range(3, 40)]
    drawn = [engine.generate([ids[: i + 1]], greedy(1))[0].token_ids[0] for i in range(3, 40)]
    assert drawn == expected
    with pytest.raises(PromptTooLong):
        engine.logits([1] * 129)
    with pytest.raises(InvalidParams):
        engine.logits([50257])
    engine.add("Once", greedy(5))
    with pytest.raises(RuntimeError, match="idle"):
        engine.logits(ids)


def test_auto_is_the_fastest_precision_that_costs_little() -> None:
    config = GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=16)
    model = GPT(config)

    def auto(kernels: str, **perplexity: float) -> str:
        return Engine(model, kernels=kernels, perplexity=perplexity).precision  # type: ignore[arg-type]

    for kernels in KERNELS[1:]:
        assert auto(kernels, fp32=10.0, int8=10.09) == "int8"
        assert auto(kernels, fp32=10.0, int8=10.11) == "fp32"
        assert auto(kernels, int8=10.0) == auto(kernels) == "fp32"
    assert auto("none", fp32=10.0, int8=10.0) != "int8"
    with pytest.raises(ValueError, match="no precision 'fp8'; there are auto, fp32, bf16, int8"):
        Engine(model, precision="fp8")  # type: ignore[arg-type]


def test_generate_needs_an_idle_engine_and_reset_makes_one(
    model: GPT, make_engine: MakeEngine
) -> None:
    engine = make_engine(model, slots=1)
    engine.add("Once", greedy(5))
    with pytest.raises(RuntimeError, match="idle"):
        engine.generate("Once", greedy(1))
    engine.reset()
    assert engine.generate("Once", greedy(1))[0].finish_reason == "length"


def test_params_are_one_for_all_or_one_each(model: GPT, make_engine: MakeEngine) -> None:
    engine = make_engine(model, slots=2)
    with pytest.raises(ValueError, match="2 prompts, but 1 params"):
        engine.generate(["a", "b"], [greedy(1)])
    assert engine.generate([], greedy(1)) == []
    assert len(engine.generate([7, 8], greedy(1))) == 1


def test_stop_strings_may_span_tokens_and_split_characters(
    model: GPT, make_engine: MakeEngine
) -> None:
    """The text with a stop string that never comes equals the text without one."""
    engine = make_engine(model, slots=8)
    prompts = random_prompts(8, [3, 9], seed=5)
    params = SamplingParams(max_tokens=40, seed=3, ignore_eos=True)
    free = engine.generate(prompts, params)
    never = SamplingParams(max_tokens=40, seed=3, ignore_eos=True, stop=("never said",))
    assert [c.text for c in engine.generate(prompts, never)] == [c.text for c in free]
    for prompt, completion in zip(prompts, free, strict=True):
        for start in range(0, len(completion.text) - 6, 11):
            stop = completion.text[start : start + 6]
            cut = SamplingParams(max_tokens=40, seed=3, ignore_eos=True, stop=(stop,))
            [stopped] = engine.generate([prompt], cut)
            if "\ufffd" in stop:  # part of a character that later tokens may still complete
                continue
            assert stopped.text == completion.text[: completion.text.index(stop)]


def test_events_carry_the_text_and_nothing_else(model: GPT, make_engine: MakeEngine) -> None:
    engine = make_engine(model, slots=4)
    sequence = engine.add("Once", SamplingParams(max_tokens=30, seed=11))
    tokens: list[int] = []
    while engine.has_work:
        for event in engine.step():
            assert event.sequence == sequence
            if event.completion:
                assert event.completion.token_ids == tokens
            elif event.token is not None:
                tokens.append(event.token)


def test_slots_cost_no_memory_until_they_are_used(make_engine: MakeEngine) -> None:
    config = GPTConfig(n_layer=8, n_head=8, n_embd=512, context_length=1024, vocab_size=100)
    model = GPT(config)
    before = psutil.Process().memory_info().rss
    engine = make_engine(model, slots=64)  # 2 GiB
    engine.generate([[1, 2, 3]], greedy(4))
    assert psutil.Process().memory_info().rss - before < 2**29


def test_a_vocabulary_that_is_not_gpt2s_is_refused(make_engine: MakeEngine) -> None:
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=60_000)
    with pytest.raises(ValueError, match="60000"):
        make_engine(GPT(config))
