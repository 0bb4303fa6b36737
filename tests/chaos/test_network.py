"""Each trouble between a process and Redis, with a real Redis at the other end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from slm_client.redis_server import RedisServer
from tests.chaos.network import Link, Network, Trouble
from tests.e2e.service import until

PING, PONG = b"PING\r\n", b"+PONG\r\n"


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
def link(network: Network, redis_server: RedisServer) -> Link:
    return network.link(redis_server.port)


@contextmanager
def connection(link: Link) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", link.port), timeout=20) as there:
        yield there


@contextmanager
def spoilt(network: Network, link: Link, trouble: Trouble, seconds: float) -> Iterator[None]:
    """Until it is over."""
    thread = threading.Thread(target=network.spoil, args=(link, trouble, seconds))
    thread.start()
    until(lambda: link.trouble is trouble, "the trouble begins")
    yield
    thread.join()


def ask(there: socket.socket, command: bytes = PING) -> bytes:
    """Nothing, if the connection broke."""
    try:
        there.sendall(command)
        return there.recv(100)
    except ConnectionError:
        return b""


def test_all_is_well(link: Link) -> None:
    with connection(link) as one, connection(link) as two:
        assert [ask(one), ask(two), ask(one)] == [PONG] * 3


def test_cut(network: Network, link: Link) -> None:
    with connection(link) as there:
        assert ask(there) == PONG
        network.spoil(link, Trouble.CUT, 0)
        assert ask(there) == b""
    with connection(link) as there:
        assert ask(there) == PONG


def test_away(network: Network, link: Link) -> None:
    with connection(link) as before:
        assert ask(before) == PONG
        with spoilt(network, link, Trouble.AWAY, 0.5), connection(link) as there:
            assert [ask(before), ask(there)] == [b"", b""]
    with connection(link) as there:
        assert ask(there) == PONG


def test_deaf(network: Network, link: Link) -> None:
    """The command arrives, its reply does not."""
    with connection(link) as there:
        assert ask(there) == PONG
        with spoilt(network, link, Trouble.DEAF, 0.5):
            assert ask(there, b"SET deaf 1\r\n") == b""
    with connection(link) as there:
        assert ask(there, b"GET deaf\r\n") == b"$1\r\n1\r\n"


def test_silent(network: Network, link: Link) -> None:
    """What was said meanwhile arrives late, also when who said it has gone."""
    with connection(link) as there, connection(link) as gone:
        assert [ask(there), ask(gone)] == [PONG] * 2
        with spoilt(network, link, Trouble.SILENT, 1.0):
            gone.sendall(b"SET late 1\r\n")
            gone.close()
            there.settimeout(0.1)
            with pytest.raises(TimeoutError):
                ask(there)
        there.settimeout(20)
        assert there.recv(100) == PONG
        until(lambda: ask(there, b"GET late\r\n") == b"$1\r\n1\r\n", "it arrives late")


def test_slow(network: Network, link: Link) -> None:
    with connection(link) as there, spoilt(network, link, Trouble.SLOW, 1.0):
        assert ask(there) == PONG


def test_without_redis(network: Network) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        link = network.link(nobody.getsockname()[1])
        with connection(link) as there:
            assert ask(there) == b""
