"""From a batch in the service to results in an output, with progress; and how to come back."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from slm_client.batch import Batch, Result
from slm_client.client import DEFAULT_URL, Client
from slm_client.commands.options import DEFAULT_DATA_DIR, screen
from slm_client.outputs import Output
from slm_client.progress import display, line, summary
from slm_client.resume import forget


def collect(
    client: Client,
    batch: Batch,
    output: Output,
    *,
    follow: bool = True,
    on_result: Callable[[Result], None] | None = None,
) -> Batch:
    """Writes what becomes of each row, as it comes, from the first on; returns the batch as it
    stood in the end. Raises BadInput if it cannot be written."""
    with output.opened() as writer, display(screen) as shown:
        for item in client.batches.watch(batch.id, follow=follow):
            if isinstance(item, Batch):
                batch = item
                shown.show(batch.counts.done, batch.counts.total, line(batch))
                continue
            try:
                writer.write(item)
            except BrokenPipeError:  # the reader, such as `head`, has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            if on_result:
                on_result(item)
    if batch.ended:
        forget(output, batch.id)
    return batch


def end(batch: Batch, flags: str) -> None:
    """Says what came of an ended batch. Raises Exit if some rows did not succeed."""
    say(f"{summary(batch)}.")
    if batch.status == "failed":
        for problem in batch.errors:
            say(f"line {problem.line}: {problem.message}")
        raise typer.Exit(1)
    if batch.status == "cancelled" and not batch.counts.total:
        say(f"{batch.id} was cancelled while its rows came in; none of them ran.")
        raise typer.Exit(1)
    if batch.counts.unsuccessful:
        say(f"Which and why:  slm batches errors {batch.id}{flags}")
        say(f"Try them again: slm batches retry {batch.id}{flags}")
        raise typer.Exit(1)


def say_how_to_come_back(batch: Batch, output: Output, flags: str) -> None:
    file = "FILE" if output.state_file is None else shlex.quote(output.name)
    replace = "" if output.is_empty() else " --overwrite"
    say(
        f"{batch.id} goes on in the service. The same command comes back to it; or\n"
        f"  slm batches results {batch.id} -o {file} --follow{replace}{flags}\n"
        f"  slm batches show {batch.id}{flags}\n"
        f"  slm batches cancel {batch.id}{flags}"
    )


def flags_for(url: str, data_dir: Path) -> str:
    """What other commands need to find the same service and key."""
    flags = ""
    if url != (os.environ.get("SLM_URL") or DEFAULT_URL):
        flags += f" --url {shlex.quote(url)}"
    if data_dir != DEFAULT_DATA_DIR:
        flags += f" --data-dir {shlex.quote(str(data_dir))}"
    return flags


def say(text: str) -> None:
    screen.print(text, markup=False, soft_wrap=True)
