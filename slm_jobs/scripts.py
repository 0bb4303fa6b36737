"""The scripts of `lua/`, one per transition, each behind the shared parts of `lua/prelude/`.

Keys and the ticket are declared to Lua from their one definition in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import NoScriptError

from slm_jobs import keys
from slm_jobs.batch_records import BATCH_FIELDS
from slm_jobs.connection import execute_raw, store_errors
from slm_jobs.records import FIELDS
from slm_jobs.tickets import TICKET_TEMPLATE, TICKETS_MAX, queue_name

if TYPE_CHECKING:
    from redis import Redis
    from redis.commands.core import Script

_LUA = Path(__file__).with_name("lua")
_PRELUDE = ("base", "limits", "outbox", "jobs", "rows", "work")  # each may use those before it


class Lifetimes(NamedTuple):
    """How long records are kept after their end, in seconds."""

    job: int = 86_400
    batch: int = 604_800
    dead_letter: int = 604_800  # a failed job


_LIFETIMES = Lifetimes()


def _declarations(lifetimes: Lifetimes) -> str:
    names = {name: value for name, value in vars(keys).items() if name.isupper()}
    names |= {"QUEUE": queue_name(""), "TICKET": TICKET_TEMPLATE}
    lines = [f"local {name} = [==[{value}]==]" for name, value in names.items()]
    lines += [f"local {name.upper()}_TTL = {s}" for name, s in lifetimes._asdict().items()]
    lines.append(f"local TICKETS_MAX = {TICKETS_MAX}")
    for name, fields in (("FIELDS", FIELDS), ("BATCH_FIELDS", BATCH_FIELDS)):
        lines.append(f"local {name} = {{ {', '.join(map(repr, fields))} }}")
    return "\n".join([*lines, ""])


@cache
def _sources(lifetimes: Lifetimes) -> dict[str, str]:
    bodies = {path.stem: path.read_text("utf-8") for path in sorted(_LUA.glob("*.lua"))}
    parts = [(_LUA / "prelude" / f"{part}.lua").read_text("utf-8") for part in _PRELUDE]
    opening = "\n".join([_declarations(lifetimes), *parts, ""])
    return {name: opening + body for name, body in bodies.items()}


def register(redis: Redis, lifetimes: Lifetimes = _LIFETIMES) -> dict[str, Script]:
    """The scripts by name. Redis is not called; a script loads itself when Redis lacks it."""
    return {name: redis.register_script(source) for name, source in _sources(lifetimes).items()}


def run(redis: Redis, script: Script, args: Sequence[str | int | bytes], *, raw: bool) -> Any:
    """Raises StoreUnavailable."""
    with store_errors():
        if not raw:
            return script(args=args)
        call = ("EVALSHA", script.sha, 0, *args)
        try:
            return execute_raw(redis, *call)
        except NoScriptError:
            redis.script_load(script.script)
            return execute_raw(redis, *call)
