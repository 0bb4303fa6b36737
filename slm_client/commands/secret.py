"""`slm keys secret …`: what the callbacks of the key in use are signed with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from slm_client.callbacks import CallbackSecret
from slm_client.client import DEFAULT_URL
from slm_client.commands import options
from slm_client.commands.collect import say
from slm_client.commands.durations import seconds
from slm_client.commands.options import print_json, print_result

secret = typer.Typer(
    no_args_is_help=True,
    help="Show and rotate the secret that the callbacks of your key are signed with.",
)


@secret.command()
def show(
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Print the secret that callbacks of your key are signed with; receivers verify with it.

    Examples:

    \b
      slm keys secret show
      SLM_CALLBACK_SECRET=$(slm keys secret show) python examples/webhook_receiver.py
    """
    with options.connect(url, api_key, data_dir) as client:
        _show(client.callbacks.secrets(), as_json)


@secret.command()
def rotate(
    overlap: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="How long the old secret signs too: 0s to 7d, as 90m or 36h."
        ),
    ] = "24h",
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Make a new secret for the callbacks of your key, and print it.

    Until the overlap ends, callbacks carry a signature of each secret: receivers with the old one
    go on, and have so long to get the new one. --overlap 0s is for a secret that has leaked.

    Examples:

    \b
      slm keys secret rotate
      slm keys secret rotate --overlap 7d
      slm keys secret rotate --overlap 0s
    """
    overlap_seconds = seconds("--overlap", overlap, least=0)
    with options.connect(url, api_key, data_dir) as client:
        _show(client.callbacks.rotate_secret(overlap_seconds=overlap_seconds), as_json)


def _show(secrets: Sequence[CallbackSecret], as_json: bool) -> None:
    if as_json:
        print_json([secret.raw for secret in secrets])
        return
    current, *before = secrets
    print_result(current.secret)
    for old in before:
        if old.expires_at:
            until = old.expires_at.astimezone().isoformat(" ", "seconds")
            say(f"Until {until} callbacks are signed with {old.secret} too.")
