"""Looking names up: by the system's resolver, which some name servers make wait."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from slm_jobs import lookups
from slm_jobs.lookups import Lookups

PATIENCE = 20.0


@pytest.mark.parametrize("resolve", [lookups.resolve, Lookups(1, 1).of("k")])
def test_addresses_come_from_the_system(
    resolve: lookups.Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(host: str, port: int, **options: object) -> list[object]:
        assert threading.current_thread() is not threading.main_thread()
        assert (host, port) == ("example.com", 443)
        v6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2606:2800:21f::1", port, 0, 0))
        v4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", port))
        return [v6, v4, v4]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found = asyncio.run(resolve("example.com", 443))
    assert found == ["2606:2800:21f::1", "93.184.215.14"]


def resolver(monkeypatch: pytest.MonkeyPatch, hangs: Callable[[], object]) -> list[str]:
    """The system's; names that begin with `slow` wait for `hangs`. Returns what it was asked."""
    asked = []

    def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        if host.startswith("slow"):
            hangs()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_server_that_hangs_holds_up_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when nobody waits for it any more."""
    answered = threading.Event()
    asked = resolver(monkeypatch, lambda: answered.wait(60))

    async def run() -> None:
        tested = Lookups(8, 4)
        waiting = [
            asyncio.create_task(tested.of("hostile")(f"slow{i}.example.com", 443))
            for i in range(20)
        ]
        async with asyncio.timeout(PATIENCE):
            while len(asked) < 4:
                await asyncio.sleep(0.001)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        own = asyncio.create_task(tested.of("hostile")("well.example.com", 443))
        async with asyncio.timeout(PATIENCE):
            assert await tested.of("other")("well.example.com", 443) == ["93.184.215.14"]
            assert await tested.of("hostile")("10.0.0.1", 443) == ["10.0.0.1"]  # no name
        assert len(asked) == 5
        assert not own.done()
        answered.set()
        assert await asyncio.wait_for(own, PATIENCE) == ["93.184.215.14"]

    try:
        asyncio.run(run())
    finally:
        answered.set()


def test_a_name_server_may_answer_after_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answered, begun = threading.Event(), threading.Event()

    def hangs() -> None:
        begun.set()
        answered.wait(60)

    resolver(monkeypatch, hangs)
    tested = Lookups(1, 1)

    async def run() -> None:
        task = asyncio.create_task(tested.of("k")("slow.example.com", 443))
        await asyncio.to_thread(begun.wait, PATIENCE)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(run())
    answered.set()
    tested._executor.shutdown()
    assert caplog.text == ""
