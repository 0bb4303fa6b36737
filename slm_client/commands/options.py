"""Options that several commands share, the client they make, and the screens they write to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from slm_client.client import Client
from slm_client.credentials import choose_key
from slm_client.job import Params

# Results go to standard output, everything else to the screen.
screen = Console(stderr=True, highlight=False)
_PIPE_WIDTH = 240  # columns of a table that no terminal cuts

Url = Annotated[str, typer.Option("--url", envvar="SLM_URL", help="Address of the service.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="SLM_API_KEY",
        help="Your API key; better in the environment, since others may see command lines.",
        show_default="the key of `slm up` in the data folder",
    ),
]
DataDir = Annotated[
    Path, typer.Option("--data-dir", help="Data folder of the `slm up` whose API key to use.")
]
DEFAULT_DATA_DIR = Path(".slm")
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

Model = Annotated[
    str | None,
    typer.Option(help="A name from `slm models list`.", show_default="the service's default"),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Most tokens to generate.")]
Temperature = Annotated[
    float, typer.Option(min=0, max=5, help="0 always takes the likeliest token.")
]
TopK = Annotated[
    int, typer.Option(min=0, help="Sample from the k likeliest tokens; 0: from all of them.")
]
TopP = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Sample from the likeliest tokens that reach this probability."
    ),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Same seed, same text.", show_default="drawn")
]

CallbackUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where to be told of its end, with a signed POST; repeated until it is answered.",
        show_default=False,
    ),
]


def connect(url: str, api_key: str | None, data_dir: Path, *, retry_for: float = 3.0) -> Client:
    """A client with the options' key, or that of the service on this machine."""
    return Client(url, choose_key(api_key, url, data_dir), retry_for=retry_for)


def sampling(
    model: str | None,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
) -> Params:
    """The options above as fields of a job."""
    return Params(
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k or None,
        top_p=top_p,
        seed=seed,
    )


def print_result(text: str, *, end: str = "\n") -> None:
    """To standard output, at once."""
    print(text, end=end, flush=True)  # noqa: T201


def print_json(value: Any) -> None:
    """To standard output; what a terminal would obey is escaped, as some of it is of strangers."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print_result("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """None is an empty cell; a column whose name ends in # is of numbers. On a narrow terminal the
    last column is cut: a half of an id or a number is of no use."""
    texts = [["" if cell is None else _cell(cell) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if column.endswith("#") else "left"
        name = column.removesuffix("#")
        last = number == len(columns) - 1
        width = None if last else max(len(name), *(len(row[number]) for row in texts), 0)
        table.add_column(name, justify=justify, no_wrap=True, min_width=width)
    for row in texts:
        table.add_row(*row)
    return table


def results() -> Console:
    """Standard output, for what has a form: as wide as need be where it is no terminal."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """To standard output, see `make_table`."""
    results().print(make_table(columns, rows), crop=False)


def _cell(value: object) -> str:
    return f"{value:,}" if type(value) is int else str(value)
