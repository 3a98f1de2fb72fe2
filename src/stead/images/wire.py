"""HTTP/1.1 spoken over one socket: send a request, read the head of the answer, receive the body where it shall lie.

Used by `sources` inside the unprivileged import worker, so it blocks. Small, so that a child starts fast, and a body
whose length is known is received straight into the caller's buffer by one system call for as much as fits. Heads are
bounded in size; a server that stalls is given up. Source: RFC 9112 (framing), recv(2) MSG_WAITALL, socket(7)
SO_RCVTIMEO.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Mapping

_HEAD_BYTES = 64 << 10
_LINE_BYTES = 4096
_INTERIM = range(100, 200)


class WireError(Exception):
    """The other side does not speak HTTP/1.1 as it should, or broke off in the middle of a head or chunk."""


def set_deadline(sock: socket.socket, seconds: float) -> None:
    """Give up a plain socket that moves nothing for so long. It stays blocking, which MSG_WAITALL needs."""
    sock.settimeout(None)
    limit = struct.pack("ll", int(seconds), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


class Answer:
    """One answer. `headers` by lower-case name. Read the body to its end, or `close`."""

    def __init__(self, sock: socket.socket, url: str, head: bytes, rest: bytes) -> None:
        self._socket, self.url = sock, url
        first, *lines = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.[01] (\d{3})(?: (.*))?", first)
        if not found:
            raise WireError(f"the server does not speak HTTP/1.1: {first[:60]!r}")
        self.status, self.reason = int(found[1]), found[2] or ""
        self.headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or name != name.strip() or not name:
                raise WireError(f"the server sent a malformed header: {line[:60]!r}")
            self.headers.setdefault(name.lower(), value.strip())
        self._rest = memoryview(rest)  # of the body, came with the head
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        self._left = self._length()  # of the body or chunk; -1 = until the connection is closed
        # plain sockets deliver as much as fits at once; TLS ones a record at a time
        self._flags = socket.MSG_WAITALL if type(sock) is socket.socket else 0

    def _length(self) -> int:
        if self._chunked or self.status in (204, 304):
            return 0
        if self.headers.get("transfer-encoding"):
            raise WireError(f"transfer encoding {self.headers['transfer-encoding'][:40]!r} is not supported")
        text = self.headers.get("content-length", "")
        if text and not re.fullmatch(r"[0-9]{1,18}", text):
            raise WireError(f"the server sent a malformed length: {text[:40]!r}")
        return int(text) if text else -1

    @property
    def total(self) -> int:
        """Length of the whole body; -1 when it is not known."""
        return -1 if self._chunked else self._length()

    def read_into(self, view: memoryview) -> int:
        """Receive into a buffer; 0 when the body has ended, or the connection before it."""
        if self._left == 0 and self._chunked and not self._next_chunk():
            return 0
        if self._left == 0 or not view:
            return 0
        count = self._receive(view if self._left < 0 else view[: self._left])
        if self._left > 0:
            self._left -= count
            if not count and self._chunked:
                raise WireError("the connection was closed inside a chunk")
        return count

    def read(self, limit: int) -> bytes:
        """The body, at most `limit` bytes of it."""
        parts, have = [], 0
        while have < limit:
            piece = bytearray(min(limit - have, 1 << 16))
            count = self.read_into(memoryview(piece))
            if not count:
                break
            parts.append(bytes(piece[:count]))
            have += count
        return b"".join(parts)

    def close(self) -> None:
        """Give the connection up."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _receive(self, view: memoryview) -> int:
        if self._rest:
            count = min(len(view), len(self._rest))
            view[:count], self._rest = self._rest[:count], self._rest[count:]
            return count
        try:
            return self._socket.recv_into(view, len(view), self._flags)
        except BlockingIOError:
            raise TimeoutError("the server sent nothing for too long") from None

    def _next_chunk(self) -> bool:
        """Read the line that opens the next chunk; False after the last one."""
        line = self._line()
        if not line:  # the end of the chunk before
            line = self._line()
        size = line.partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", size):
            raise WireError(f"the server sent a malformed chunk: {line[:40]!r}")
        self._left = int(size, 16)
        if not self._left:
            self._chunked = False  # trailers are of no interest
        return self._left > 0

    def _line(self) -> bytes:
        line = bytearray()
        byte = bytearray(1)
        while not line.endswith(b"\r\n"):
            if len(line) > _LINE_BYTES or not self._receive(memoryview(byte)):
                raise WireError("the connection was closed inside a chunk")
            line += byte
        return bytes(line[:-2])


def ask(sock: socket.socket, method: str, url: str, target: str, headers: Mapping[str, str]) -> Answer:
    """Send a request without a body and read the head of its answer. `target` is path and query. OSError, WireError."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    if any(re.search(r"[\r\n\0]", line) for line in lines):
        raise WireError("a request line or header holds a line break")
    sock.sendall("\r\n".join(lines).encode("utf-8"))
    data = b""
    while True:
        head, end, rest = data.partition(b"\r\n\r\n")
        if end:
            answer = Answer(sock, url, head, rest)
            if answer.status not in _INTERIM:
                return answer
            data = rest
            continue
        if len(data) > _HEAD_BYTES:
            raise WireError("the server's answer has too many headers")
        try:
            piece = sock.recv(_HEAD_BYTES)
        except BlockingIOError:
            raise TimeoutError("the server sent nothing for too long") from None
        if not piece:
            raise WireError("the server closed the connection without an answer")
        data += piece
