"""A receiver on this machine that takes what Sentry would, and keeps it."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from secrets_hunt import marked

DSN_KEY = marked("dsnkey")


class Receiver:
    """Takes envelopes as Sentry does, and keeps them."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.headers: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.raw.append(body)
                outer.headers.append(str(self.headers))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def dsn(self) -> str:
        return f"http://{DSN_KEY}@127.0.0.1:{self._server.server_address[1]}/42"

    def events(self) -> list[dict[str, Any]]:
        """Each event that came: an envelope is a header, then pairs of a header and a document."""
        found = []
        for envelope in self.raw:
            lines = envelope.split(b"\n")
            for header, document in zip(lines[1::2], lines[2::2], strict=False):
                if header and json.loads(header).get("type") == "event":
                    found.append(json.loads(document))
        return found
