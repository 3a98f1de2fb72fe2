"""Reads a source ahead of its user in a thread, so that network and disk work at the same time.

Used by the import worker only. An HTTP source is received straight into a few large buffers that go round; any other
one is gathered to pieces of about that size. Whoever iterates may look at a piece until asking for the next but one.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

from stead.images.sources import HttpStream, Stream

PIECE_BYTES = 2 << 20
_BUFFERS = 5

Piece = memoryview | bytes


class ReadAhead:
    """See the module's prose. `count`: bytes handed out so far; `tell` is called after each piece."""

    def __init__(self, stream: Stream, tell: Callable[[], None]) -> None:
        self._stream, self._tell = stream, tell
        self._full: queue.Queue[Piece | BaseException] = queue.Queue(_BUFFERS)
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self.count = 0

    def pieces(self) -> Iterator[Piece]:
        """The pieces in order. What the source raises is raised here."""
        for _ in range(_BUFFERS):
            self._free.put(memoryview(bytearray(PIECE_BYTES)))
        work = self._receive if isinstance(self._stream, HttpStream) else self._gather
        threading.Thread(target=self._run, args=(work,), daemon=True).start()
        held: list[Piece] = []
        while piece := self._full.get():
            if isinstance(piece, BaseException):
                raise piece
            self.count += len(piece)
            self._tell()
            held.append(piece)
            yield piece
            if len(held) > 1 and isinstance(done := held.pop(0), memoryview):
                self._free.put(memoryview(done.obj))

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
            self._full.put(b"")
        except BaseException as error:  # handed to the user whole
            self._full.put(error)

    def _receive(self) -> None:
        assert isinstance(self._stream, HttpStream)
        while True:
            buffer, have = self._free.get(), 0
            try:
                while have < PIECE_BYTES and (count := self._stream.read_into(buffer[have:])):
                    have += count
            except BaseException:
                if have:
                    self._full.put(buffer[:have])  # what had come may be gone on with
                raise
            if have:
                self._full.put(buffer[:have])
            if have < PIECE_BYTES:
                return

    def _gather(self) -> None:
        parts: list[bytes] = []
        have = 0
        while data := self._stream.read():
            parts.append(data)
            have += len(data)
            if have >= PIECE_BYTES // 2:
                self._full.put(b"".join(parts) if len(parts) > 1 else parts[0])
                parts, have = [], 0
        if parts:
            self._full.put(b"".join(parts))

    def close(self) -> None:
        """Give the source up."""
        with contextlib.suppress(OSError):
            self._stream.close()
