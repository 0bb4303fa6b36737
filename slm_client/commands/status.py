"""`slm status`: how the service stands, once or as long as one looks on."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from slm_client.client import DEFAULT_URL, Client
from slm_client.commands import options
from slm_client.commands.options import make_table, print_json, results
from slm_client.credentials import choose_key
from slm_client.errors import SlmClientError

_PATIENCE = 5.0  # seconds for one answer
_EVERY = 1.0  # seconds between looks
_LOOKS = 60  # that a line of bars shows
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = (
    *("model", "waiting#", "running#", "rows waiting#", "rows running#"),
    *("slots in use#", "workers#", "tokens/s#", "wait#"),
)


@dataclass(frozen=True)
class Look:
    """`reason`: why no job can run now, or why one cannot tell; empty where the service is ready.
    `models`: how the queue of each stands, as far as one was told."""

    url: str
    reason: str
    models: list[dict[str, Any]]

    @property
    def headline(self) -> str:
        return self.reason or f"ready at {self.url}"

    @property
    def notes(self) -> list[str]:
        """What a person should do something about."""
        return [
            f"{entry['model']}: work waits, and no worker serves it."
            for entry in self.models
            if not entry.get("workers") and (_waiting(entry) or entry.get("running"))
        ]


class _Past:
    """How much of each model waited in the last looks, as bars."""

    def __init__(self) -> None:
        self._waited: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=_LOOKS))

    def bars(self, entry: dict[str, Any]) -> str:
        """Takes this look for the last one."""
        waited = self._waited[entry["model"]]
        waited.append(_waiting(entry))
        most = max(*waited, len(_BARS))
        return "".join(_BARS[count * (len(_BARS) - 1) // most] for count in waited)


def status(
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Look again each second, until Ctrl-C.")
    ] = False,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Show how the service stands: what waits and runs, workers, slots, tokens a second.

    `wait` is the time until a job that came now would start. `rows` are those of batches. --watch
    also shows, as bars, how much waited in the last minute.

    Exit code: 0 if the service is ready, 1 if not, or if it does not answer; of --watch, 0 after
    Ctrl-C.

    Examples:

    \b
      slm status
      slm status --watch
      slm status --json | jq '.models[].waiting'
      until slm status; do sleep 1; done
    """
    if watch and as_json:
        raise typer.BadParameter("--watch is for people, --json for scripts: leave one out")
    key = choose_key(api_key, url, data_dir)
    with Client(url, key or "", timeout=_PATIENCE, retry_for=0) as client:
        if watch:
            _watch(client)
            return
        look = _look(client)
    if as_json:
        document = {"url": look.url, "ready": not look.reason, "reason": look.reason or None}
        print_json({**document, "models": look.models})
    else:
        results().print(_shown(look), crop=False)
    if look.reason:
        raise typer.Exit(1)


def _look(client: Client) -> Look:
    """Never raises for what the service does."""
    reason, models = "", list[dict[str, Any]]()
    try:
        if why := client.why_not_ready():
            reason = f"not ready: {why}"
        models = client.queue()
    except SlmClientError as error:
        reason = reason or str(error)
    return Look(client.base_url, reason, models)


def _watch(client: Client) -> None:
    """Until Ctrl-C; one picture that changes, or line after line where it is no terminal."""
    console = results()
    try:
        if not console.is_terminal:
            for look in _looks(client):
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                console.print(Text(now), _shown(look), sep="\n", crop=False)
            return
        past = _Past()
        with Live(console=console, auto_refresh=False) as live:
            for look in _looks(client):
                live.update(_shown(look, past), refresh=True)
    except KeyboardInterrupt:
        pass


def _looks(client: Client) -> Iterator[Look]:
    while True:
        began = time.monotonic()
        yield _look(client)
        time.sleep(max(0.0, began + _EVERY - time.monotonic()))


def _shown(look: Look, past: _Past | None = None) -> Group:
    parts: list[Any] = [Text(look.headline, style="red" if look.reason else "green")]
    if look.models:
        columns = (*_COLUMNS, "waiting, last minute") if past else _COLUMNS
        rows = ((*_row(entry), *((past.bars(entry),) if past else ())) for entry in look.models)
        parts.append(make_table(columns, rows))
    parts += [Text(note, style="yellow") for note in look.notes]
    return Group(*parts)


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    names = ("waiting", "running", "rows_waiting", "rows_running")
    slots, used = entry.get("slots"), entry.get("slots_in_use")
    taken = "" if slots is None or used is None else f"{used:,} / {slots:,}"
    rate, wait = entry.get("tokens_per_second"), entry.get("estimated_wait_seconds")
    return (
        entry["model"],
        *(entry.get(name) for name in names),
        taken,
        entry.get("workers"),
        f"{rate:,.0f}" if rate else "",
        "" if wait is None else f"{wait:,.1f} s",
    )


def _waiting(entry: dict[str, Any]) -> int:
    """Jobs and rows."""
    return int(entry.get("waiting") or 0) + int(entry.get("rows_waiting") or 0)
