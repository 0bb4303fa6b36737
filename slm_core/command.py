"""How our modules are commands of `python -m`."""

from __future__ import annotations

import typer


def command_line() -> typer.Typer:
    """An app without commands yet."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # its boxes leave the words half of the line
        context_settings={"help_option_names": ["-h", "--help"]},
    )
