"""TLS in front of a Redis that speaks none, as managed services have it."""

from __future__ import annotations

import select
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PEM = Path(__file__).with_name("redis.pem")  # key and certificate, of 127.0.0.1 and localhost


class TlsProxy:
    """Its `port` leads to `target`, while `running`."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(PEM)
        self._clients: set[socket.socket] = set()

    @contextmanager
    def running(self) -> Iterator[TlsProxy]:
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._serve(self.request)

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()
                for client in list(self._clients):
                    with suppress(OSError):
                        client.shutdown(socket.SHUT_RDWR)

    def _serve(self, client: socket.socket) -> None:
        self._clients.add(client)
        with (
            suppress(OSError),  # also what is no TLS
            client,
            self._tls.wrap_socket(client, server_side=True) as tls,
            socket.create_connection(("127.0.0.1", self.target)) as redis,
        ):
            self._clients.add(tls)
            _pass(tls, redis)


def _pass(tls: ssl.SSLSocket, redis: socket.socket) -> None:
    """Both ways, until one of them ends."""
    while True:
        ready = [tls] if tls.pending() else select.select([tls, redis], [], [])[0]
        for source in ready:
            data = source.recv(65_536)
            if not data:
                return
            (redis if source is tls else tls).sendall(data)
