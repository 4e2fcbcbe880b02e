"""How much work is let in at once, by whom, and when the last of it is done."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import Busy, Draining


class Gate:
    """Admits requests while their number and announced bytes are below the limits; for use in one event loop.

    Args:
        max_requests: waiting and working together.
        max_bytes: of all bodies in flight, whether held in memory or on disk.
        max_client_requests: of one client, so that the others find a place.
    """

    def __init__(self, max_requests: int, max_bytes: int, max_client_requests: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._max_client_requests = max_client_requests
        self._clients: Counter[str] = Counter()
        self._requests = 0
        self._bytes = 0
        self.closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def admit(self, size_bytes: int, client: str | None = None) -> Iterator[None]:
        """Hold a place for one request, until its answer is sent.

        Args:
            size_bytes: of the body.
            client: whose it is; None where clients can't be told apart, and share all places.

        Raises:
            Busy: no place left, or none for this client.
            Draining: `close` was called.
        """
        if self.closed:
            raise Draining("the server is stopping; send the request to another replica, or again in a moment")
        if self._requests >= self._max_requests or self._bytes + size_bytes > self._max_bytes:
            raise Busy(f"{self._requests} requests are in flight, as many as fit; try again after a moment")
        if client is not None and self._clients[client] >= self._max_client_requests:
            raise Busy(f"{self._clients[client]} of your requests are in flight, as many as a client may have")
        self._requests += 1
        self._bytes += size_bytes
        if client is not None:
            self._clients[client] += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._requests -= 1
            self._bytes -= size_bytes
            if client is not None:
                self._clients[client] -= 1
                if not self._clients[client]:
                    del self._clients[client]  # so that the table is no longer than what is in flight
            if not self._requests:
                self._empty.set()

    def close(self) -> None:
        """Let nothing more in."""
        self.closed = True

    async def empty(self) -> None:
        """Wait until nothing is in flight."""
        await self._empty.wait()
