"""Which tokens make up which batch: all of them, in an order that a position alone decides."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.batches import Batches, Position, window_starts

EOS = 0
START = Position(0, 0)
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=30)


def text(lengths: list[int]) -> NDArray[np.uint16]:
    """Documents of these lengths, their ends included; every other token occurs once."""
    tokens = np.arange(1, sum(lengths) + 1, dtype=np.uint16)
    tokens[np.cumsum(lengths) - 1] = EOS
    return tokens


def batches(tokens: NDArray[np.uint16], position: Position = START, batch: int = 3) -> Batches:
    return Batches(
        tokens,
        lambda ids, rng: ids.astype(np.int64) * 2 + rng.integers(0, 2, ids.shape),
        eos=EOS,
        batch=batch,
        time=8,
        seed=1,
        position=position,
    )


def test_a_window_starts_with_a_document_or_goes_on_with_a_long_one() -> None:
    begins = np.cumsum([0, 5, 3, 20, 4, 4, 2, 9])
    assert window_starts(begins, 10).tolist() == [0, 8, 18, 28]
    assert window_starts(begins, 8).tolist() == [0, 8, 16, 24, 32, 38]


@settings(deadline=None)
@given(LENGTHS)
def test_every_token_is_predicted_in_an_epoch(lengths: list[int]) -> None:
    begins = np.cumsum([0, *lengths])
    predicted = {at for s in window_starts(begins, 8).tolist() for at in range(s + 1, s + 9)}
    firsts = {0} | {int(s) for s in window_starts(begins, 8)}
    everything = set(range(begins[-1]))
    last = max(predicted, default=0)
    assert {at for at in everything - predicted - firsts if at <= last} == set()
    assert begins[-1] - 1 - last < 9  # what is left does not fill a window


@settings(deadline=None)
@given(LENGTHS.filter(lambda lengths: sum(lengths) > 8), st.integers(1, 7))
def test_from_any_position_the_same_batches_come(lengths: list[int], batch: int) -> None:
    tokens = text(lengths)
    first = batches(tokens, batch=batch)
    positions, rows = [], []
    for _ in range(6):
        positions.append(first.position)
        rows.append(first.next())
    for i, position in enumerate(positions):
        later = batches(tokens, position, batch)
        assert all((later.next() == expected).all() for expected in rows[i:])
    assert all(each.shape == (batch, 9) for each in rows)


def test_windows_are_documents_in_a_new_order_every_epoch() -> None:
    lengths = [4, 30, 2, 7, 1, 12, 9]
    tokens = text(lengths)
    documents = [tuple(d) for d in np.split(tokens, np.cumsum(lengths)[:-1])]
    source = batches(tokens, batch=1)
    orders = set()
    while source.position.epoch < 6:
        row = source.next()[0] // 2
        pieces = [tuple(g) for end, g in itertools.groupby(row, lambda t: t == EOS) if not end]
        orders.add(tuple(row))
        for piece in pieces[1:]:  # the first may go on where a window cut a long document
            assert any(document[: len(piece)] == piece for document in documents)
    assert len(orders) > 12


def test_the_windows_of_the_first_epoch_are_counted_from_any_position() -> None:
    tokens = text([4, 30, 2, 7, 1, 12, 9])
    source = batches(tokens, batch=1)
    while source.position.epoch == 0:
        last = source.position
        source.next()
    assert source.windows == last.window
    assert batches(tokens, Position(5, 1)).windows == source.windows
    assert batches(tokens, Position(5, 1)).position == Position(5, 1)


def test_a_text_that_fills_no_window_is_refused() -> None:
    with pytest.raises(ValueError, match="has 8 tokens, but a window takes 9"):
        batches(text([3, 5]))
    assert batches(text([3, 6])).next().shape == (3, 9)
