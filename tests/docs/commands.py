"""Whether commands that no test runs exist: programs of ours, their options, make's targets."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any
from unittest import mock

import typer

from slm_client.cli import app
from tests.docs.pages import ROOT

_ENDS = re.compile(r"^[|&;<>\n]+$")
_COMMENT = re.compile(r"(?<!\S)#.*")
_ASSIGNMENT = re.compile(r"^\w+=")


def problems(shell: str) -> list[str]:
    """What is wrong with a block of shell commands."""
    if bash := shutil.which("bash"):
        done = subprocess.run(
            [bash, "-n"], input=shell, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return [done.stderr]
    return [problem for words in _commands(shell) for problem in _check(words)]


def slm_problem(words: Sequence[str]) -> str | None:
    """What is wrong with `slm` and these words, its options' values aside."""
    command = _slm()
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return f"slm {' '.join(words)}: there is no {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    options |= {"-h", "--help"}
    given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    unknown = sorted(given - options)
    return f"slm {' '.join(words)}: there is no {', '.join(unknown)}" if unknown else None


@cache
def _slm() -> Any:
    return typer.main.get_command(app)


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("$(VENV)", ".venv")
    return set(re.findall(r"^([a-z./-]+):", makefile, re.MULTILINE))


def _commands(shell: str) -> Iterator[list[str]]:
    """Each simple command's words, without comments and assignments before it."""
    text = _COMMENT.sub("", shell.replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not _ENDS.match(word):
            words.append(word)
            continue
        while words and _ASSIGNMENT.match(words[0]):
            words.pop(0)
        if words:
            yield words
        words = []


def _check(words: list[str]) -> Iterator[str]:
    program, rest = words[0].rpartition("/")[2], words[1:]
    if program == "slm" and (wrong := slm_problem(rest)):
        yield wrong
    elif program == "make":
        targets = {word for word in rest if not _ASSIGNMENT.match(word)}
        yield from (f"make {target}" for target in targets - make_targets())
    elif program == "pytest":
        for word in rest:
            if word.startswith("tests/") and not (ROOT / word.partition("::")[0]).exists():
                yield f"pytest {word}"
    elif program.startswith("python") and rest[:1] == ["-m"]:
        yield from _check_module(rest[1], rest[2:])


def _check_module(module: str, rest: Sequence[str]) -> Iterator[str]:
    if (module.partition(".")[0]) in ("celery", "uvicorn", "pytest", "http"):
        return  # not ours
    try:
        known = _help(module)
    except ImportError:
        yield f"python -m {module}: there is no such module"
        return
    for word in rest:
        option = word.partition("=")[0]
        if option.startswith("--") and not re.search(rf"{re.escape(option)}(?![\w-])", known):
            yield f"python -m {module}: there is no {option}"


@cache
def _help(module: str) -> str:
    """What `python -m module --help` prints. In this process, which has imported torch already."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [module, "--help"]),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return printed.getvalue()
