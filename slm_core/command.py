"""How our modules are commands of `python -m`."""

from __future__ import annotations

import typer


def command_line(*, panels: bool = False) -> typer.Typer:
    """An app without commands yet; with `panels` its help shows options in groups."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        # Boxes leave the words half of the line.
        rich_markup_mode="rich" if panels else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
