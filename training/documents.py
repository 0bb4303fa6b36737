"""The documents of a text or of a token file, in memory, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slm_core.tokenizer import Tokenizer
from training.files import find_sources
from training.sources import read_documents
from training.tokens import TOKEN_DTYPE, read_tokens, split_documents

Documents = Sequence[NDArray[np.uint16]]

_BATCH = 256  # documents that are tokenized at once


def load(path: Path, limit: int | None = None) -> Documents:
    """The documents of a token file, or of a text or a folder of texts, each with its end-of-text
    token; the first `limit` of them.

    Raises ValueError that names the file and the line.
    """
    if path.suffix == ".bin":
        return split_documents(read_tokens(path))[:limit]
    sources = find_sources([str(path)])
    texts = islice(chain.from_iterable(read_documents(source.path) for source in sources), limit)
    tokenizer = Tokenizer()
    documents: list[NDArray[np.uint16]] = []
    while batch := list(islice(texts, _BATCH)):
        documents += [
            np.asarray([*ids, tokenizer.eos_id], TOKEN_DTYPE)
            for ids in tokenizer.encode_batch(batch)
        ]
    return documents
