"""A network that loses Redis's replies. The commands arrive."""

from __future__ import annotations

import contextlib
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
        self.losing = False
        with socket.create_connection(("127.0.0.1", proxy.redis_port)) as redis:
            replies = threading.Thread(target=self._pass_replies, args=(proxy, redis))
            replies.start()
            with contextlib.suppress(OSError):  # the other direction has ended it
                while command := self.request.recv(65_536):
                    if proxy.lose is not None and proxy.lose in command:
                        self.losing = True
                    redis.sendall(command)
            with contextlib.suppress(OSError):
                redis.shutdown(socket.SHUT_RDWR)
            replies.join()

    def _pass_replies(self, proxy: LossyProxy, redis: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while reply := redis.recv(65_536):
                if not self.losing:
                    self.request.sendall(reply)
                    continue
                proxy.lost += 1
                if not proxy.hang:
                    self.request.shutdown(socket.SHUT_RDWR)
                    return
