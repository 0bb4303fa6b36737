"""GPT-2's byte-pair encoding, from ranks in the package. Needs tiktoken and nothing else."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import as_file, files

import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext.openai_public import r50k_pat_str

RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
END_OF_TEXT = "<|endoftext|>"


@cache
def _gpt2() -> tiktoken.Encoding:
    with as_file(files("slm_core") / "data" / "gpt2_bpe" / "r50k_base.tiktoken") as path:
        ranks = load_tiktoken_bpe(str(path), expected_hash=RANKS_SHA256)
    return tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=50257,
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: 50256},
    )


class Tokenizer:
    """GPT-2 BPE. Text that spells a special token is plain text, so no prompt can forge one."""

    name = "gpt2"

    def __init__(self) -> None:
        self._encoding = _gpt2()
        self.vocab_size = self._encoding.n_vocab
        self.eos_id = self._encoding.eot_token  # of `<|endoftext|>`, which ends every document

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Unpaired surrogates become U+FFFD, as tiktoken does."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=threads)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        return self._encoding.decode(list(ids))

    def token_bytes(self, token: int) -> bytes:
        return self._encoding.decode_single_token_bytes(token)

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self)


class StreamDecoder:
    """Decodes one token at a time and never emits part of a UTF-8 character.

    The pieces of `push` and the rest from `flush` join to exactly `Tokenizer.decode` of all tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    @property
    def pending(self) -> bool:
        """Whether the last token ended within a character."""
        return bool(self._utf8.getstate()[0])

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD."""
        return self._utf8.decode(b"", final=True)
