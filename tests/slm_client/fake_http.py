"""How the stand-in for the api is reached: without a network, or on a real port."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import httpx

from slm_client.redis_server import free_port

Answer = tuple[int, dict[str, str], Any]  # status, headers, JSON, Events, Lines or nothing


class Events(list[bytes | Exception]):
    """An answer of server-sent events; an exception breaks the connection."""

    closed = False  # whether the client has let go of it; without a network only


class Lines:
    """An answer of lines, sent bit by bit; an exception breaks the connection."""

    def __init__(self, parts: Iterable[bytes | Exception]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part


class Answers(Protocol):
    """`target` is the path with its query; `headers` are found by lower-case names."""

    def __call__(
        self, method: str, target: str, body: Any, headers: Mapping[str, str], /
    ) -> Answer: ...


def transport(answers: Answers) -> httpx.MockTransport:
    def handle(request: httpx.Request) -> httpx.Response:
        body = _loaded(request.read(), request.headers)
        target = request.url.raw_path.decode()
        status, headers, answer = answers(request.method, target, body, request.headers)
        if isinstance(answer, Events):
            headers = {**headers, "content-type": "text/event-stream"}
            return httpx.Response(status, headers=headers, stream=_Stream(answer))
        if isinstance(answer, Lines):
            headers = {**headers, "content-type": "application/jsonl"}
            return httpx.Response(status, headers=headers, stream=_LineStream(answer))
        if answer is None:
            return httpx.Response(status, headers=headers)
        return httpx.Response(status, headers=headers, json=answer)

    return httpx.MockTransport(handle)


@contextmanager
def served(answers: Answers, port: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _handle(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            given = {name.lower(): value for name, value in self.headers.items()}
            body = _loaded(self.rfile.read(length), given)
            status, headers, answer = answers(self.command, self.path, body, given)
            if isinstance(answer, Lines):
                self._send_lines(status, answer)
                return
            if isinstance(answer, Events):
                headers = {"content-type": "text/event-stream", "connection": "close"}
                data = b"".join(part for part in answer if isinstance(part, bytes))
            else:
                data = b"" if answer is None else json.dumps(answer).encode()
                length_of = {} if status == 204 else {"content-length": str(len(data))}
                headers = {**headers, **length_of}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def _send_lines(self, status: int, lines: Lines) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/jsonl")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            try:
                for part in lines:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.write(b"0\r\n\r\n")
            except (httpx.TransportError, OSError):  # broken by the test, or by the client
                self.close_connection = True

        do_GET = do_POST = do_DELETE = _handle  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port or free_port()), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _loaded(content: bytes, headers: Mapping[str, str]) -> Any:
    """JSON, or the bytes of something else; None if there is nothing."""
    if not content and "content-type" not in headers:
        return None
    return json.loads(content) if headers["content-type"] == "application/json" else content


class _LineStream(httpx.SyncByteStream):
    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._lines)


class _Stream(httpx.SyncByteStream):
    def __init__(self, parts: Events) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            yield part

    def close(self) -> None:
        self._parts.closed = True
