"""Receives callbacks, and shows what every receiver should do; copy what you need.

    pip install standardwebhooks
    SLM_CALLBACK_SECRET=$(slm keys secret show) python examples/webhook_receiver.py --port 9000
    slm generate "Once upon a time" --callback-url http://localhost:9000/

It verifies that a callback is the service's and at most five minutes old, answers 2xx quickly, and
handles each once, however often it comes: one whose answer is lost comes again.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

MOST_BYTES = 16 * 1024 * 1024


def handle(event: dict[str, Any]) -> None:
    """Your part. If it raises, the callback comes again, later; if it is slow, hand it on to a
    thread or a queue: the service waits for 20 seconds."""
    data = event["data"]
    print(f"{event['type']}: {data['id']} is {data['status']}; see {data['url']}", flush=True)
    for output in data.get("outputs", ()):
        print(output["text"], flush=True)


class Receiver:
    def __init__(self, secret: str) -> None:
        self._webhook = Webhook(secret)
        # In real life a table of your database, written in the transaction that handles the event,
        # and kept for a week: so long may a callback come again.
        self._handled: set[str] = set()
        self._one_at_a_time = threading.Lock()

    def receive(self, body: bytes, headers: dict[str, str]) -> int:
        """Returns the HTTP status to answer with. `body` is to be as it came, byte for byte;
        headers have lower-case names."""
        try:
            event = self._webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError) as error:  # ValueError: it makes no sense
            print(f"refused: {error}", flush=True)
            return 401
        delivery = headers["webhook-id"]
        with self._one_at_a_time:
            if delivery in self._handled:
                print(f"{delivery} has come again", flush=True)
            else:
                handle(event)
                self._handled.add(delivery)
        return 200


def serve(receiver: Receiver, host: str, port: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds, for those who connect and say nothing

        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            length = headers.get("content-length", "")
            if not length.isdecimal() or int(length) > MOST_BYTES:
                status = 413 if length else 411
            else:
                status = receiver.receive(self.rfile.read(int(length)), headers)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass  # `handle` says what there is to say

    with ThreadingHTTPServer((host, port), Handler) as server:
        print(f"Callbacks are received at http://{host}:{server.server_port}/", flush=True)
        server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000, help="0: any free one")
    parser.add_argument(
        "--secret",
        default=os.environ.get("SLM_CALLBACK_SECRET", ""),
        help="whsec_…, by default SLM_CALLBACK_SECRET, since others may see command lines",
    )
    options = parser.parse_args()
    if not re.fullmatch(r"whsec_[A-Za-z0-9+/]{32,}=*", options.secret):
        sys.exit("give it the secret of your API key, which `slm keys secret show` prints")
    with suppress(KeyboardInterrupt):
        serve(Receiver(options.secret), options.host, options.port)


if __name__ == "__main__":
    main()
