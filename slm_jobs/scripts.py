"""The scripts of `lua/`, one per transition, each behind the shared `prelude.lua`.

Keys and the ticket are declared to Lua from their one definition in Python.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from slm_jobs import keys
from slm_jobs.records import FIELDS
from slm_jobs.tickets import TICKET_TEMPLATE, TICKETS_MAX, queue_name

if TYPE_CHECKING:
    from redis import Redis
    from redis.commands.core import Script

_LUA = Path(__file__).with_name("lua")
_PRELUDE = "prelude"


def _declarations() -> str:
    names = {name: value for name, value in vars(keys).items() if name.isupper()}
    names |= {"QUEUE": queue_name(""), "TICKET": TICKET_TEMPLATE}
    lines = [f"local {name} = [==[{value}]==]" for name, value in names.items()]
    fields = ", ".join(f"'{name}'" for name in FIELDS)
    return "\n".join(
        [*lines, f"local TICKETS_MAX = {TICKETS_MAX}", f"local FIELDS = {{ {fields} }}", ""]
    )


@cache
def _sources() -> dict[str, str]:
    bodies = {path.stem: path.read_text("utf-8") for path in sorted(_LUA.glob("*.lua"))}
    opening = _declarations() + bodies.pop(_PRELUDE)
    return {name: opening + body for name, body in bodies.items()}


def register(redis: Redis) -> dict[str, Script]:
    """The scripts by name. Redis is not called; a script loads itself when Redis lacks it."""
    return {name: redis.register_script(source) for name, source in _sources().items()}
