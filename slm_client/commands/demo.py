"""`slm demo`: everything once, from nothing to stories, in a folder and on a port of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel
from rich.text import Text

from slm_client.batch import Result
from slm_client.client import Client
from slm_client.commands import options
from slm_client.commands.bulk import refuse_to_lose, upload
from slm_client.commands.collect import collect
from slm_client.commands.options import screen
from slm_client.commands.up import show_event, stop_signals
from slm_client.errors import BadInput
from slm_client.outputs import Output
from slm_client.progress import summary
from slm_client.source import named
from slm_client.stack import Stack, StackOptions

_SHOWN = 3


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .jsonl or .csv file; it is replaced.")
    ] = Path("stories.jsonl"),
    prompts: Annotated[
        str, typer.Option(help="A .txt, .csv or .jsonl file of prompts.")
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
    target = Output(str(output))
    refuse_to_lose(prompts, target)
    stories: list[Result] = []
    stack_options = StackOptions(port=0, data_dir=data_dir, keep_data=False)
    with (
        named(prompts) as (source, kind),
        stop_signals(),
        Stack(stack_options, on_event=show_event) as stack,
    ):
        with Client(stack.url, stack.api_key) as client:
            batch = upload(client, source, kind, None, {"max_tokens": max_tokens})
            screen.print(f"writing {batch.counts.total} stories", style="dim")
            batch = collect(client, batch, target, on_result=stories.append)
        _show_some(stories)
        screen.print(f"{summary(batch)}.", style="bold", soft_wrap=True)
    screen.print(f"The stories are in {output}.", markup=False, soft_wrap=True)
    if batch.counts.unsuccessful:
        raise typer.Exit(1)


def _show_some(results: list[Result]) -> None:
    """The last ones that came to an end of their own: early ones are short."""
    stories = [result for result in results if result.finish_reason == "stop"]
    for story in stories[-_SHOWN:]:
        body = Text.assemble((story.prompt, "bold"), story.text)
        screen.print(Panel(body, width=min(88, screen.width)))
