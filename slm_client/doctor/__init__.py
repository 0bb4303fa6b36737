"""What keeps the service from running well on this machine, and how to mend it.

Looks at things by itself, or has the other folders' modules look, in processes of their own: a
broken torch, a Redis that hangs or a damaged checkpoint ends in a finding, never in a traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from slm_client.doctor import engine, machine, packages, services
from slm_client.doctor.finding import Finding, Level, fault, warning
from slm_client.errors import SlmClientError

__all__ = ["Finding", "Level", "Place", "examine", "guarded"]


@dataclass(frozen=True)
class Place:
    """Where the service is, or shall be. `redis_url` None: a Redis of its own; `api_key` None: that
    of the data folder."""

    url: str
    api_key: str | None
    data_dir: Path
    redis_url: str | None
    port: int


def examine(place: Place) -> Iterator[Finding]:
    """The findings one by one, as they come: some take seconds."""
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "python": machine.python,
        "packages": packages.look,
        "disk": partial(machine.disk, place.data_dir),
        "memory": machine.memory,
        "clock": machine.clock,
        "torch": engine.look,
        "models": partial(engine.models, place.data_dir),
        "redis": partial(services.redis, place.redis_url),
        "service": partial(services.service, place.url, place.api_key, place.data_dir),
        "port": partial(services.port, place.port, place.url),
    }
    for name, look in checks.items():
        yield from guarded(name, look)


def guarded(name: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a check finds, also if it breaks."""
    try:
        yield from look()
    except SlmClientError as error:
        yield fault(name, str(error))
    except Exception as error:  # whatever is broken here must not hide what else is
        yield warning(name, f"this could not be checked: {type(error).__name__}: {error}.")
