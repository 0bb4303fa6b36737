"""`slm demo`: everything once, from nothing to stories, in a folder and on a port of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel
from rich.text import Text

from slm_client.client import Client
from slm_client.commands import options
from slm_client.commands.bulk import opened, refuse_overwrite, write_stories
from slm_client.commands.options import screen
from slm_client.commands.up import show_event, stop_signals
from slm_client.errors import BadInput
from slm_client.job import Params
from slm_client.rows import read_rows
from slm_client.stack import Stack, StackOptions

_SHOWN = 3


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File of JSON lines; it is replaced.")
    ] = Path("stories.jsonl"),
    prompts: Annotated[
        str, typer.Option(help="A .txt or .jsonl file of prompts.")
    ] = "examples/prompts.txt",
    data_dir: Annotated[Path, typer.Option(help="Folder for jobs, logs and its API key.")] = Path(
        ".slm/demo"
    ),
    max_tokens: options.MaxTokens = 200,
) -> None:
    """Start everything, write a story for each example prompt, stop everything.

    Needs nothing that runs already. Uses a free port, so it does not disturb a `slm up`.

    Examples:

    \b
      slm demo
      slm demo -o /tmp/stories.jsonl --max-tokens 100
      slm demo --prompts my-prompts.txt
    """
    if prompts != "-" and not Path(prompts).exists():
        raise BadInput(f"{prompts} is not here; run this in the repository, or use --prompts.")
    rows = read_rows(prompts)
    refuse_overwrite(str(output), prompts, overwrite=True)
    stack_options = StackOptions(port=0, data_dir=data_dir, keep_data=False)
    with stop_signals(), Stack(stack_options, on_event=show_event) as stack:
        screen.print(f"writing {len(rows)} stories", style="dim")
        with opened(str(output)) as file, Client(stack.url, stack.api_key) as client:
            params = Params(max_tokens=max_tokens)
            tally = write_stories(client, rows, file, str(output), params)
        _show_some(output)
        screen.print(f"{tally.summary()}.", style="bold", soft_wrap=True)
    screen.print(f"The stories are in {output}.", markup=False, soft_wrap=True)
    if tally.failed:
        raise typer.Exit(1)


def _show_some(output: Path) -> None:
    """The last ones that came to an end of their own: early ones are short."""
    with output.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    stories = [line for line in lines if line.get("finish_reason") == "stop"]
    for story in stories[-_SHOWN:]:
        body = Text.assemble((story["prompt"], "bold"), story["text"])
        screen.print(Panel(body, width=min(88, screen.width)))
