"""`slm bulk`: a file of prompts in, a file of stories out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

from slm_client.bulk import RowResult
from slm_client.client import DEFAULT_URL, Client
from slm_client.commands import options
from slm_client.commands.options import screen
from slm_client.credentials import choose_key
from slm_client.errors import BadInput, SlmClientError
from slm_client.job import Params
from slm_client.progress import Tally, display
from slm_client.rows import Row, read_rows


def bulk(
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A .txt file (one prompt a line) or .jsonl file (rows with `prompt` and, "
            "if you like, `custom_id`); - is standard input.",
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="File of JSON lines; - is standard output.")
    ] = "-",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output file.")
    ] = False,
    model: options.Model = None,
    max_tokens: options.MaxTokens = 200,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="The first row's; each next takes one more.", show_default="drawn"
        ),
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="Most jobs under way at once.")] = 256,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Generate a story for every prompt in a file.

    Results are written as they come, one JSON line each: custom_id, prompt, text, finish_reason
    and usage; or custom_id, prompt and error. The custom_id is the line number if the row has none.

    Exit code: 0 if all rows succeeded, 1 if any failed, 130 after Ctrl-C.

    Examples:

    \b
      slm bulk prompts.txt -o stories.jsonl
      slm bulk rows.jsonl -o stories.jsonl --seed 1 --max-tokens 300
      head -5 prompts.txt | slm bulk - > five.jsonl
    """
    rows = read_rows(prompts)
    refuse_overwrite(output, prompts, overwrite)
    params = options.sampling(model, max_tokens, temperature, top_k, top_p, seed)
    key = choose_key(api_key, url, data_dir)
    check_service(url, key, model)
    # Patience: a run of hours should outlast a restart of the service.
    with opened(output) as file, Client(url, key, retry_for=120.0) as client:
        tally = write_stories(client, rows, file, output, params, window)
    screen.print(f"{tally.summary()}.", soft_wrap=True)
    if tally.failed:
        raise typer.Exit(1)


def refuse_overwrite(output: str, prompts: str, overwrite: bool) -> None:
    """Raises BadInput if writing to `output` would lose something."""
    path = Path(output)
    if output == "-" or not path.exists():
        return
    if prompts != "-" and path.samefile(prompts):
        raise BadInput(f"{output} is the file of prompts; choose another output.")
    if path.is_file() and path.stat().st_size and not overwrite:
        raise BadInput(f"{output} is not empty; add --overwrite to replace it.")


def check_service(url: str, key: str | None, model: str | None) -> None:
    """Before the output file is touched: raises SlmClientError if no row could succeed."""
    with Client(url, key, retry_for=3.0) as client:
        names = [entry["name"] for entry in client.models()]
    if model is not None and model not in names:
        raise SlmClientError(f"there is no model {model!r}; there are: {', '.join(names)}.")


@contextmanager
def opened(output: str) -> Iterator[TextIO]:
    """The result file, emptied, or standard output. Raises BadInput if it cannot be written."""
    if output == "-":
        yield sys.stdout
        return
    try:
        file = Path(output).open("w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise BadInput(f"cannot write {output}: {error.strerror}") from None
    with file:
        yield file


def write_stories(
    client: Client, rows: list[Row], file: TextIO, name: str, params: Params, window: int = 256
) -> Tally:
    """Generates all rows, showing progress, and writes each result as it comes.

    If it ends early, says on the screen what has been kept.
    """
    tally = Tally(len(rows))
    where = "" if name == "-" else f" in {name}"
    try:
        with display(screen, tally) as progress:
            for result in client.bulk(rows, window=window, **params):
                _write(result, file, name)
                tally.add(result)
                progress.show(tally)
    except BaseException:
        screen.print(
            f"Stopped: {tally.done} of {tally.total} rows are kept{where}.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
        raise
    return tally


def _write(result: RowResult, file: TextIO, name: str) -> None:
    """A whole line or, if we die, none. Raises BadInput if it cannot be written."""
    line = json.dumps(result.line(), ensure_ascii=False) + "\n"
    try:
        file.write(line)
        file.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        raise BadInput(f"cannot write {name}: {error.strerror}") from None
