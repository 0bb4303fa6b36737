"""The `slm` command: its commands, and how it ends."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from slm_client.commands.batches import batches
from slm_client.commands.bulk import bulk
from slm_client.commands.callbacks import callbacks
from slm_client.commands.completion import completion
from slm_client.commands.demo import demo
from slm_client.commands.dlq import dlq
from slm_client.commands.doctor import doctor
from slm_client.commands.generate import generate
from slm_client.commands.jobs import jobs, queue
from slm_client.commands.keys import keys
from slm_client.commands.models import models
from slm_client.commands.options import screen
from slm_client.commands.status import status
from slm_client.commands.up import up
from slm_client.errors import SlmClientError


class _Commands(TyperGroup):
    """Turns what a person can do something about into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (SlmClientError, OSError) as error:
            screen.print(str(error), style="red", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            screen.print("Interrupted.")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes leave the words half of the line
    add_completion=False,  # `slm completion` is quicker: no Python for each key press
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (generate, bulk, up, demo, status, queue, doctor, completion):
    app.command()(command)
for name, group in (
    ("jobs", jobs),
    ("batches", batches),
    ("callbacks", callbacks),
    ("dlq", dlq),
    ("models", models),
    ("keys", keys),
):
    app.add_typer(group, name=name)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"slm {metadata.version('slm-jobs')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def slm(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Text generation with a small language model, as a service.

    Start it with `slm up`, or see everything at once with `slm demo`. SLM_URL says where the
    service is, if not at http://127.0.0.1:8000, and SLM_API_KEY is your key for it; with a service
    of this machine, the key that `slm up` keeps in ./.slm is found without.

    Examples:

    \b
      slm demo
      slm up
      slm generate "Once upon a time"
      slm bulk prompts.txt -o stories.jsonl
      slm batches list
      slm jobs list
      slm callbacks list
      slm dlq list
      slm keys create story-backend
      slm models add gpt2 --from gpt2
      slm status --watch
      slm doctor
    """
