"""Lengths of time as people write them: 30s, 5m, 36h, 7d."""

from __future__ import annotations

import re

import typer

_FORM = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_MOST = 7 * 86_400


def seconds(option: str, text: str, *, least: int) -> int:
    """What was given for `option`, from `least` seconds to 7d. Raises BadParameter."""
    match = _FORM.fullmatch(text)
    if not match or not least <= (found := int(match[1]) * _SECONDS[match[2]]) <= _MOST:
        raise typer.BadParameter(f"{option} {text}: give {least}s to 7d, such as 90m or 36h")
    return found
