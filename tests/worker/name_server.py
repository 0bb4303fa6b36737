"""A name server on loopback, and a resolver that asks it: DNS over UDP (RFC 1035), as far as one
question for an IPv4 address takes it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

_HEADER = struct.Struct("!6H")  # id, flags, questions, answers, authorities, more
_ANSWER = struct.Struct("!HHHIH")  # name, type, class, ttl, length
_QUERY, _RESPONSE = 0x0100, 0x8180
_NAME_OF_THE_QUESTION = 0xC00C
_A, _IN = 1, 1


class NameServer(asyncio.DatagramProtocol):
    """Answers with one address after the other, each valid for no time; the last for ever."""

    def __init__(self, *addresses: str) -> None:
        self.asked: list[str] = []
        self._addresses = addresses
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._transport.get_extra_info("sockname")
        return host, port

    def datagram_received(self, data: bytes, addr: Any) -> None:
        number, *_ = _HEADER.unpack_from(data)
        question = data[_HEADER.size :]
        self.asked.append(_name(question))
        address = self._addresses[min(len(self.asked), len(self._addresses)) - 1]
        answer = _ANSWER.pack(_NAME_OF_THE_QUESTION, _A, _IN, 0, 4) + socket.inet_aton(address)
        head = _HEADER.pack(number, _RESPONSE, 1, 1, 0, 0)
        self._transport.sendto(head + question + answer, addr)

    async def resolve(self, host: str, port: int) -> list[str]:  # noqa: ARG002 - as it is called
        """What it says now, as a program hears it that has it for its name server."""
        answered = asyncio.get_running_loop().create_future()
        question = b"".join(bytes([len(part)]) + part for part in host.encode().split(b"."))
        query = _HEADER.pack(7, _QUERY, 1, 0, 0, 0) + question + struct.pack("!BHH", 0, _A, _IN)

        class Client(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002
                answered.set_result(data)

        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Client, remote_addr=self.address)
        try:
            transport.sendto(query)
            data = await answered
        finally:
            transport.close()
        return [socket.inet_ntoa(data[-4:])]


@asynccontextmanager
async def name_server(*addresses: str) -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: NameServer(*addresses), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()


def _name(question: bytes) -> str:
    labels, at = [], 0
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels)
