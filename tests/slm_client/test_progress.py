from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from slm_client import Failure, Row, RowResult, progress
from slm_client.progress import Tally, display


def failed() -> RowResult:
    return RowResult(Row("1", "Once"), None, Failure("code", "message"))


def test_counts_and_rates() -> None:
    tally = Tally(4, began=time.monotonic() - 2)
    assert tally.line() == "0/4 rows · 0.0 rows/s · 0 tokens/s · ? left · 0 failed"
    tally.add(failed())
    tally.tokens = 8000
    line = r"1/4 rows · 0\.5 rows/s · [34],\d{3} tokens/s · 0:06 left · 1 failed"
    assert re.fullmatch(line, tally.line())
    tally.total = 2000
    assert re.search(r" 1:0[67]:\d\d left ", tally.line())
    assert tally.summary().startswith("0 rows succeeded, 1 failed; 8,000 tokens in 2.0 s: ")


@pytest.mark.parametrize("terminal", [False, True])
def test_where_it_shows(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PLAIN_LINE_EVERY", 0.05)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    tally = Tally(3)
    with display(console, tally) as shown:
        for _ in range(3):
            tally.add(failed())
            shown.show(tally)
            time.sleep(0.03)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert ("\x1b" in text) is terminal
    assert "rows/s" in text
    if not terminal:
        assert 1 <= len(text.splitlines()) <= 2
