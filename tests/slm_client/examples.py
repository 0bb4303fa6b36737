"""Batches and results as the service tells them."""

from __future__ import annotations

from typing import Any

from slm_client import Batch, Result


def batch(**changes: Any) -> Batch:
    """20 s long, 100 rows, all good."""
    document = {
        "id": "batch_1",
        "status": "completed",
        "model": "tiny",
        "counts": {"total": 100, "succeeded": 100},
        "usage": {"prompt_tokens": 1000, "completion_tokens": 8000, "total_tokens": 9000},
        "created_at": "2026-11-21T12:00:00Z",
        "started_at": "2026-11-21T12:00:01Z",
        "finished_at": "2026-11-21T12:00:21Z",
        "seed": 7,
        "params": {"max_tokens": 200, "top_k": None},
    }
    return Batch.from_json({**document, **changes})


def result(seq: int, **changes: Any) -> Result:
    """Of row `seq`, which ended `seq` tenths of a second after its batch began."""
    tenths = 10 + seq
    document = {
        "seq": seq,
        "custom_id": str(seq),
        "prompt": f"Story {seq}",
        "text": " and so on.",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        "finished_at": f"2026-11-21T12:00:{tenths // 10:02}.{tenths % 10}Z",
    }
    return Result.from_json({**document, **changes})
