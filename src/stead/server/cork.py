"""A transport that sends what one turn of the loop writes as one packet.

Put by `serve` before each connection's transport: uvicorn writes the head of an answer and its body apart, which would
be two TLS records, two system calls and two wake-ups of the client. On the event loop.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

#: bytes of one turn of the loop that are sent without waiting for its end
CORK_BYTES = 64 * 1024


@functools.lru_cache(maxsize=4)
def chunk_of(body: bytes) -> bytes:
    """A chunk of HTTP/1.1; the same few go to every watcher of a kind."""
    return b"%x\r\n%b\r\n" % (len(body), body)


class Cork:
    """A transport whose writes of one turn of the loop leave together: head and body of an answer are one packet."""

    __slots__ = ("_inner", "_loop", "_parts", "_size")

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Send soon; at once when much has gathered."""
        if not data:
            return
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size >= CORK_BYTES:
            self._flush()

    def write_now(self, data: bytes) -> None:
        """Send without waiting for the turn's end, behind what waits."""
        self._flush()
        if not self._inner.is_closing():
            self._inner.write(data)

    def close(self) -> None:
        """Send what is there, then close."""
        self._flush()
        self._inner.close()

    def abort(self) -> None:
        """Close without sending."""
        self._parts.clear()
        self._inner.abort()

    def _flush(self) -> None:
        parts, self._parts, self._size = self._parts, [], 0
        if parts and not self._inner.is_closing():
            self._inner.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
