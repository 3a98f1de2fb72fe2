"""A client of the Network Block Device protocol over a unix socket: reads a disk, and asks which parts changed.

For QEMU's own NBD servers (a running guest's backup job, `qemu-nbd`), whose sockets lie in folders of ours. Blocking,
one thread at a time; every wait has a deadline. It speaks what is needed and no more: fixed newstyle, structured
replies, meta contexts. Answers are bounded by what was asked. Source: the protocol's specification
(NetworkBlockDevice/nbd, doc/proto.md). Debian's libnbd bindings belong to the system's Python, so they are not used.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from stead.storage.backup.session import Extent

TIMEOUT_SECONDS = 60.0
ALLOCATION = "base:allocation"
#: what one request may ask for
READ_BYTES = 32 << 20
_STATUS_BYTES = 1 << 30
_OPTION = 0x49484156454F5054
_REPLY = 0x3E889045565A9
_STRUCTURED, _REQUEST = 0x668E33EF, 0x25609513
_OPT_GO, _OPT_STRUCTURED, _OPT_META = 7, 8, 10
_REP_ACK, _REP_INFO, _REP_META = 1, 3, 4
_READ, _DISCONNECT, _STATUS = 0, 2, 7
_DATA, _HOLE, _STATUS_CHUNK = 1, 2, 5
_TEXT_BYTES = 4096
_HOLE_FLAG, _ZERO_FLAG = 1, 2


class NbdError(OSError):
    """The server refused, broke off or said something that the protocol does not know."""


class NbdDisk:
    """One export, open for reading. Raises NbdError and OSError."""

    def __init__(self, path: Path, export: str, bitmap: str = "") -> None:
        """`bitmap` is the name of a dirty bitmap that is exported with it."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT_SECONDS)
        self._cookie = 0
        self._contexts: dict[str, int] = {}
        self.size_bytes = 0
        self._dirty = f"qemu:dirty-bitmap:{bitmap}" if bitmap else ""
        try:
            self._socket.connect(str(path))
            self._greet()
            self._negotiate(export, [context for context in (ALLOCATION, self._dirty) if context])
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> NbdDisk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        try:
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        finally:
            self._socket.close()

    # getting to know each other ----------------------------------------------------------------------------------

    def _greet(self) -> None:
        magic, option, flags = struct.unpack(">8sQH", self._take(18))
        if magic != b"NBDMAGIC" or option != _OPTION or not flags & 1:
            raise NbdError("this is no NBD server of the kind that is known")
        self._socket.sendall(struct.pack(">I", 1 | (flags & 2)))

    def _negotiate(self, export: str, contexts: list[str]) -> None:
        name = export.encode()
        self._ask(_OPT_STRUCTURED, b"")
        queries = b"".join(struct.pack(">I", len(text)) + text.encode() for text in contexts)
        head = struct.pack(">I", len(name)) + name
        for kind, data in self._ask(_OPT_META, head + struct.pack(">I", len(contexts)) + queries):
            if kind == _REP_META and len(data) >= 4:
                self._contexts[data[4:].decode(errors="replace")] = struct.unpack(">I", data[:4])[0]
        if self._dirty and self._dirty not in self._contexts:
            raise NbdError(f"the export {export} has no bitmap of that name")
        for kind, data in self._ask(_OPT_GO, head + struct.pack(">H", 0)):
            if kind == _REP_INFO and len(data) >= 12 and data[:2] == b"\x00\x00":
                self.size_bytes = struct.unpack(">Q", data[2:10])[0]

    def _ask(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        """Replies before the acknowledgement."""
        self._socket.sendall(struct.pack(">QII", _OPTION, option, len(data)) + data)
        found: list[tuple[int, bytes]] = []
        while len(found) < 64:
            magic, of, kind, length = struct.unpack(">QIII", self._take(20))
            if magic != _REPLY or of != option or length > 2 * _TEXT_BYTES:
                raise NbdError("the NBD server answers what was not asked")
            body = self._take(length)
            if kind & 0x80000000:
                raise NbdError(f"the NBD server refuses option {option}: {body[:200].decode(errors='replace')}")
            if kind == _REP_ACK:
                return found
            found.append((kind, body))
        raise NbdError("the NBD server does not come to an end")

    # using it ----------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """Exactly so many bytes."""
        parts = []
        while length > 0:
            part = min(length, READ_BYTES)
            parts.append(self._read(offset, part))
            offset, length = offset + part, length - part
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, offset: int, length: int) -> bytes:
        self._send(_READ, offset, length)
        found, seen = bytearray(length), 0
        for kind, size in self._chunks(length + 8):
            if kind not in (_DATA, _HOLE) or size < 8:
                self._take(size)
                continue
            at = struct.unpack(">Q", self._take(8))[0] - offset
            count = size - 8 if kind == _DATA else struct.unpack(">I", self._take(4))[0]
            if at < 0 or at + count > length:
                raise NbdError("the NBD server sends what was not asked for")
            if kind == _DATA:
                self._take_into(memoryview(found)[at : at + count])
            seen += count
        if seen != length:
            raise NbdError(f"the NBD server sent {seen} of {length} bytes")
        return bytes(found)

    def extents(self) -> Iterator[Extent]:
        """With a bitmap, what changed; else all. What is known to be zeros says so."""
        offset = 0
        while offset < self.size_bytes:
            if self._dirty:
                length, flags = self._status(self._dirty, offset, self.size_bytes)
                if not flags & 1:
                    offset += length
                    continue
            else:
                length = self.size_bytes - offset
            end = offset + length
            while offset < end:
                length, flags = self._status(ALLOCATION, offset, end)
                length = min(length, end - offset)
                yield Extent(offset, length, bool(flags & _ZERO_FLAG))
                offset += length

    def _status(self, context: str, offset: int, end: int) -> tuple[int, int]:
        """(length, flags) of what begins at `offset`."""
        wanted = self._contexts.get(context)
        if wanted is None:
            return end - offset, 0
        most = min(end - offset, _STATUS_BYTES)
        self._send(_STATUS, offset, most)
        found: tuple[int, int] | None = None
        for kind, size in self._chunks(4 + 8 * 65536):
            body = self._take(size)
            if kind != _STATUS_CHUNK or size < 12 or struct.unpack(">I", body[:4])[0] != wanted:
                continue
            length, flags = struct.unpack(">II", body[4:12])
            for at in range(12, size - 7, 8):  # neighbours of the same kind are one
                more, others = struct.unpack(">II", body[at : at + 8])
                if others != flags:
                    break
                length += more
            found = length, flags
        if found is None or found[0] <= 0:
            raise NbdError(f"the NBD server does not tell the status of byte {offset}")
        return found

    def _send(self, kind: int, offset: int, length: int) -> None:
        self._cookie += 1
        self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, kind, self._cookie, offset, length))

    def _chunks(self, most: int) -> Iterator[tuple[int, int]]:
        """(kind, bytes that follow) of each chunk of the answer; whoever iterates takes the bytes."""
        failure = ""
        while True:
            magic, flags, kind, cookie, size = struct.unpack(">IHHQI", self._take(20))
            if magic != _STRUCTURED or cookie != self._cookie or size > max(most, _TEXT_BYTES + 14):
                raise NbdError("the NBD server answers what was not asked")
            if kind & 0x8000:
                body = self._take(size)
                number, length = struct.unpack(">IH", body[:6]) if size >= 6 else (0, 0)
                failure = f"the NBD server reports error {number}: {body[6 : 6 + length].decode(errors='replace')}"
            elif size or kind:
                yield kind, size
            if flags & 1:
                break
        if failure:
            raise NbdError(failure)

    def _take(self, length: int) -> bytes:
        found = bytearray(length)
        self._take_into(memoryview(found))
        return bytes(found)

    def _take_into(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise NbdError("the NBD server broke off")
            view = view[count:]
