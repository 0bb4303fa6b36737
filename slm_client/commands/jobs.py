"""`slm jobs …`, `slm queue`: what has become of jobs, and how many wait."""

from __future__ import annotations

from enum import StrEnum
from itertools import islice
from typing import Annotated, Any

import typer

from slm_client.client import DEFAULT_URL
from slm_client.commands import options
from slm_client.commands.options import print_json, print_result, print_table, screen
from slm_client.job import Job

_EXCERPT = 40  # characters

jobs = typer.Typer(no_args_is_help=True, help="List, show, cancel and delete jobs.")

_Id = Annotated[str, typer.Argument(metavar="ID", help="A job's id.", show_default=False)]
_Ids = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Ids of jobs.", show_default=False)
]


class _Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@jobs.command("list")
def list_jobs(
    status: Annotated[_Status | None, typer.Option(help="Only these.", show_default="all")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to list.")] = 20,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """List your jobs, the newest first.

    Examples:

    \b
      slm jobs list
      slm jobs list --status running --limit 100
      slm jobs list --json | jq -r '.[].id'
    """
    with options.connect(url, api_key, data_dir) as client:
        found = list(client.jobs(status=status.value if status else None, limit=limit))
    if as_json:
        print_json([job.raw for job in found])
    else:
        columns = ("id", "status", "model", "created", "tokens#", "text")
        print_table(columns, map(_row, found))


@jobs.command()
def show(
    job_id: _Id,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Show one job and its text.

    Examples:

    \b
      slm jobs show job_01K9ZX3V7Q4C8E2M5T6R0B1DAF
      slm jobs show job_01K9ZX3V7Q4C8E2M5T6R0B1DAF --json
    """
    with options.connect(url, api_key, data_dir) as client:
        job = client.get(job_id)
    if as_json:
        print_json(job.raw)
        return
    for name, value in _facts(job):
        screen.print(f"{name:<10} {value}", markup=False, soft_wrap=True)
    for output in job.outputs:
        screen.print(f"\nOutput {output.index} ({output.finish_reason}):", markup=False)
        print_result(output.text)


@jobs.command()
def cancel(
    job_ids: _Ids,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Cancel jobs; running ones keep the text they have.

    Examples:

    \b
      slm jobs cancel job_01K9ZX3V7Q4C8E2M5T6R0B1DAF
      slm jobs list --status queued --json | jq -r '.[].id' | xargs slm jobs cancel
    """
    with options.connect(url, api_key, data_dir) as client:
        for job_id in job_ids:
            job = client.cancel(job_id)
            said = job.status if job.ended else f"{job.status}, ends at its next step"
            screen.print(f"{job.id}: {said}", markup=False, soft_wrap=True)


@jobs.command()
def delete(
    job_ids: _Ids,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Delete ended jobs and their texts, for ever.

    Examples:

    \b
      slm jobs delete job_01K9ZX3V7Q4C8E2M5T6R0B1DAF
      slm jobs list --status failed --json | jq -r '.[].id' | xargs slm jobs delete
    """
    with options.connect(url, api_key, data_dir) as client:
        for job_id in job_ids:
            client.delete(job_id)
            screen.print(f"{job_id}: deleted", markup=False, soft_wrap=True)


def queue(
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Tell how many jobs wait for each model, and how long they will.

    Examples:

    \b
      slm queue
      slm queue --json
    """
    with options.connect(url, api_key, data_dir) as client:
        entries = client.queue()
    if as_json:
        print_json(entries)
        return
    names = ("waiting", "running", "workers", "slots")
    print_table(
        ("model", *(f"{name}#" for name in names), "tokens/s#", "wait#"),
        ([entry["model"], *(entry.get(n) for n in names), *_pace(entry)] for entry in entries),
    )


def _pace(entry: dict[str, Any]) -> tuple[str, str]:
    rate, wait = entry.get("tokens_per_second"), entry.get("estimated_wait_seconds")
    return f"{rate:,.0f}" if rate else "", "" if wait is None else f"{wait:,.1f} s"


def _row(job: Job) -> tuple[object, ...]:
    tokens = job.usage.completion_tokens if job.usage else None
    text = " ".join(next(islice(job.text.splitlines(), 1), "").split())
    excerpt = text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"
    created = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return job.id, job.status, job.model, created, tokens, excerpt


def _facts(job: Job) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [("id", job.id), ("status", job.status), ("model", job.model)]
    times = (("created", job.created_at), ("started", job.started_at), ("ended", job.finished_at))
    facts += [
        (name, time.astimezone().isoformat(" ", "milliseconds")) for name, time in times if time
    ]
    if job.queue:
        wait = job.queue.estimated_wait_seconds
        when = "" if wait is None else f", starts in about {wait:,.0f} s"
        facts.append(("queue", f"{job.queue.ahead:,} ahead{when}"))
    facts.append(("seed", job.seed))
    if job.retry_of:
        facts.append(("retry of", job.retry_of))
    if job.usage:
        usage = job.usage
        facts.append(
            ("tokens", f"{usage.prompt_tokens} of the prompt, {usage.completion_tokens} generated")
        )
    if job.error:
        facts.append(("error", f"{job.error.code}: {job.error.message}"))
    return facts
