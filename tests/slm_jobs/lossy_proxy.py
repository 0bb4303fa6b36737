"""A network that loses Redis's replies. The commands arrive."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class LossyProxy(socketserver.ThreadingTCPServer):
    """Stands between a client and the Redis on `port`.

    After a command that contains `lose`, it closes the connection instead of passing the reply on,
    or stays silent if `hang` is set.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.redis_port = port
        self.lose: bytes | None = None
        self.hang = False
        self.lost = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.server_address[1]}/0"

    @contextmanager
    def running(self) -> Iterator[LossyProxy]:
        thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        proxy = self.server
        assert isinstance(proxy, LossyProxy)
        with socket.create_connection(("127.0.0.1", proxy.redis_port)) as redis:
            while command := self.request.recv(65_536):
                redis.sendall(command)
                reply = redis.recv(65_536)  # the commands of these tests are short: one piece each
                if proxy.lose is None or proxy.lose not in command:
                    self.request.sendall(reply)
                    continue
                proxy.lost += 1
                if not proxy.hang:
                    return
