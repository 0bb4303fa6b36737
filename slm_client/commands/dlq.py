"""`slm dlq …`: dead letters, jobs that failed: why, and running them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from slm_client.client import DEFAULT_URL, Client
from slm_client.commands import options
from slm_client.commands.collect import flags_for, say
from slm_client.commands.options import print_json, print_result, print_table, screen
from slm_client.dead_letters import DeadLetter, Redriven
from slm_client.errors import ApiError, SlmClientError
from slm_client.job import Job
from slm_client.progress import display

dlq = typer.Typer(
    no_args_is_help=True,
    help="""List, show, redrive and drop dead letters, with an admin key.

    A dead letter is a job that failed, with all that it takes to run it again. It stays for a week
    unless it is redriven or dropped. Rows of batches are none: see `slm batches retry`. Its error
    says why it failed, and what to do:

    \b
      attempts_exhausted  Its worker died each time that it ran. Read the workers' logs; redrive it
                          once what killed them is mended, since it may do so again.
      deadline_exceeded   Its run_timeout passed. The text so far is kept. Redriven, it has the same
                          time again: worth it if the workers were busy, or are faster now.
      job_timeout         It ran for longer than SLM_JOB_TIMEOUT_SECONDS of the worker. As above.
      engine_fault        The model failed at it, or cannot be loaded: the message says which.
                          Redrive it once that is mended.
      invalid_request     The model cannot run it as it was asked. Drop it.
      internal_error      A fault of the worker, which is in its log. Redrive it once that is
                          mended.
    """,
)

_Id = Annotated[
    str, typer.Argument(metavar="ID", help="As `slm dlq list` shows it.", show_default=False)
]
_Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="As `slm dlq list` shows them.", show_default=False),
]


@dlq.command("list")
def list_dead_letters(
    limit: Annotated[int, typer.Option(min=1, help="Most to list.")] = 20,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """List dead letters, of all API keys, the latest first. `slm dlq --help` tells what they are.

    Examples:

    \b
      slm dlq list
      slm dlq list --limit 1000 --json | jq -r '.[].error.code' | sort | uniq -c
    """
    with _connect(url, api_key, data_dir) as client:
        found = list(client.dead_letters.list(limit=limit))
        total = client.dead_letters.count()
    if as_json:
        print_json([job.raw for job in found])
    elif not found:
        say("There are no dead letters.")
    else:
        print_table(("id", "failed", "model", "attempts#", "error", "message"), map(_row, found))
        if total > len(found):
            say(f"{total:,} in all; --limit shows more")


@dlq.command()
def show(
    job_id: _Id,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Show one dead letter: why it failed, what it was asked, and the text that it had.

    Examples:

    \b
      slm dlq show job_01K9ZX3V7Q4C8E2M5T6R0B1DAF
      slm dlq show job_01K9ZX3V7Q4C8E2M5T6R0B1DAF --json | jq .request.prompts
    """
    with _connect(url, api_key, data_dir) as client:
        letter = client.dead_letters.get(job_id)
    if as_json:
        print_json(letter.raw)
        return
    for name, value in _facts(letter):
        screen.print(f"{name:<16} {value}", markup=False, soft_wrap=True)
    for number, prompt in enumerate(letter.request["prompts"]):
        screen.print(f"\nPrompt {number}:", markup=False)
        print_result(str(prompt))
    for output in letter.job.outputs:
        screen.print(f"\nOutput {output.index}, as far as it came:", markup=False)
        print_result(output.text)
    say(f"\nslm dlq redrive {letter.job.id}{flags_for(url, data_dir)} runs it again.")


