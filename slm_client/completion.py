"""What a shell needs to complete `slm`: a script that holds every command, option and value itself,
so that the key press starts no Python. Made from the commands as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import typer
from typer.core import TyperGroup

_ABOUT = 70  # characters of a description


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@dataclass(frozen=True)
class Option:
    """`values`: those that it may have; empty with `takes_value`: any, so files are offered."""

    names: tuple[str, ...]
    about: str
    takes_value: bool
    values: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a command line may stand: `path` is the words so far, each with a space before it."""

    path: str
    follows: dict[str, str]  # commands and values, and what they are about
    options: list[Option]


def script(shell: Shell, command: Any) -> str:
    """The source of the completion of `command`, a command or group of typer."""
    return _WRITERS[shell](list(places(command)))


def places(command: Any, path: str = "", parent: Any = None) -> Iterator[Place]:
    """This one, and those below it."""
    settings: dict[str, Any] = {
        "info_name": "slm",
        "resilient_parsing": True,
        **command.context_settings,
    }
    context = typer.Context(command, parent=parent, **settings)
    below = {}
    if isinstance(command, TyperGroup):
        each = {name: command.get_command(context, name) for name in command.list_commands(context)}
        below = {name: found for name, found in each.items() if found and not found.hidden}
    follows = {name: found.get_short_help_str(_ABOUT) for name, found in below.items()}
    options = []
    for param in command.get_params(context):
        values = tuple(item.value for item in param.shell_complete(context, ""))
        if param.param_type_name == "argument":
            follows |= dict.fromkeys(values, "")
        elif not param.hidden:
            options.append(_option(param, values))
    yield Place(path, follows, options)
    for name, found in below.items():
        yield from places(found, f"{path} {name}", context)


def _option(param: Any, values: tuple[str, ...]) -> Option:
    about = " ".join((param.help or "").split())
    names = (*param.opts, *param.secondary_opts)
    return Option(names, about, not (param.is_flag or param.count), values)


def _quoted(text: str) -> str:
    """For sh: one word, whatever is in it."""
    return "'" + text.replace("'", "'\\''") + "'"


def _cases(of: Iterable[tuple[Iterable[str], str]], indent: int) -> str:
    """The branches of a `case`: patterns, and what is done. Those without patterns are left out."""
    lines = [
        f"{' ' * indent}{' | '.join(map(_quoted, patterns))}) {action} ;;"
        for patterns, action in ((list(patterns), action) for patterns, action in of)
        if patterns
    ]
    return "\n".join(lines)


def _sh(
    found: list[Place], word: Callable[[str, str], str], take: str, files: str
) -> dict[str, str]:
    """The parts that bash and zsh have in common. `word` writes a word and what it is about, `take`
    offers words, `files` offers files."""

    def offer(words: Iterable[tuple[str, str]]) -> str:
        return take % " ".join(word(*each) for each in words)

    valued = [(p, o) for p in found for o in p.options if o.takes_value]
    return {
        "paths": _cases([([place.path for place in found if place.path], 'at="$at $word"')], 12),
        "values": _cases(
            [
                *(
                    ([f"{p.path} {name}" for name in o.names], offer((v, "") for v in o.values))
                    for p, o in valued
                    if o.values
                ),
                (
                    [f"{p.path} {name}" for p, o in valued if not o.values for name in o.names],
                    files,
                ),
            ],
            8,
        ),
        "options": _cases(
            (
                ([p.path], offer((name, o.about) for o in p.options for name in o.names))
                for p in found
            ),
            16,
        ),
        "follows": _cases((([p.path], offer(p.follows.items())) for p in found if p.follows), 16),
    }


_SH = """\
    case "$at $before" in
%(values)s
        *)
            case "$current" in
            -*)
                case "$at" in
%(options)s
                esac ;;
            *)
                case "$at" in
%(follows)s
                esac ;;
            esac ;;
    esac
"""

_BASH = f"""\
# Completion of slm, made by `slm completion bash`.
_slm() {{
    local at='' word words=''
    local before=${{COMP_WORDS[COMP_CWORD-1]}} current=${{COMP_WORDS[COMP_CWORD]}}
    COMPREPLY=()
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$at $word" in
%(paths)s
        esac
    done
{_SH}    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _slm slm
"""

_ZSH = f"""\
#compdef slm
# Completion of slm, made by `slm completion zsh`.
_slm() {{
    local at='' before=${{words[CURRENT-1]}} current=$PREFIX word
    local -a found
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "$at $word" in
%(paths)s
        esac
    done
{_SH}    if (( $#found )); then _describe slm found; else _files; fi
}}
if [ "$funcstack[1]" = _slm ]; then _slm "$@"; else compdef _slm slm; fi
"""

_FISH = """\
# Completion of slm, made by `slm completion fish`.
function __slm_at
    set -l at ''
    for word in (commandline -opc)[2..-1]
        if contains -- "$at $word" %(paths)s
            set at "$at $word"
        end
    end
    test "$at" = "$argv"
end
"""


def _bash(found: list[Place]) -> str:
    parts = _sh(found, lambda word, about: word, "words='%s'", "return")  # noqa: ARG005
    return _BASH % parts


def _zsh(found: list[Place]) -> str:
    def described(word: str, about: str) -> str:
        return _quoted(f"{word}:{about}" if about else word)

    return _ZSH % _sh(found, described, "found=(%s)", "_files; return")


def _fish(found: list[Place]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = [_FISH % {"paths": " ".join(quoted(p.path) for p in found if p.path)}]
    for place in found:
        here = f"complete -c slm -n {quoted(f'__slm_at {quoted(place.path)}')}"
        for name, about in place.follows.items():
            lines.append(f"{here} -f -a {quoted(name)} -d {quoted(about)}")
        for option in place.options:
            names = (f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
            value = " -r" if option.takes_value else ""
            if option.values:
                value = f" -x -a {quoted(' '.join(option.values))}"
            lines.append(f"{here} {' '.join(names)}{value} -d {quoted(option.about)}")
    return "\n".join(lines) + "\n"


_WRITERS: dict[Shell, Callable[[list[Place]], str]] = {
    Shell.BASH: _bash,
    Shell.ZSH: _zsh,
    Shell.FISH: _fish,
}
