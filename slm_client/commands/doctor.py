"""`slm doctor`: what keeps the service from running well here, and how to mend it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from slm_client.client import DEFAULT_URL
from slm_client.commands import options
from slm_client.commands.options import print_json, results
from slm_client.doctor import Finding, Level, Place, examine

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "red"}


def doctor(
    redis_url: Annotated[
        str | None,
        typer.Option(
            envvar="SLM_REDIS_URL",
            help="The Redis to look at.",
            show_default="the server that `slm up` would start",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where `slm up` shall listen.")
    ] = 8000,
    data_dir: Annotated[
        Path, typer.Option(help="Data folder of `slm up`.")
    ] = options.DEFAULT_DATA_DIR,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
) -> None:
    """Check what the service needs on this machine, and say how to mend what is wrong.

    Python and packages, disk, memory and clock, torch, compiler and native kernels, every model (it
    generates some tokens with each), Redis, the port, and the service itself if it runs. Changes
    nothing. Takes some seconds for each model. Reads the same SLM_* variables as `slm up`.

    Exit code: 0 if nothing is broken, 1 if there is a fault.

    Examples:

    \b
      slm doctor
      slm doctor --redis-url redis://10.0.0.5:6379/0
      slm doctor --json | jq '.findings[] | select(.level != "ok")'
    """
    found: list[Finding] = []
    for finding in examine(Place(url, api_key, data_dir, redis_url, port)):
        found.append(finding)
        if not as_json:
            _show(finding)
    good = all(finding.level is not Level.FAULT for finding in found)
    if as_json:
        print_json({"ok": good, "findings": [asdict(finding) for finding in found]})
    else:
        results().print(Text(_summary(found)))
    if not good:
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    level = Text(f"{finding.level:<8}", style=_STYLES[finding.level])
    line = Text.assemble(level, f"{finding.check:<9} {finding.says}")
    if finding.mend:
        line.append(f" → {finding.mend}")
    results().print(line, soft_wrap=True)


def _summary(found: list[Finding]) -> str:
    counts = {level: sum(finding.level is level for finding in found) for level in Level}
    if not counts[Level.FAULT] and not counts[Level.WARNING]:
        return "Nothing is wrong."
    return f"Faults: {counts[Level.FAULT]}. Warnings: {counts[Level.WARNING]}."
