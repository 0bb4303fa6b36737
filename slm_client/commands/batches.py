"""`slm batches …`: what has become of batches, and their results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from slm_client.batch import Batch, Result
from slm_client.client import DEFAULT_URL
from slm_client.commands import options
from slm_client.commands.collect import collect, end, flags_for, say
from slm_client.commands.options import print_json, print_result, print_table, screen
from slm_client.errors import BadInput
from slm_client.outputs import Output
from slm_client.progress import clock, line, summary
from slm_client.report import Report, check_report

_LOST_CONTACT = 120.0  # seconds, while results are followed
_ERRORS_SHOWN = 1000  # in a table

batches = typer.Typer(
    no_args_is_help=True,
    help="List, show, cancel, retry and delete batches of `slm bulk`; get their results.",
)

_Id = Annotated[str, typer.Argument(metavar="ID", help="A batch's id.", show_default=False)]
_Ids = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Ids of batches.", show_default=False)
]


@batches.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, help="Most batches to list.")] = 20,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """List your batches, the newest first.

    Examples:

    \b
      slm batches list
      slm batches list --limit 100
      slm batches list --json | jq -r '.[].id'
    """
    with options.connect(url, api_key, data_dir) as client:
        found = list(client.batches.list(limit=limit))
    if as_json:
        print_json([batch.raw for batch in found])
    else:
        columns = ("id", "status", "model", "created", "rows#", "done#", "failed#", "name")
        print_table(columns, map(_row, found))


@batches.command()
def show(
    batch_id: _Id,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Show how a batch stands: what is done, how fast, and how long it will take.

    Examples:

    \b
      slm batches show batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF
      watch slm batches show batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF
      slm batches show batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF --json
    """
    with options.connect(url, api_key, data_dir) as client:
        batch = client.batches.get(batch_id)
    if as_json:
        print_json(batch.raw)
        return
    for name, value in _facts(batch):
        print_result(f"{name:<10} {value}")


@batches.command()
def results(
    batch_id: _Id,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="A .jsonl or .csv file, or a folder/; - is standard output, as JSON lines.",
        ),
    ] = "-",
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the batch has ended.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Write what has become of a batch's rows, as `slm bulk` does.

    Exit code: 0, or 1 if the batch has ended and some rows did not succeed.

    Examples:

    \b
      slm batches results batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF -o stories.jsonl --follow
      slm batches results batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF | jq -r .text
      slm batches results batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF -o stories/
    """
    target = Output(output)
    if not (overwrite or target.is_empty()):
        raise BadInput(f"{output} is not empty; add --overwrite to replace it.")
    with options.connect(url, api_key, data_dir, retry_for=_LOST_CONTACT) as client:
        batch = collect(client, client.batches.get(batch_id), target, follow=follow)
    if batch.ended:
        end(batch, flags_for(url, data_dir))
    else:
        say(f"It goes on: {line(batch)}. --follow waits for the rest.")


@batches.command()
def errors(
    batch_id: _Id,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print them as lines of JSON, for scripts.")
    ] = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """List the rows that did not succeed, and why.

    Examples:

    \b
      slm batches errors batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF
      slm batches errors batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF --json | jq -r .custom_id
    """
    with options.connect(url, api_key, data_dir) as client:
        found = client.batches.errors(batch_id)
        if as_json:
            for result in found:
                print_result(json.dumps(result.raw, ensure_ascii=False))
            return
        print_table(("custom_id", "line#", "code", "message"), _first_errors(found))


@batches.command()
def cancel(
    batch_ids: _Ids,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Cancel batches; what is done is kept.

    Examples:

    \b
      slm batches cancel batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF
    """
    with options.connect(url, api_key, data_dir) as client:
        for batch_id in batch_ids:
            batch = client.batches.cancel(batch_id)
            ends = "" if batch.ended else ", ends when its running rows have"
            say(f"{batch.id}: {batch.status}{ends}; {batch.counts.succeeded:,} rows are kept")


