"""A compact vocabulary stands for the whole one, exactly."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from slm_core import GPT, GPTConfig
from training.metrics import text_loss
from training.validation import Validation
from training.vocabulary import CompactVocabulary, distinct_types

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=16, vocab_size=500)


def compact(keep: NDArray[np.int64] | None = None) -> tuple[CompactVocabulary, GPT]:
    rng = random.Random(0)
    tokens = np.array([rng.choice(range(0, 500, 7)) for _ in range(2000)], np.uint16)
    vocabulary = CompactVocabulary(tokens, CONFIG.vocab_size, keep)
    torch.manual_seed(0)
    return vocabulary, GPT(vocabulary.config(CONFIG)).eval()


@pytest.mark.parametrize("keep", [None, np.arange(0, 500, 2), np.arange(500)])
def test_the_loss_equals_that_of_the_expanded_model(keep: NDArray[np.int64] | None) -> None:
    vocabulary, model = compact(keep)
    full = vocabulary.expand(model, CONFIG)
    tokens = np.random.default_rng(0).integers(0, 500, (3, 17)).astype(np.uint16)  # unseen ones too
    ids = torch.from_numpy(vocabulary.encode(tokens))
    expected = F.cross_entropy(
        full(torch.from_numpy(tokens[:, :-1].astype(np.int64))).flatten(0, 1),
        torch.from_numpy(tokens[:, 1:].astype(np.int64)).flatten(),
    )
    loss = vocabulary.loss(model, ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    total = vocabulary.total_loss(model, ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(total, expected * 48, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [None, np.arange(500)])
def test_shrinking_undoes_expanding(keep: NDArray[np.int64] | None) -> None:
    vocabulary, model = compact(keep)
    again = GPT(model.config).eval()
    vocabulary.shrink(vocabulary.expand(model, CONFIG), again)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_the_expanded_model_is_a_copy() -> None:
    vocabulary, model = compact()
    full = vocabulary.expand(model, CONFIG)
    before = full.ln_f.bias.clone()
    with torch.no_grad():
        model.ln_f.bias += 1
    assert torch.equal(full.ln_f.bias, before)


def test_a_checkpoints_own_types_are_told_apart() -> None:
    vocabulary, model = compact()
    full = vocabulary.expand(model, CONFIG)
    assert distinct_types(full).tolist() == list(range(0, 500, 7))
    other = np.array([1, 2, 3, 7], np.uint16)
    tuned = CompactVocabulary(other, 500, distinct_types(full))
    assert len(tuned.used) == 72 + 3
    smaller = GPT(tuned.config(CONFIG)).eval()
    tuned.shrink(full, smaller)
    again = tuned.expand(smaller, CONFIG)
    torch.testing.assert_close(again.wte.weight, full.wte.weight)
    assert len(distinct_types(GPT(CONFIG))) == 500


def test_rare_types_sometimes_train_the_shared_row() -> None:
    tokens = np.array([1] * 100 + [2], np.uint16)
    text = np.array([1, 2] * 1000, np.uint16)
    vocabulary = CompactVocabulary(tokens, 10)
    encoded = vocabulary.encode(text, np.random.default_rng(0))
    assert (encoded[::2] == 0).all()
    assert 200 < (encoded[1::2] == vocabulary.shared).sum() < 400
    known = CompactVocabulary(tokens, 10, np.array([2]))
    assert (known.encode(text, np.random.default_rng(0)) == known.encode(text)).all()


def test_strange_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="token id 10 is outside the vocabulary of 10"):
        CompactVocabulary(np.array([1, 10], np.uint16), 10)


def test_validation_equals_the_evaluation_of_the_whole_model() -> None:
    eos = 50256
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, context_length=6)
    documents = [[1, 2, 3, eos], [7, eos], [4, 9] * 5 + [eos], [eos], [5, 6, 5, eos]]
    tokens = np.array([t for d in documents for t in d], np.uint16)
    vocabulary = CompactVocabulary(tokens[:12], config.vocab_size)  # some are unknown
    model = GPT(vocabulary.config(config)).eval()
    arrays = [np.array(d, np.uint16) for d in documents]
    for at_once in (1, 10_000):
        validation = Validation(
            arrays,
            vocabulary,
            context_length=6,
            tokens_at_once=at_once,
            device=torch.device("cpu"),
        )
        loss = validation.loss(model, lambda: None)
        full = vocabulary.expand(model, config)
        expected = text_loss(full.logits, arrays, context_length=6).mean
        assert loss == pytest.approx(expected, rel=1e-5)
        assert (validation.documents, validation.tokens) == (4, 3 + 1 + 6 + 3)
