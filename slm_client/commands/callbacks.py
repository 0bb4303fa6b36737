"""`slm callbacks …`: what became of callbacks, and sending them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated

import typer

from slm_client.callbacks import Attempt, Delivery
from slm_client.client import DEFAULT_URL
from slm_client.commands import options
from slm_client.commands.collect import flags_for, say
from slm_client.commands.options import print_json, print_table
from slm_client.errors import ApiError

# Codes of what the next id has nothing to do with.
_LEFT = ("nothing_to_replay", "job_not_found", "batch_not_found")

callbacks = typer.Typer(
    no_args_is_help=True,
    help="List callbacks of jobs and batches, and send them again.",
)


@callbacks.command("list")
def list_callbacks(
    work_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB_OR_BATCH_ID]",
            help="Whose callbacks to list, with every attempt.",
            show_default="all that were given up",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most that were given up to list.")] = 20,
    everything: Annotated[
        bool, typer.Option("--all", help="All that were given up, however many.")
    ] = False,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """List the callbacks of a job or batch, and how each attempt went; or those given up.

    A callback is given up after the last attempt of the service's schedule, or when the receiver
    answers 410. Its receiver mended, `slm callbacks replay` sends it again.

    Examples:

    \b
      slm callbacks list
      slm callbacks list job_01K9ZX3V7Q4C8E2M5T6R0B1DAF
      slm callbacks list --all --json | jq -r '.[].of' | sort -u | xargs -r slm callbacks replay
    """
    with options.connect(url, api_key, data_dir) as client:
        if work_id is None:
            found = list(client.callbacks.failed(limit=None if everything else limit))
        else:
            found = client.callbacks.of(work_id)
    if as_json:
        print_json([delivery.raw for delivery in found])
    elif not found:
        whose = "was given up" if work_id is None else f"is known of {work_id}"
        say(f"No callback {whose}.")
    elif work_id is None:
        columns = ("id", "created", "attempts#", "last answer", "url")
        print_table(columns, map(_given_up, found))
    else:
        print_table(("id", "status", "attempt", "took#", "answer", "said"), _attempts(found))


@callbacks.command()
def replay(
    work_ids: Annotated[
        list[str],
        typer.Argument(metavar="ID...", help="Ids of jobs and batches.", show_default=False),
    ],
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Send the callbacks of jobs and batches again, delivered or given up.

    They keep their ids (`webhook-id`), so that a receiver can tell those that it has handled; what
    is pending anyway stays as it is. Jobs and batches without callbacks to send again are told at
    the end.

    Examples:

    \b
      slm callbacks replay job_01K9ZX3V7Q4C8E2M5T6R0B1DAF
    """
    left: list[str] = []
    with options.connect(url, api_key, data_dir) as client:
        for work_id in work_ids:
            try:
                count = client.callbacks.replay(work_id)
            except ApiError as error:
                if error.code not in _LEFT:
                    raise
                left.append(f"{work_id}: {error}")
                continue
            what = "1 callback is" if count == 1 else f"{count:,} callbacks are"
            how = f"slm callbacks list {work_id}{flags_for(url, data_dir)}"
            say(f"{work_id}: {what} sent again; {how} tells how it goes")
    for line in left:
        say(line)
    if left:
        raise typer.Exit(1)


def _given_up(delivery: Delivery) -> tuple[object, ...]:
    attempts = delivery.attempts
    answer = _answer(attempts[-1]) if attempts else None
    return delivery.id, _moment(delivery.created_at), len(attempts), answer, delivery.url


def _attempts(found: Iterable[Delivery]) -> Iterator[tuple[object, ...]]:
    """A row for each; what they have in common stands in the first of a callback."""
    for delivery in found:
        head: tuple[str | None, ...] = (delivery.id, _status(delivery))
        for attempt in delivery.attempts:
            took = f"{attempt.duration_ms:,} ms"
            yield *head, _moment(attempt.at), took, _answer(attempt), _excerpt(attempt)
            head = (None, None)
        if not delivery.attempts:
            yield *head, None, None, None, None


def _status(delivery: Delivery) -> str:
    if delivery.status != "pending" or delivery.next_attempt_at is None:
        return delivery.status
    return f"pending, next {_moment(delivery.next_attempt_at)}"


def _answer(attempt: Attempt) -> str:
    return attempt.error or str(attempt.status)


def _excerpt(attempt: Attempt) -> str:
    """On one line, and without what a terminal would obey: it is a stranger's."""
    text = " ".join(attempt.response.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _moment(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
