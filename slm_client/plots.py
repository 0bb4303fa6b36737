"""Small plots as SVG that stands in a page. Knows numbers and labels, not what they mean.

Colours are the page's: `--line`, `--fill`, `--grid` and `--dim`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 420, 230
_TOP, _RIGHT, _BOTTOM = 26, 16, 44  # margins; the left one depends on its labels
_LETTER = 6.4  # width of a digit
_STEPS = (1, 2, 5, 10)  # of ticks, times a power of ten


def line_plot(
    points: Sequence[tuple[float, float]], *, title: str, x_label: str, y_label: str
) -> str:
    """Points from left to right, from 0 on both axes, over a filled ground."""
    right = max(x for x, _ in points) or 1.0
    top = max(y for _, y in points) or 1.0
    frame = _Frame(0.0, right, top, x_label, y_label)
    line = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    first, last, ground = frame.x(points[0][0]), frame.x(points[-1][0]), frame.y(0)
    shapes = (
        f'<polygon points="{first:.1f},{ground:.1f} {line} {last:.1f},{ground:.1f}" '
        'fill="var(--fill)"/>'
        f'<polyline points="{line}" fill="none" stroke="var(--line)" stroke-width="1.8" '
        'stroke-linejoin="round"/>'
    )
    return frame.svg(title, shapes)


def bar_plot(
    bars: Sequence[tuple[float, float, int]], *, title: str, x_label: str, y_label: str
) -> str:
    """Bars of (left, right, height) that stand side by side; each tells its numbers."""
    frame = _Frame(bars[0][0], bars[-1][1], max(bar[2] for bar in bars), x_label, y_label)
    shapes = []
    for left, right, height in bars:
        x, width = frame.x(left), frame.x(right) - frame.x(left)
        gap = min(1.0, width / 8)
        shapes.append(
            f'<rect x="{x + gap / 2:.1f}" y="{frame.y(height):.1f}" '
            f'width="{max(width - gap, 0.5):.1f}" '
            f'height="{frame.y(0) - frame.y(height):.1f}" fill="var(--line)">'
            f"<title>{number(left)} to {number(right)}: {height:,}</title></rect>"
        )
    return frame.svg(title, "".join(shapes))


def bins(values: Sequence[int], most: int = 24) -> list[tuple[float, float, int]]:
    """How many values stand in each of at most about `most` ranges of a round width; a range has
    its left end, not its right one."""
    low, high = min(values), max(values)
    width = max(1, math.ceil(round_up((high - low + 1) / most)))
    first = low // width
    counts = [0] * (high // width - first + 1)
    for value in values:
        counts[value // width - first] += 1
    return [
        (float((first + i) * width), float((first + i + 1) * width), count)
        for i, count in enumerate(counts)
    ]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between the two, at most about `most`."""
    step = round_up((high - low) / most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def round_up(value: float) -> float:
    """To the next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _STEPS if step * power >= value * (1 - 1e-9))


def number(value: float) -> str:
    """For people: with separators, and no more places than it has."""
    return f"{round(value, 6):,g}" if abs(value) < 1000 else f"{value:,.0f}"


class _Frame:
    """Axes with round ticks; the vertical one begins at 0 and ends at a tick."""

    def __init__(self, low: float, high: float, top: float, x_label: str, y_label: str) -> None:
        # Nothing is counted in halves.
        self._y_step = max(round_up(top / 4), 1.0 if top >= 1 else 0.0)
        self._top = math.ceil(top / self._y_step - 1e-9) * self._y_step
        self._y_ticks = ticks(0.0, self._top, round(self._top / self._y_step))
        longest = max(len(number(tick)) for tick in self._y_ticks)
        self._left = 12 + longest * _LETTER
        self._low, self._high = low, high
        self._x_label, self._y_label = x_label, y_label

    def x(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return self._left + share * (_WIDTH - self._left - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - value / self._top * (_HEIGHT - _TOP - _BOTTOM)

    def svg(self, title: str, shapes: str) -> str:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
            f'<text x="0" y="11" fill="var(--dim)">{escape(self._y_label)}</text>',
        ]
        for tick in self._y_ticks:
            y = self.y(tick)
            parts += [
                f'<path d="M{self._left:.1f} {y:.1f}H{right}" stroke="var(--grid)"/>',
                f'<text x="{self._left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end" '
                f'fill="var(--dim)">{number(tick)}</text>',
            ]
        parts.append(shapes)
        for tick in ticks(self._low, self._high, 6):
            x = self.x(tick)
            parts += [
                f'<path d="M{x:.1f} {bottom}v4" stroke="var(--dim)"/>',
                f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle" '
                f'fill="var(--dim)">{number(tick)}</text>',
            ]
        parts += [
            f'<path d="M{self._left:.1f} {bottom}H{right}" stroke="var(--dim)"/>',
            f'<text x="{(self._left + right) / 2:.1f}" y="{_HEIGHT - 6}" text-anchor="middle" '
            f'fill="var(--dim)">{escape(self._x_label)}</text></svg>',
        ]
        return "".join(parts)
