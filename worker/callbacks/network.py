"""Connections to addresses that may be called, and to no others. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import httpcore

from slm_jobs.callback_urls import check_addresses
from slm_jobs.lookups import Resolve, is_no_such_name

_MOST_TRIED = 4  # addresses of a name, in one attempt: nobody has us call a thousand


class NoAnswer(Exception):
    """Nobody could say which addresses a name has, or not in time."""


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Looks a name up once, checks every address that it has, and connects to one of the first.

    What DNS says later does not count: a connection goes to an address, never to a name. Use one
    for each delivery, and keep no connections: another key may not be allowed to go there.
    """

    def __init__(self, allowed: Sequence[str], resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._tcp = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """`timeout` is for all of it. Raises CallbackUrlRefused, NoAnswer, and what httpcore does
        when it cannot connect."""
        clock = asyncio.get_running_loop().time
        began = clock()
        addresses = (await self._addresses(host, port, timeout))[:_MOST_TRIED]
        failure: Exception | None = None
        for number, address in enumerate(addresses):
            share = None  # of the time, for this address
            if timeout is not None:
                share = (began + timeout - clock()) / (len(addresses) - number)
            try:
                return await self._tcp.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or NoAnswer(host)

    async def _addresses(self, host: str, port: int, timeout: float | None) -> list[str]:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolve(host, port)
        except OSError as error:
            if not is_no_such_name(error):
                raise NoAnswer(host) from error
            addresses = []
        check_addresses(addresses, host, port, self._allowed)
        return addresses
