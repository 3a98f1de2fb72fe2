"""Writes a qcow2 image's guest data to a raw disk while the image is still arriving, in one pass where its order
allows.

Used by the import worker only (unprivileged, one thread feeds). A cluster that arrives after the table that maps it
goes straight to its place; one that arrives before is kept in a spill file at its own offset and moved when the table
is known. An image made by `qemu-img convert` or published by a distribution spills a few tables only. Compressed
clusters are inflated on a small pool of threads with a bounded backlog. Layout: QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import heapq
import os
import struct
import threading
import zlib
from concurrent.futures import Future, ThreadPoolExecutor

import zstandard

from stead.images.safety import Qcow2Header, UnsafeImage

_OFFSET_MASK = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_ZERO_FLAG = 1
_COPY_BYTES = 1 << 20
_BATCH = 16
_BACKLOG = 32

# kinds of what is waited for, in the order they are dealt with at one offset
_L1, _L2, _DATA, _PACKED = 0, 1, 2, 3


class NotStreamable(Exception):
    """A valid image whose layout needs random access (extended L2 entries, clusters used twice)."""


class Qcow2Stream:
    """Feed it the image from its first byte; `finish` when all has been fed. Raises UnsafeImage on a malformed one."""

    def __init__(self, header: Qcow2Header, target: int, spill: int) -> None:
        """`target` is a descriptor of the raw disk (already as long as the volume, all holes), `spill` of an empty
        file.
        """
        if header.extended_l2:
            raise NotStreamable("extended L2 entries")
        self._header, self._target, self._spill = header, target, spill
        self._cluster = 1 << header.cluster_bits
        self._zeros = bytes(self._cluster)
        self._base = 0  # file offset of the window's first byte
        self._window = bytearray()
        self._cursor = 0  # all bytes below were placed, spilled or are of no use
        self._waiting: list[tuple[int, int, int, int]] = [
            (header.l1_offset + header.l1_entries * 8, header.l1_offset, _L1, 0)
        ]
        self._tables: set[int] = set()
        self._placed: set[int] = set()
        self._unread_tables = 1
        self._run: tuple[int, int, int] | None = None  # host start, host end, guest: neighbours to write at once
        self._pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="inflate")
        self._slots = threading.Semaphore(_BACKLOG)
        self._batch: list[tuple[bytes, int]] = []
        self._failure: BaseException | None = None
        self.written = 0

    @property
    def _end(self) -> int:
        return self._base + len(self._window)

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the image."""
        self._window += data
        self._settle(self._end)
        self._trim()
        if self._failure:
            raise self._failure

    def finish(self) -> None:
        """The image is complete: place what is left, wait for the threads."""
        try:
            while self._waiting and self._failure is None:
                if min(start for _, start, _, _ in self._waiting[:1]) >= self._end:
                    raise _truncated()
                end, start, kind, extra = heapq.heappop(self._waiting)
                if kind in (_L1, _L2):
                    raise _truncated()
                if start >= self._end:
                    raise _truncated()
                self._place(end, start, kind, extra)
            self._flush_run()
            self._flush_batch()
        finally:
            self._pool.shutdown(wait=True)
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Give the threads up (after an error)."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    # -- order ------------------------------------------------------------------------------------------------------

    def _settle(self, limit: int) -> None:
        """Deal with everything awaited that ends at or before file offset `limit`."""
        while self._waiting and self._waiting[0][0] <= limit:
            end, start, kind, extra = heapq.heappop(self._waiting)
            if kind == _L1:
                self._flush_run()
                self._l1(start)
            elif kind == _L2:
                self._flush_run()
                self._l2(start, extra)
            else:
                self._place(end, start, kind, extra)
        self._flush_run()

    def _trim(self) -> None:
        """Spill what passed unclaimed while tables are missing, and forget all but the last two clusters."""
        keep = max(self._base, self._end - 2 * self._cluster - 1024)
        if self._unread_tables and self._cursor < keep:
            self._to_spill(self._cursor, keep)
        self._cursor = max(self._cursor, keep)
        if keep - self._base >= self._cluster:
            del self._window[: keep - self._base]
            self._base = keep

    def _to_spill(self, start: int, end: int) -> None:
        with memoryview(self._window) as view:
            _write_all(self._spill, view[start - self._base : end - self._base], start)

    def _take(self, start: int, end: int) -> bytes:
        """Bytes of the image by file offset, from the window or the spill; short only at the image's end."""
        if start >= self._base:
            return bytes(self._window[start - self._base : end - self._base])
        kept = os.pread(self._spill, min(end, self._base) - start, start).ljust(min(end, self._base) - start, b"\0")
        return kept + bytes(self._window[: max(0, end - self._base)])

    # -- tables -----------------------------------------------------------------------------------------------------

    def _l1(self, start: int) -> None:
        entries = struct.unpack(f">{self._header.l1_entries}Q", self._take(start, start + self._header.l1_entries * 8))
        self._unread_tables -= 1
        span = self._cluster * (self._cluster // 8)
        for index, entry in enumerate(entries):
            offset = entry & _OFFSET_MASK
            if not offset or index * span >= self._header.virtual_bytes:
                continue
            if offset % self._cluster:
                raise _malformed(f"L2 table at {offset} is not at a cluster")
            if offset in self._tables:
                raise NotStreamable("an L2 table is used twice")
            self._tables.add(offset)
            self._unread_tables += 1
            self._await(offset + self._cluster, offset, _L2, index * span)

    def _l2(self, start: int, guest: int) -> None:
        data = self._take(start, start + self._cluster)
        self._unread_tables -= 1
        if data == self._zeros:
            return
        bits = self._header.cluster_bits
        offset_bits = 62 - (bits - 8)
        for index, entry in enumerate(struct.unpack(f">{self._cluster // 8}Q", data)):
            if not entry:
                continue
            place = guest + index * self._cluster
            if place >= self._header.virtual_bytes:
                break
            if entry & _COMPRESSED:
                offset = entry & ((1 << offset_bits) - 1)
                sectors = ((entry & ((1 << 62) - 1)) >> offset_bits) + 1
                self._await((offset & ~511) + sectors * 512, offset, _PACKED, place)
            elif not (entry & _ZERO_FLAG and self._header.version >= 3) and entry & _OFFSET_MASK:
                offset = entry & _OFFSET_MASK
                if offset % self._cluster:
                    raise _malformed(f"a data cluster at {offset} is not at a cluster")
                if offset in self._placed:
                    raise NotStreamable("a cluster is used twice")
                self._placed.add(offset)
                self._await(offset + self._cluster, offset, _DATA, place)

    def _await(self, end: int, start: int, kind: int, extra: int) -> None:
        heapq.heappush(self._waiting, (end, start, kind, extra))

    # -- data -------------------------------------------------------------------------------------------------------

    def _place(self, end: int, start: int, kind: int, guest: int) -> None:
        if kind == _PACKED:
            self._batch.append((self._take(start, end), guest))
            if start >= self._base:
                self._claim(start, end - 512)  # the last sector may also hold the beginning of another cluster
            if len(self._batch) >= _BATCH:
                self._flush_batch()
            return
        if start < self._base or end > self._end:
            self._write(self._take(start, end), guest)
            return
        if self._run and self._run[1] == start and self._run[2] + (start - self._run[0]) == guest:
            self._run = (self._run[0], end, self._run[2])
        else:
            self._flush_run()
            self._run = (start, end, guest)

    def _flush_run(self) -> None:
        if not self._run:
            return
        start, end, guest = self._run
        self._run = None
        self._claim(start, end)
        with memoryview(self._window) as view, view[start - self._base : end - self._base] as data:
            self._write(data, guest)

    def _claim(self, start: int, end: int) -> None:
        """A range of the window is being placed; what was passed over before it may be needed once tables are known."""
        if self._unread_tables and self._cursor < start:
            self._to_spill(max(self._cursor, self._base), start)
        self._cursor = max(self._cursor, end)

    def _write(self, data: bytes | memoryview, guest: int) -> None:
        """Guest data to its place; clusters of zeros stay holes; nothing beyond the virtual size."""
        end = min(len(data), self._header.virtual_bytes - guest)
        position = first = 0
        while position < end:
            step = min(self._cluster, end - position)
            if data[position : position + step] == self._zeros[:step]:
                if first < position:
                    _write_all(self._target, data[first:position], guest + first)
                first = position + step
            position += step
        if first < end:
            _write_all(self._target, data[first:end], guest + first)
        self.written += end

    def _flush_batch(self) -> None:
        if self._batch:
            self._slots.acquire()
            batch, self._batch = self._batch, []
            self._pool.submit(self._inflate, batch).add_done_callback(self._done)

    def _done(self, future: Future[None]) -> None:
        self._slots.release()
        if not future.cancelled() and (error := future.exception()):
            self._failure = error

    def _inflate(self, batch: list[tuple[bytes, int]]) -> None:
        for packed, guest in batch:
            if self._header.compression == "zstd":
                data = zstandard.ZstdDecompressor().stream_reader(packed).read(self._cluster)
            else:
                try:
                    data = zlib.decompressobj(-12).decompress(packed, self._cluster)
                except zlib.error as error:
                    raise _malformed(
                        f"the compressed cluster for guest offset {guest} does not inflate: {error}"
                    ) from error
            if len(data) != self._cluster:
                raise _malformed(f"the compressed cluster for guest offset {guest} is short")
            self._write(data, guest)


def _write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite until all is written (a short write comes before ENOSPC)."""
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)


def _malformed(why: str) -> UnsafeImage:
    return UnsafeImage("MalformedImage", f"Unable to process data: qcow2 image is malformed: {why}")


def _truncated() -> UnsafeImage:
    return UnsafeImage(
        "TruncatedImage", "Unable to process data: qcow2 image is truncated: clusters lie beyond its end"
    )