@batches.command()
def retry(
    batch_id: _Id,
    new: Annotated[
        bool, typer.Option("--new", help="Make another batch, also if one was made before.")
    ] = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Run the rows that did not succeed again, as a new batch; print its id. The same command makes
    no second one.

    Examples:

    \b
      slm batches retry batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF
    """
    with options.connect(url, api_key, data_dir) as client:
        batch = client.batches.retry(batch_id, new=new)
    print_result(batch.id)
    flags = flags_for(url, data_dir)
    if batch.replayed:
        say(f"The same was asked for before: {batch.id} ({batch.status}). --new makes another.")
    say(f"{batch.counts.total:,} rows: slm batches results {batch.id} -o FILE --follow{flags}")


@batches.command()
def delete(
    batch_ids: _Ids,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Delete ended batches and their texts, for ever.

    Examples:

    \b
      slm batches delete batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF
    """
    with options.connect(url, api_key, data_dir) as client:
        for batch_id in batch_ids:
            client.batches.delete(batch_id)
            say(f"{batch_id}: deleted")


@batches.command()
def report(
    batch_id: _Id,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page to write; it is replaced.")
    ] = Path("report.html"),
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Write a page of figures of what a batch has done so far: rates, lengths, errors, stories.

    Examples:

    \b
      slm batches report batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF -o report.html
    """
    check_report(output)
    figures = Report()
    with options.connect(url, api_key, data_dir) as client, screen.status("reading results…"):
        for item in client.batches.watch(batch_id, follow=False):
            if isinstance(item, Result):
                figures.add(item)
            else:
                batch = item
    figures.write(output, batch)
    say(f"The report is in {output}.")


def _first_errors(found: Iterator[Result]) -> Iterator[tuple[object, ...]]:
    for number, result in enumerate(found):
        if number == _ERRORS_SHOWN:
            say(f"Only the first {_ERRORS_SHOWN:,} are shown; --json prints all.")
            return
        if result.error:
            yield result.custom_id, result.line, result.error.code, result.error.message


def _row(batch: Batch) -> tuple[object, ...]:
    created = batch.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    counts = batch.counts
    numbers = (counts.total, counts.done, counts.unsuccessful)
    return batch.id, batch.status, batch.model, created, *numbers, batch.name


def _facts(batch: Batch) -> Iterator[tuple[str, object]]:
    yield "id", batch.id
    if batch.name:
        yield "name", batch.name
    ends = ", ends when its running rows have" if batch.cancel_requested else ""
    yield "status", batch.status + ("" if batch.ended else ends)
    yield "model", batch.model
    times = (("created", batch.created_at), ("started", batch.started_at))
    for name, time in (*times, ("ended", batch.finished_at)):
        if time:
            yield name, time.astimezone().isoformat(" ", "milliseconds")
    if batch.expires_at and not batch.ended:
        yield "window", f"closes {batch.expires_at.astimezone().isoformat(' ', 'seconds')}"
    yield "rows", f"{batch.counts.total:,}"
    for name in ("pending", "running", "succeeded", "failed", "cancelled", "expired"):
        if number := getattr(batch.counts, name):
            yield f"  {name}", f"{number:,}"
    usage = batch.usage
    yield "tokens", f"{usage.prompt_tokens:,} of prompts, {usage.completion_tokens:,} generated"
    if batch.rows_per_second and batch.tokens_per_second:
        rate = f"{batch.rows_per_second:,.1f} rows/s, {batch.tokens_per_second:,.0f} tokens/s"
        yield "rate", rate
    if batch.estimated_seconds is not None and not batch.ended:
        yield "left", clock(batch.estimated_seconds)
    if batch.ended:
        yield "result", summary(batch)
    yield "seed", batch.seed
    asked = (f"{name} {json.dumps(value)}" for name, value in batch.params.items())
    yield "params", ", ".join(asked)
    if batch.retry_of:
        yield "retry of", batch.retry_of
    for problem in batch.errors:
        yield "error", f"line {problem.line}: {problem.code}: {problem.message}"
