"""Whether the packages of each part of the service are installed, without importing any."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata

from slm_client.doctor.finding import Finding, fault, ok
from slm_client.siblings import ROOT

_PROJECT = "slm-jobs"
_PARTS = ("api", "worker", "callbacks")  # what `slm up` needs
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[([\w,-]+)\])?(?:>=([\w.]+))?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")


def look() -> Iterator[Finding]:
    """A finding for each part, and for training."""
    wanted = _requirements()
    for part in _PARTS:
        wrong = _wrong(wanted, part)
        if wrong:
            says = f"{part}: missing or too old: {', '.join(wrong)}."
            yield fault("packages", says, f"`{install_command(part)}`")
        else:
            yield ok("packages", f"{part}: all are there.")
    wrong = _wrong(wanted, "train")
    has = f"not here, and only needed for that: {', '.join(wrong)}" if wrong else "all are there"
    yield ok("packages", f"training: {has}.")


def install_command(*extras: str) -> str:
    """What makes the packages be there, for a person to type."""
    project = "." if (ROOT / "pyproject.toml").exists() else _PROJECT
    where = [*(("--editable",) if project == "." else ()), f"{project}[{','.join(extras)}]"]
    change = f"cd {shlex.quote(str(ROOT))} && " if project == "." else ""
    return change + shlex.join([sys.executable, "-m", "pip", "install", *where])


def _requirements() -> dict[str, list[str]]:
    """By extra; "" are those of all. A checkout's own file goes before what was once installed."""
    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    except FileNotFoundError:
        found: dict[str, list[str]] = {}
        for line in metadata.requires(_PROJECT) or ():
            requirement, _, marker = line.partition(";")
            extra = _EXTRA.search(marker)
            found.setdefault(extra[1] if extra else "", []).append(requirement.strip())
        return found
    return {"": project["dependencies"], **project["optional-dependencies"]}


def _wrong(wanted: dict[str, list[str]], extra: str) -> list[str]:
    """What is missing or too old, as pip would be told."""
    wrong = []
    for line in (*wanted[""], *wanted[extra]):
        match = _REQUIREMENT.match(line)
        if not match:
            continue
        name, extras, least = match.groups()
        if name == _PROJECT:
            wrong += [each for more in extras.split(",") for each in _wrong(wanted, more)]
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(name)
        else:
            if least and _numbers(version) < _numbers(least):
                wrong.append(f"{name}>={least} (it is {version})")
    return list(dict.fromkeys(wrong))


def _numbers(version: str) -> tuple[int, ...]:
    """The leading ones: 2.13.0+cpu is (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
