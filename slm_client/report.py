"""A page of figures about one batch: one HTML file, without network or scripts."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from slm_client.batch import Batch, Result
from slm_client.errors import BadInput
from slm_client.plots import bar_plot, bins, line_plot
from slm_client.progress import duration

_STORIES = 6
_LONGEST_TEXT = 3000  # characters of a story that are shown
_POINTS = 40  # of a plot over time
_UNITS = ((172_800, 86_400, "days"), (7_200, 3_600, "hours"), (180, 60, "minutes"))

_STYLE = """
:root{color-scheme:light dark;--page:#f6f6f3;--card:#fff;--text:#1d1f23;--dim:#63666d;
--grid:#e4e4df;--line:#2f6fb3;--fill:#2f6fb322;--bad:#b3402f}
@media(prefers-color-scheme:dark){:root{--page:#16181c;--card:#1f2227;--text:#e8e8e4;
--dim:#9a9da5;--grid:#33363d;--line:#6fa8e6;--fill:#6fa8e622;--bad:#e8806f}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:24px 16px 48px;background:var(--page);
color:var(--text);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1rem;margin:0 0 10px}
.dim{color:var(--dim);overflow-wrap:anywhere}
.tiles,.cards{display:grid;gap:14px;margin-top:18px}
.tiles{grid-template-columns:repeat(auto-fit,minmax(140px,1fr))}
.cards{grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.tile,.card{background:var(--card);border:1px solid var(--grid);border-radius:8px;
padding:14px 16px;min-width:0}
.tile{padding:12px}
.tile b{display:block;font-size:1.25rem;line-height:1.3;font-variant-numeric:tabular-nums}
.tile.bad b{color:var(--bad)}
.tile span{color:var(--dim);font-size:.85rem}
svg{display:block;width:100%;height:auto;font-size:11px;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;width:100%}
table+h2{margin-top:18px}
td{padding:3px 0;vertical-align:middle}
td.n{text-align:right;overflow-wrap:anywhere;padding-left:12px;font-variant-numeric:tabular-nums}
td.bar~td.n{white-space:nowrap}
td.bar{width:35%;padding-left:12px}
td.bar i{display:block;height:10px;border-radius:2px;background:var(--line);min-width:1px}
.bad td.bar i{background:var(--bad)}
.story{white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
.meta{color:var(--dim);font-size:.85rem;margin:8px 0 0;overflow-wrap:anywhere}
h2.section{margin:30px 0 0}
"""


class Report:
    """Takes a batch's results one by one, and keeps a few numbers of each."""

    def __init__(self) -> None:
        self._ended: list[tuple[float, int]] = []  # when, and tokens, of rows that succeeded
        self._lengths: list[int] = []
        self._reasons: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._succeeded = 0
        self._stories: list[Result] = []
        self._dice = random.Random(0)  # noqa: S311 - the same sample each time

    def add(self, result: Result) -> None:
        if result.error:
            self._errors[result.error.code] += 1
            return
        self._succeeded += 1
        if result.finished_at:
            self._ended.append((result.finished_at.timestamp(), result.completion_tokens))
        if result.outputs:
            each = round(result.completion_tokens / len(result.outputs))
            self._lengths += [each] * len(result.outputs)
        self._reasons.update(output.finish_reason or "none" for output in result.outputs)
        if len(self._stories) < _STORIES:
            self._stories.append(result)
        elif (place := self._dice.randrange(self._succeeded)) < _STORIES:
            self._stories[place] = result

    def write(self, path: Path, batch: Batch) -> None:
        """Raises BadInput if it cannot be written."""
        try:
            path.write_text(self.html(batch), "utf-8", "replace")
        except OSError as error:
            raise BadInput(f"cannot write {path}: {error.strerror}") from None

    def html(self, batch: Batch) -> str:
        title = batch.name or "Bulk generation"
        head = f"{batch.id} · {batch.model} · {batch.status}"
        body = [
            f"<h1>{escape(title)}</h1>",
            f'<div class="dim">{escape(head)}</div>',
            f'<div class="dim">{escape(_times(batch))}</div>',
            _tiles(batch, self._seconds(batch)),
            '<div class="cards">',
            *self._plots(batch),
            '<div class="card">',
            _table("How stories ended", "", self._reasons),
            _table("Why rows did not succeed", "bad", self._errors),
            f"<h2>What was asked for</h2>{_asked(batch)}",
            "</div></div>",
        ]
        if self._stories:
            more = self._succeeded > len(self._stories)
            said = f"{len(self._stories)} stories by chance" if more else "The stories"
            cards = "".join(map(_story, self._stories))
            body += [f'<h2 class="section">{said}</h2>', f'<div class="cards">{cards}</div>']
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
            f"<body>{''.join(body)}</body></html>\n"
        )

    def _seconds(self, batch: Batch) -> float:
        """How long it has run."""
        return max(0.0, self._last(batch) - self._first(batch))

    def _first(self, batch: Batch) -> float:
        earliest = min((when for when, _ in self._ended), default=batch.created_at.timestamp())
        return min(batch.started_at.timestamp(), earliest) if batch.started_at else earliest

    def _last(self, batch: Batch) -> float:
        latest = max((when for when, _ in self._ended), default=self._first(batch))
        return max(latest, batch.finished_at.timestamp()) if batch.finished_at else latest

    def _plots(self, batch: Batch) -> Iterable[str]:
        seconds = self._seconds(batch)
        if self._ended and seconds > 0:
            yield from self._over_time(self._first(batch), seconds)
        if self._lengths:
            plot = bar_plot(
                bins(self._lengths),
                title="How many stories have which length",
                x_label="tokens of a story",
                y_label="stories",
            )
            yield _card("Lengths", plot)

    def _over_time(self, first: float, seconds: float) -> Iterable[str]:
        """A row counts when it ends: nothing tells when its tokens came."""
        count = max(1, min(_POINTS, int(seconds)))
        width = seconds / count
        tokens, rows = [0] * count, [0] * count
        for when, generated in self._ended:
            place = min(count - 1, int((when - first) / width))
            tokens[place] += generated
            rows[place] += 1
        scale, unit = next(
            ((scale, unit) for least, scale, unit in _UNITS if seconds >= least), (1, "seconds")
        )
        x_label = f"{unit} since the first row began"
        rates = [
            (edge * width / scale, total / width)
            for place, total in enumerate(tokens)
            for edge in (place, place + 1)
        ]
        plot = line_plot(
            rates, title="Tokens per second over time", x_label=x_label, y_label="tokens per second"
        )
        yield _card("Rate", plot)
        done = [(0.0, 0.0)]
        for place, number in enumerate(rows, 1):
            done.append((place * width / scale, done[-1][1] + number))
        plot = line_plot(done, title="Rows done over time", x_label=x_label, y_label="rows done")
        yield _card("Progress", plot)


def check_report(path: Path | None) -> None:
    """Before the work is done: raises BadInput if a report cannot be written to `path`."""
    if path and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        raise BadInput(f"cannot write {path}: it is a folder, or cannot be made there")


def _tiles(batch: Batch, seconds: float) -> str:
    counts, usage = batch.counts, batch.usage
    tiles = [("rows succeeded", f"{counts.succeeded:,}", "")]
    unsuccessful = ("failed", "cancelled", "expired")
    numbers = [(name, getattr(counts, name)) for name in unsuccessful]
    tiles += [(f"rows {name}", f"{number:,}", "bad") for name, number in numbers if number]
    if left := counts.pending + counts.running:
        tiles.append(("rows to come", f"{left:,}", ""))
    tiles.append(("tokens generated", f"{usage.completion_tokens:,}", ""))
    tiles.append(("tokens of prompts", f"{usage.prompt_tokens:,}", ""))
    if seconds > 0:
        tiles.append(("from first to last", duration(seconds), ""))
        tiles.append(("tokens per second", f"{usage.completion_tokens / seconds:,.0f}", ""))
        tiles.append(("rows per second", f"{counts.succeeded / seconds:,.1f}", ""))
    cells = "".join(
        f'<div class="tile {kind}"><b>{value}</b><span>{name}</span></div>'
        for name, value, kind in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _table(title: str, kind: str, counted: Counter[str]) -> str:
    """A line with a bar for each; nothing if there is none."""
    if not counted:
        return ""
    total, most = counted.total(), max(counted.values())
    lines = "".join(
        f'<tr><td>{escape(name)}</td><td class="bar"><i style="width:{count / most:.1%}"></i></td>'
        f'<td class="n">{count:,}</td><td class="n">{count / total:.1%}</td></tr>'
        for name, count in counted.most_common()
    )
    return f'<h2>{escape(title)}</h2><table class="{kind}">{lines}</table>'


def _asked(batch: Batch) -> str:
    facts: dict[str, object] = {"seed": batch.seed, **batch.params}
    if batch.retry_of:
        facts["retry of"] = batch.retry_of
    lines = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{escape(_said(value))}</td></tr>'
        for name, value in facts.items()
        if value != []
    )
    return f"<table>{lines}</table>"


def _said(value: object) -> str:
    """None is a value of top_k alone."""
    return "all" if value is None else value if isinstance(value, str) else json.dumps(value)


def _story(result: Result) -> str:
    text = result.text
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}…"
    meta = " · ".join(
        part
        for part in (
            f"row {result.custom_id}",
            f"{result.completion_tokens:,} tokens",
            result.finish_reason,
        )
        if part
    )
    return (
        f'<div class="card"><p class="story"><b>{escape(result.prompt)}</b>{escape(text)}</p>'
        f'<p class="meta">{escape(meta)}</p></div>'
    )


def _card(title: str, content: str) -> str:
    return f'<div class="card"><h2>{escape(title)}</h2>{content}</div>'


def _times(batch: Batch) -> str:
    said = [f"made {_time(batch.created_at)}"]
    if batch.finished_at:
        said.append(f"ended {_time(batch.finished_at)}")
    return ", ".join(said)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
