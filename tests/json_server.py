"""What the tests' stand-ins for HTTP services have in common: answers in JSON, and a thread that serves them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class JsonHandler(BaseHTTPRequestHandler):
    """Answers trees, and keeps silent on stderr."""

    def answer(self, status: int, tree: Any, kind: str = "application/json") -> None:
        """Text goes out as it is."""
        content = (tree if isinstance(tree, str) else json.dumps(tree)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def answering(server: HTTPServer) -> Iterator[None]:
    """Serve from a thread; it looks often whether to stop, so that a test's end costs nothing."""
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
