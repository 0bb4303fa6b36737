"""`slm completion`: the script that lets a shell complete what one types."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from slm_client.commands.options import print_result
from slm_client.completion import Shell, script


def completion(
    context: typer.Context,
    shell: Annotated[
        Shell | None, typer.Argument(help="Your shell.", show_default="what $SHELL names")
    ] = None,
) -> None:
    """Print a script that makes the Tab key complete commands, options and their values.

    A shell that reads the script knows them all and starts nothing when the key is pressed, so take
    a new script after an update. It completes `slm`, however it is reached: put .venv/bin on your
    PATH, or type `.venv/bin/slm`.

    Examples:

    \b
      slm completion bash > ~/.local/share/bash-completion/completions/slm
      slm completion zsh > "${fpath[1]}/_slm"
      slm completion fish > ~/.config/fish/completions/slm.fish
      source <(slm completion bash)
    """
    named = shell or Path(os.environ.get("SHELL", "")).name
    if named not in list(Shell):
        raise typer.BadParameter(f"say which shell you use: {', '.join(Shell)}")
    print_result(script(Shell(named), context.find_root().command), end="")
