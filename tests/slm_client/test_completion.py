"""What shells complete: they run what `slm completion` prints, with no slm at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from slm_client.cli import app
from slm_client.completion import Shell, places, script
from tests.slm_client.processes import slm

# What is typed, and what a key press then offers.
CASES = {
    "st": {"status"},
    "jobs ": {"list", "show", "cancel", "delete"},
    "keys secret r": {"rotate"},
    "jobs list --st": {"--status"},
    "jobs list --status q": {"queued"},
    "jobs list --limit 5 --j": {"--json"},
    "generate 'Once upon' --no-s": {"--no-stream"},
    "up --data-dir p": set(),  # files are the shell's
    "status --watch --u": {"--url"},
    "completion ": {"bash", "zsh", "fish"},
    "batches list -": {"--limit", "--json", "--url", "--api-key", "--data-dir", "--help", "-h"},
}
_BASH = """
source "$1"
COMP_WORDS=() ; eval "COMP_WORDS=($2)"; [[ $2 == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_slm slm
printf '%s\\n' "${COMPREPLY[@]}"
"""
_ZSH = """
_describe() { print -l -- "${(@)${(@P)2}%%:*}" }
_files() { }
compdef() { }
source "$1"
words=("${(@Q)${(z)2}}"); [[ $2 == *' ' ]] && words+=('')
CURRENT=$#words; PREFIX=$words[-1]
_slm
"""


def offered(shell: Shell, typed: str, folder: Path) -> set[str]:
    """By the shell itself, which has no `slm` to ask."""
    path = shutil.which(shell.value)
    if not path:
        pytest.skip(f"there is no {shell.value} here")
    source = folder / "completion"
    source.write_text(script(shell, get_command(app)))
    line = f"slm {typed}"
    arguments = {
        Shell.BASH: ["--norc", "--noprofile", "-c", _BASH, "bash", str(source), line],
        Shell.ZSH: ["-f", "-c", _ZSH, "zsh", str(source), line],
        Shell.FISH: ["--no-config", "-c", f"source {source}; complete -C {_fish_quoted(line)}"],
    }[shell]
    (folder / "home").mkdir(exist_ok=True)
    done = subprocess.run(
        [path, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder / "home",
        env={"HOME": str(folder / "home"), "PATH": os.defpath},
    )
    assert done.stderr == ""
    words = {line.split("\t")[0] for line in done.stdout.splitlines() if line}
    if shell is not Shell.BASH:  # they complete the word themselves
        last = line.rpartition(" ")[2]
        words = {word for word in words if word.startswith(last)}
    return words


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@pytest.mark.parametrize("shell", Shell)
@pytest.mark.parametrize("typed", CASES)
def test_a_shell_completes(shell: Shell, typed: str, tmp_path: Path) -> None:
    assert offered(shell, typed, tmp_path) == CASES[typed]


def test_every_command_is_known() -> None:
    found = {place.path: place for place in places(get_command(app))}
    assert {"generate", "status", "doctor", "completion"} <= found[""].follows.keys()
    assert {" jobs list", " keys secret show", " completion"} <= found.keys()
    watch = next(o for o in found[" status"].options if "--watch" in o.names)
    assert (watch.names, watch.takes_value) == (("--watch", "-w"), False)
    assert all(o.about for place in found.values() for o in place.options)


def test_the_command_prints_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in Shell:
        assert slm("completion", shell.value).stdout == script(shell, get_command(app))
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    assert slm("completion").stdout.startswith("#compdef slm\n")
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    result = slm("completion")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "say which shell you use: bash, zsh, fish" in " ".join(result.stderr.split())
    monkeypatch.delenv("SHELL")
    assert slm("completion").exit_code == 2
