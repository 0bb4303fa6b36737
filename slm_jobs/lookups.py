"""Which addresses a name has, as the machine's resolver says it. For asyncio."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from ipaddress import ip_address

Resolve = Callable[[str, int], Awaitable[list[str]]]

_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class Lookups:
    """Looks names up in threads: as many as there are for all keys, up to `per_key` for a key.

    A name server that hangs holds a thread for long after everybody has given up; so it holds up
    other names of the key that named it, and no more.
    """

    def __init__(self, threads: int, per_key: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "lookup")
        self._shares = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(per_key))

    def of(self, key: str) -> Resolve:
        """On behalf of a key."""
        return partial(self._look_up, key)

    async def _look_up(self, key: str, host: str, port: int) -> list[str]:
        if is_address(host):
            return [host]
        loop, share = asyncio.get_running_loop(), self._shares[key]

        def give_back(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended before the name server
                loop.call_soon_threadsafe(share.release)

        await share.acquire()
        look_up = self._executor.submit(_addresses, host, port)
        look_up.add_done_callback(give_back)
        return await asyncio.wrap_future(look_up)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name; an address is its own. Raises OSError."""
    return [host] if is_address(host) else await asyncio.to_thread(_addresses, host, port)


def is_no_such_name(error: OSError) -> bool:
    """Whether it says that the name has no address; else nobody could say."""
    return isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME


def is_address(host: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(host))
    return False


def _addresses(host: str, port: int) -> list[str]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in infos))
