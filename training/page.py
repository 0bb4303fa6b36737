"""A page of texts side by side, as Markdown or as one HTML file that needs nothing else.

Knows nothing of models.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

FORMATS = (".md", ".html")

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 78rem;
  padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
.grid { display: grid; gap: 1rem; }
.grid h3 { margin: 0; }
article { background: #f6f6f4; border-radius: .5rem; padding: 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
footer { color: #777; font-size: .8rem; margin-top: .6rem; }
@media (max-width: 50rem) { .grid { grid-template-columns: 1fr !important; } }
"""


@dataclass(frozen=True)
class Card:
    """A prompt, how it was continued, and a word on how that came about."""

    prompt: str
    text: str
    note: str


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """`cards` fill a grid of `columns`, row by row; `headings` stand above its columns.

    `image` is a file beside the page and what it shows.
    """

    title: str
    paragraphs: Sequence[str]
    cards: Sequence[Card]
    columns: int = 2
    headings: Sequence[str] = ()
    tables: Sequence[Table] = field(default=())
    image: tuple[str, str] | None = None

    def write(self, path: Path) -> None:
        """Writes the page in the format that the ending of `path`, one of `FORMATS`, names."""
        path.write_text(self.html() if path.suffix == ".html" else self.markdown(), "utf-8")

    def markdown(self) -> str:
        blocks = [f"# {_markdown(self.title)}", *map(_markdown, self.paragraphs)]
        if self.image:
            blocks.append(f"![{self.image[1]}]({self.image[0]})")
        blocks += [
            _markdown_table([*map(_markdown, t.header)], [[*map(_markdown, r)] for r in t.rows])
            for t in self.tables
        ]
        cells = [
            f"**{_markdown(card.prompt)}**{_markdown(card.text)}<br><br>*{_markdown(card.note)}*"
            for card in self.cards
        ]
        rows = [cells[i : i + self.columns] for i in range(0, len(cells), self.columns)]
        if rows:
            header = [*map(_markdown, self.headings)] or [""] * self.columns
            blocks.append(_markdown_table(header, rows))
        return "\n\n".join(blocks) + "\n"

    def html(self) -> str:
        title = html.escape(self.title)
        parts = [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
            *(f"<p>{html.escape(text)}</p>" for text in self.paragraphs),
        ]
        if self.image:
            name, shown = map(html.escape, self.image)
            parts.append(f'<img src="{name}" alt="{shown}">')
        for table in self.tables:
            rows = [_html_row("th", table.header), *(_html_row("td", row) for row in table.rows)]
            parts.append(f"<table>{''.join(rows)}</table>")
        parts.append(
            f'<div class="grid" style="grid-template-columns: repeat({self.columns}, 1fr)">'
        )
        parts += [f"<h3>{html.escape(heading)}</h3>" for heading in self.headings]
        parts += [
            f"<article><b>{html.escape(card.prompt)}</b>{html.escape(card.text)}"
            f"<footer>{html.escape(card.note)}</footer></article>"
            for card in self.cards
        ]
        return "\n".join([*parts, "</div></html>"]) + "\n"


def _markdown(text: str) -> str:
    """`text` as it is, in a paragraph or a cell of a table."""
    escaped = re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", text.strip("\n"))
    return re.sub(r"\n+", "<br>", escaped)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
