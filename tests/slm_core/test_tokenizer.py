from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from slm_core import Tokenizer

tokenizer = Tokenizer()
any_text = st.text(st.characters(exclude_categories=["Cs"]))


def test_ids_are_gpt2s() -> None:
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)


def test_text_cannot_forge_a_control_token() -> None:
    ids = tokenizer.encode("The end<|endoftext|>")
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "The end<|endoftext|>"
    assert tokenizer.encode_batch(["a<|endoftext|>"]) == [tokenizer.encode("a<|endoftext|>")]


@given(any_text)
def test_text_survives_a_round_trip(text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.integers(0, 50256), max_size=30))
def test_streamed_pieces_join_to_the_whole(ids: list[int]) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


def test_streaming_never_splits_a_character() -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode("né 🦊 狐!")]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == "né 🦊 狐!"


def test_the_tokenizer_costs_no_torch() -> None:
    code = "import sys, slm_core.tokenizer; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
