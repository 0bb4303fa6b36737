from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from slm_client import Batch, progress
from slm_client.progress import clock, display, duration, line, summary, uploaded
from tests.slm_client.examples import batch


def test_a_line_says_what_is_known() -> None:
    running: dict[str, Any] = {"status": "running", "finished_at": None}
    fresh = batch(counts={"total": 4000, "pending": 4000}, **running)
    assert line(fresh) == "0/4,000 rows · 0 failed"
    going = batch(
        counts={"total": 4000, "succeeded": 1500, "failed": 2, "running": 64},
        rows_per_second=43.21,
        tokens_per_second=8123.4,
        estimated_seconds=3671.0,
        **running,
    )
    assert line(going) == (
        "1,502/4,000 rows · 43.2 rows/s · 8,123 tokens/s · 1:01:11 left · 2 failed"
    )


def test_a_summary_says_what_came_of_it() -> None:
    counts = {"total": 1300, "succeeded": 1200, "failed": 1, "cancelled": 9, "expired": 90}
    assert summary(batch(counts=counts)) == (
        "1,200 rows succeeded, 1 failed, 9 cancelled, 90 expired; "
        "8,000 tokens in 20.0 s: 400 tokens/s"
    )
    assert summary(batch(started_at=None)).endswith("; 8,000 tokens")
    short = batch(finished_at="2026-11-21T12:00:01.016Z")
    assert summary(short).endswith("; 8,000 tokens in 16 ms: 500,000 tokens/s")


def test_uploads_and_clocks() -> None:
    assert uploaded(12_340_000, 1_256_000_000) == "uploading 12.3 of 1,256.0 MB"
    assert uploaded(5, 5) == "uploaded; the service checks the last rows"
    assert [clock(seconds) for seconds in (0, 59.6, 3600)] == ["0:00", "1:00", "1:00:00"]
    said = [duration(seconds) for seconds in (0.001, 0.25, 1, 59.94, 3671)]
    assert said == ["1 ms", "250 ms", "1.0 s", "59.9 s", "1:01:11"]


@pytest.mark.parametrize("terminal", [False, True])
def test_where_it_shows(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PLAIN_LINE_EVERY", 0.05)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with display(console) as shown:
        for done in range(3):
            shown.show(done, 3, f"{done} of 3 rows")
            time.sleep(0.03)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert ("\x1b" in text) is terminal
    assert "of 3 rows" in text
    if not terminal:
        assert 1 <= len(text.splitlines()) <= 2


def test_a_batch_of_a_later_version_does_no_harm() -> None:
    document = {**batch().raw, "mood": "good", "counts": {"total": 1, "odd": 2}}
    assert Batch.from_json(document).raw["mood"] == "good"
