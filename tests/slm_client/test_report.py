from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_client import BadInput
from slm_client.plots import bar_plot, bins, line_plot, number, round_up, ticks
from slm_client.report import Report, check_report
from tests.slm_client.examples import batch, result

_VOID = {"meta", "br"}


class _Checker(HTMLParser):
    """Every element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.seen.append(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(html: str) -> list[str]:
    """The names of its elements."""
    checker = _Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert "http" not in html.replace("http-equiv", "")
    for svg in re.findall("<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)  # noqa: S314 - our own
        for value in re.findall(r' (?:x|y|width|height)="([^"]*)"', svg):
            assert float(value) >= 0
    return checker.seen


def test_a_report_says_what_there_is() -> None:
    report = Report()
    for seq in range(1, 101):
        tokens = {"prompt_tokens": 9, "completion_tokens": seq * 20, "total_tokens": 0}
        reason = "length" if seq % 4 else "stop"
        report.add(result(seq, usage=tokens, finish_reason=reason))
    failed = {"error": {"code": "engine_error", "message": "broke"}, "text": None}
    report.add(result(1, **failed))
    counts = {"total": 1101, "succeeded": 100, "failed": 1, "pending": 1000}
    usage = {"prompt_tokens": 900, "completion_tokens": 101_000, "total_tokens": 101_900}
    html = report.html(batch(counts=counts, usage=usage, name="Night & day"))
    seen = checked(html)
    assert seen.count("svg") == 3
    assert "script" not in seen
    for words in (
        "<title>Night &amp; day</title>",
        "batch_1 · tiny · completed",
        "made 2026-11-21 12:00:00 UTC, ended 2026-11-21 12:00:21 UTC",
        "<b>101,000</b><span>tokens generated",
        "<b>20.0 s</b><span>from first to last",
        "<b>5,050</b><span>tokens per second",
        "<b>1,000</b><span>rows to come",
        '<div class="tile bad"><b>1</b><span>rows failed',
        "tokens of a story",
        "seconds since the first row began",
        '<td class="n">75.0%</td>',
        "engine_error",
        "6 stories by chance",
        "prefers-color-scheme:dark",
        'name="viewport"',
        "default-src 'none'",
    ):
        assert words in html
    assert html.count('class="story"') == 6
    assert html == report.html(batch(counts=counts, usage=usage, name="Night & day"))


def test_nothing_gets_out_of_its_place() -> None:
    evil = "</p></svg><script>alert('\"')</script>"
    report = Report()
    error = {"code": evil, "message": evil}
    report.add(result(1, prompt=evil, text=evil, finish_reason=evil, custom_id=evil))
    report.add(result(2, error=error, text=None))
    html = report.html(batch(name=evil, model=evil, params={"stop": [evil]}, retry_of=evil))
    assert "script" not in checked(html)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_reports_of_little(count: int) -> None:
    report = Report()
    for seq in range(1, count + 1):
        report.add(result(seq))
    for document in (batch(), batch(started_at=None, finished_at=None, status="running")):
        checked(report.html(document))
    report.add(result(3, finished_at=None, usage=None, text="x" * 5000))
    assert "x…<" in report.html(batch())


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**6)), min_size=1, max_size=50))
def test_any_results_make_a_valid_page(rows: list[tuple[int, int]]) -> None:
    report = Report()
    for seconds, tokens in rows:
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 0}
        day, rest = divmod(seconds, 86_400)
        clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
        ended = f"2026-{1 + day // 28:02}-{1 + day % 28:02}T{clock}Z"
        report.add(result(1, usage=usage, finished_at=ended))
    checked(report.html(batch(started_at=None, finished_at=None)))


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9), st.integers(2, 8))
def test_ticks_are_round_and_few(low: float, length: float, most: int) -> None:
    found = ticks(low, low + length, most)
    assert len(found) <= most + 1
    assert all(low - 1e-6 * length <= tick <= low + length * (1 + 1e-6) for tick in found)


def test_round_numbers() -> None:
    assert [round_up(value) for value in (0.3, 1, 1.1, 2.5, 7, 51)] == [0.5, 1, 2, 5, 10, 100]
    assert [number(value) for value in (0.30000000000000004, 12, 1500, 1_500_000)] == [
        *("0.3", "12", "1,500", "1,500,000"),
    ]


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_every_value_is_in_a_bin(values: list[int]) -> None:
    found = bins(values)
    assert sum(count for _, _, count in found) == len(values)
    assert len(found) <= 26
    assert all(left < right for left, right, _ in found)
    for left, right, count in found:
        assert count == sum(left <= value < right for value in values)


def test_plots_tell_their_numbers() -> None:
    svg = bar_plot([(0.0, 5.0, 3), (5.0, 10.0, 1200)], title="<t>", x_label="x", y_label="y")
    assert "<title>5 to 10: 1,200</title>" in svg
    assert 'aria-label="&lt;t&gt;"' in svg
    assert ">1,500</text>" in svg
    assert "polyline" in line_plot([(0.0, 0.0)], title="t", x_label="x", y_label="y")


def test_where_a_report_goes(tmp_path: Path) -> None:
    check_report(None)
    check_report(tmp_path / "r.html")
    for path in (tmp_path, tmp_path / "no" / "r.html"):
        with pytest.raises(BadInput, match="cannot write"):
            check_report(path)
    with pytest.raises(BadInput, match="cannot write /dev/full: No space"):
        Report().write(Path("/dev/full"), batch())