@dlq.command()
def redrive(
    job_ids: _Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="All that there are now.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether --all is meant.")] = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Run dead letters again, each as a new job of the same API key, with the same request.

    Do it once the cause is mended: what fails again is a dead letter again. Whoever asked for a
    callback is told how the new job ends. Limits of the key do not count, and a dead letter becomes
    one job, however often this is repeated.

    Exit code: 1 if any of the IDs was no dead letter.

    Examples:

    \b
      slm dlq redrive job_01K9ZX3V7Q4C8E2M5T6R0B1DAF
      slm dlq redrive --all
      slm dlq list --limit 1000 --json \\
        | jq -r '.[] | select(.error.code == "attempts_exhausted").id' | xargs slm dlq redrive
    """
    _check_choice(job_ids, everything)
    with _connect(url, api_key, data_dir) as client:
        if job_ids:
            _say_redriven(client.dead_letters.redrive_these(job_ids))
            return
        total = client.dead_letters.count()
        if not total:
            say("There are no dead letters.")
            return
        if not yes:
            typer.confirm(f"Redrive all {total:,} dead letters?", abort=True, err=True)
        done = 0
        with display(screen) as shown:
            for redriven in client.dead_letters.redrive_all():
                done += len(redriven.jobs)
                shown.show(done, max(total, done), f"{done:,}/{total:,} redriven")
    left = f"; failed since: {redriven.left:,}" if redriven.left else ""
    say(f"Redriven: {done:,}{left}.")


@dlq.command()
def drop(
    job_ids: _Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="All that there are now.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="--all is meant.")] = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Forget dead letters, with their texts and callbacks, for ever.

    Exit code: 1 if any of the IDs was no dead letter.

    Examples:

    \b
      slm dlq drop job_01K9ZX3V7Q4C8E2M5T6R0B1DAF
      slm dlq drop --all --yes
    """
    _check_choice(job_ids, everything)
    if everything and not yes:
        raise typer.BadParameter("--all forgets every dead letter for ever; --yes says so")
    with _connect(url, api_key, data_dir) as client:
        if job_ids:
            missing = 0
            for job_id in dict.fromkeys(job_ids):
                dropped = _dropped(client, job_id)
                missing += not dropped
                say(f"{job_id}: {'dropped' if dropped else _NONE}")
            if missing:
                raise typer.Exit(1)
            return
        found = list(dict.fromkeys(job.id for job in client.dead_letters.list()))
        done = 0
        with display(screen) as shown:
            for job_id in found:
                done += _dropped(client, job_id)
                shown.show(done, len(found), f"{done:,}/{len(found):,} dropped")
    say(f"Dropped: {done:,}.")


@contextmanager
def _connect(url: str, api_key: str | None, data_dir: Path) -> Iterator[Client]:
    try:
        with options.connect(url, api_key, data_dir) as client:
            yield client
    except ApiError as error:
        if error.code == "forbidden":
            raise SlmClientError(
                "dead letters are of all keys, and for admin keys only: set SLM_API_KEY to one. "
                "`slm up` keeps one in its data folder; `slm keys create NAME --admin` makes more."
            ) from None
        if error.code == "dead_letter_not_found":
            flags = flags_for(url, data_dir)
            advice = f"`slm dlq list{flags}` shows those that there are."
            raise SlmClientError(f"{error} {advice}") from None
        raise


_NONE = "no dead letter; it may have been dropped, or has expired"


def _check_choice(job_ids: list[str] | None, everything: bool) -> None:
    if bool(job_ids) == everything:
        raise typer.BadParameter("give either IDs or --all")


def _say_redriven(parts: Iterable[Redriven]) -> None:
    """Raises Exit if some were not found."""
    missing = 0
    for part in parts:
        for job in part.jobs:
            how = f"had run again ({job.status})" if job.ended else "runs again"
            say(f"{job.retry_of}: {how} as {job.id}")
        for job_id in part.not_found:
            say(f"{job_id}: {_NONE}")
        missing += len(part.not_found)
    if missing:
        raise typer.Exit(1)


def _dropped(client: Client, job_id: str) -> bool:
    """False if somebody else has dropped or redriven it meanwhile."""
    try:
        client.dead_letters.drop(job_id)
    except ApiError as error:
        if error.code != "dead_letter_not_found":
            raise
        return False
    return True


def _row(job: Job) -> tuple[object, ...]:
    failed = job.finished_at and _moment(job.finished_at)
    return job.id, failed, job.model, job.attempt, job.failure.code, job.failure.message


def _facts(letter: DeadLetter) -> Iterable[tuple[str, object]]:
    job = letter.job
    yield "id", job.id
    yield "error", f"{job.failure.code}: {job.failure.message}"
    if job.finished_at:
        yield "failed", _moment(job.finished_at)
    yield "made", _moment(job.created_at)
    yield "attempts", job.attempt
    yield "key", letter.key
    if job.retry_of:
        yield "retry of", job.retry_of
    for name, value in letter.request.items():
        if name != "prompts" and value not in (None, [], {}, ""):
            yield name, value


def _moment(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
