"""`slm bulk`: a file of prompts in, stories out, through a batch that runs without us."""

from __future__ import annotations

import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from slm_client.batch import Batch, BatchParams
from slm_client.client import DEFAULT_URL, Client
from slm_client.commands import options
from slm_client.commands.collect import collect, end, flags_for, say, say_how_to_come_back
from slm_client.commands.options import print_result, screen
from slm_client.credentials import choose_key
from slm_client.errors import ApiError, BadInput, ServiceUnreachable, SlmClientError
from slm_client.outputs import Output
from slm_client.progress import display, line, uploaded
from slm_client.report import Report, check_report
from slm_client.resume import Note, batch_to_join, digest_of
from slm_client.source import Format, Source, named

_PROBLEMS_SHOWN = 20
_SAID_AGAIN = 10.0  # seconds; a service that restarts refuses many times
_LOST_CONTACT = 120.0  # seconds; a run of hours should outlast a restart of the service


class _OnInvalid(StrEnum):
    REFUSE = "refuse"
    SKIP = "skip"


class _Event(StrEnum):
    RUNNING = "running"
    PROGRESS = "progress"  # each tenth of the rows
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


def bulk(
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A .txt file (one prompt a line), .csv file (a column `prompt`, or one for each "
            "variable of the template) or .jsonl file (rows with `prompt` or `variables`, or "
            "OpenAI batch lines), also with .gz; - is standard input.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="A .jsonl or .csv file, or a folder/ with a text file for each story; - is "
            "standard output, as JSON lines.",
        ),
    ] = "-",
    format_: Annotated[
        Format | None,
        typer.Option("--format", help="What FILE holds.", show_default="what its name says"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
    new: Annotated[
        bool, typer.Option("--new", help="Start another batch, also if there is one of the same.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Do not wait: print the batch's id once it is accepted."),
    ] = False,
    model: options.Model = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="A template of the model; rows then are its variables.", show_default=False
        ),
    ] = None,
    max_tokens: options.MaxTokens = 200,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Row i, from 0, takes this + i times --n.", show_default="drawn"),
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Stories for each prompt.")] = 1,
    on_invalid: Annotated[
        _OnInvalid,
        typer.Option(help="Refuse a file with rows that cannot run, or run the others."),
    ] = _OnInvalid.REFUSE,
    window: Annotated[
        str, typer.Option(help="Rows that have not begun by then expire: 60s to 7d, as 90m, 36h.")
    ] = "24h",
    name: Annotated[
        str | None, typer.Option(help="For people: what the batch is called.", show_default=False)
    ] = None,
    callback_url: options.CallbackUrl = None,
    callback_event: Annotated[
        list[_Event] | None,
        typer.Option(
            help="What to be told of; may be repeated. progress: each tenth of the rows.",
            show_default="its end",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="Write a page of figures in the end.", show_default=False
        ),
    ] = None,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Generate a story for every prompt in a file.

    The file becomes a batch in the service. Results are written as they come: custom_id, prompt,
    text, finish_reason and usage, or an error. A row without a custom_id goes by its line number.

    The service needs nobody to wait: Ctrl-C leaves the batch running, and the same command comes
    back to it. While results are missing, a small file OUT.batch says which batch fills OUT.

    Exit code: 0 if all rows succeeded, 1 if any did not, 130 after Ctrl-C.

    Examples:

    \b
      slm bulk prompts.txt -o stories.jsonl
      slm bulk rows.jsonl.gz -o stories.csv --seed 1 --max-tokens 300 --n 2
      slm bulk animals.csv -o stories/ --template animal --report stories.html
      slm bulk prompts.txt -o stories.jsonl --detach
      slm bulk prompts.txt --detach --callback-url https://example.org/hook
      head -5 prompts.txt | slm bulk - > five.jsonl
    """
    if detach and report:
        raise typer.BadParameter("--detach does not wait for what --report shows")
    if callback_event and not callback_url:
        raise typer.BadParameter("--callback-event needs a --callback-url")
    target, flags = Output(output), flags_for(url, data_dir)
    refuse_to_lose(prompts, target)
    check_report(report)
    params: BatchParams = {
        "model": model,
        "template": template,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k or None,
        "top_p": top_p,
        "seed": seed,
        "n": n,
        "on_invalid": on_invalid.value,
        "completion_window": window,
        "name": name,
    }
    if callback_url:
        params["callback_url"] = callback_url
    if callback_event:
        params["callback_events"] = [event.value for event in callback_event]
    key = choose_key(api_key, url, data_dir)
    with named(prompts, format_) as (source, kind):
        digest = digest_of(source, kind, params)
        joined = batch_to_join(target, digest, url, overwrite=overwrite, new=new)
        check_service(url, key, model)
        with Client(url, key, retry_for=_LOST_CONTACT) as client:
            batch = _come_back(client, joined, target) if joined else None
            if batch is None:
                again = f"-{uuid4().hex}" if new else ""
                batch = _upload(client, source, kind, prompts, f"slm-bulk-{digest}{again}", params)
                if target.state_file:
                    Note(batch.id, url, digest).write(target.state_file)
            if detach:
                say_how_to_come_back(batch, target, flags)
                print_result(batch.id)
                return
            figures = Report() if report else None
            try:
                batch = collect(client, batch, target, on_result=figures.add if figures else None)
            except BaseException:
                say_how_to_come_back(batch, target, flags)
                raise
    if report and figures:
        figures.write(report, batch)
    end(batch, flags)


def refuse_to_lose(prompts: str, output: Output) -> None:
    """Raises BadInput if writing to `output` could replace the file of prompts."""
    if prompts == "-" or not output.path.exists() or not Path(prompts).exists():
        return
    if output.path.samefile(prompts):
        raise BadInput(f"{output.name} is the file of prompts; choose another output.")
    if output.is_folder and output.path.samefile(Path(prompts).parent):
        raise BadInput(f"{output.name} is the folder of {prompts}; choose another.")


def check_service(url: str, key: str | None, model: str | None) -> None:
    """Before anything is sent or written: raises SlmClientError if no row could succeed."""
    with Client(url, key, retry_for=3.0) as client:
        names = [entry["name"] for entry in client.models()]
    if model is not None and model not in names:
        raise SlmClientError(f"there is no model {model!r}; there are: {', '.join(names)}.")


def upload(
    client: Client, source: Source, kind: Format, idempotency_key: str | None, params: BatchParams
) -> Batch:
    """With progress, where it takes long; and says when, and why, it begins again."""
    said_at = -_SAID_AGAIN

    def again(problem: ApiError | ServiceUnreachable) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _SAID_AGAIN:
            said_at = time.monotonic()
            say(f"{str(problem).rstrip('.')}. The upload begins again.")

    with display(screen) as shown:
        return client.batches.create(
            source,
            format=kind,
            idempotency_key=idempotency_key,
            on_progress=lambda sent, total: shown.show(sent, total, uploaded(sent, total)),
            on_again=again,
            **params,
        )


def _come_back(client: Client, batch_id: str, output: Output) -> Batch | None:
    """None if it is gone, and nothing of it is here."""
    try:
        batch = client.batches.get(batch_id)
    except ApiError as error:
        if error.status != 404:
            raise
        if output.is_empty():
            return None
        raise BadInput(
            f"{batch_id}, whose results are in {output.name}, is gone from the service. --new "
            f"starts another and replaces them; without {output.state_file} they can stay."
        ) from None
    _say_it_was_there(batch)
    return batch


def _upload(
    client: Client,
    source: Source,
    kind: Format,
    name: str,
    idempotency_key: str,
    params: BatchParams,
) -> Batch:
    try:
        batch = upload(client, source, kind, idempotency_key, params)
    except ApiError as error:
        if error.code == "invalid_rows":
            _say_problems(error, name)
            raise typer.Exit(1) from None
        if error.code == "batch_gone":
            raise BadInput(f"{str(error).rstrip('.')}. --new starts another.") from None
        raise
    except KeyboardInterrupt:
        say("Stopped while uploading; the same command sends it again, and starts nothing twice.")
        raise
    if batch.replayed:
        _say_it_was_there(batch)
    else:
        say(f"{batch.id}: {batch.counts.total:,} rows")
    return batch


def _say_it_was_there(batch: Batch) -> None:
    made = batch.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    how = f"has ended ({batch.status})" if batch.ended else f"goes on: {line(batch)}"
    say(f"The same was asked for before: {batch.id} of {made} {how}. --new starts another.")


def _say_problems(error: ApiError, name: str) -> None:
    file = "standard input" if name == "-" else name
    rows = error.problem.get("rows") or []
    for row in rows[:_PROBLEMS_SHOWN]:
        say(f"{file}, line {row.get('line')}: {row.get('message')}")
    with suppress(TypeError, ValueError):
        if (more := int(error.problem["invalid"]) - min(len(rows), _PROBLEMS_SHOWN)) > 0:
            say(f"and {more:,} more")
    screen.print(
        f"{str(error).rstrip('.')}. Nothing was started; --on-invalid skip runs the other rows.",
        style="red",
        markup=False,
        soft_wrap=True,
    )
