"""Writes a qcow2 image's guest data to a raw disk while the image is still arriving, in one pass where its order
allows.

Used by the import worker only (unprivileged, one thread feeds). A cluster that arrives after the table that maps it
goes straight to its place; one that arrives before is kept in a spill file at its own offset and moved when the table
is known. An image made by `qemu-img convert` or published by a distribution spills a few tables only. Neighbouring
clusters are written at once, from the very buffer they were received in. Compressed clusters are inflated on a small
pool of threads with a bounded backlog. What is not yet placed at a `checkpoint` lies in the spill, so that another
process can go on from there. Layout: QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import heapq
import os
import struct
import threading
from array import array
from concurrent.futures import Future, ThreadPoolExecutor

import zstandard
from isal import isal_zlib

from stead.images.compression import InflateError
from stead.images.holes import write_all, write_sparse
from stead.images.safety import HEAD_BYTES, Qcow2Header, UnsafeImage

_OFFSET_MASK = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_ZERO_FLAG = 1
_COPY_BYTES = 1 << 20
_BATCH = 16
_BACKLOG = 32
#: threads that inflate, as many as QEMU uses
_INFLATERS = 4

# kinds of what is waited for, in the order they are dealt with at one offset
_L1, _L2, _DATA, _PACKED = 0, 1, 2, 3


class NotStreamable(Exception):
    """A valid image whose layout needs random access (extended L2 entries, clusters used twice)."""


class Qcow2Stream:
    """Feed it the image from its first byte; `finish` when all has been fed. Raises UnsafeImage on a malformed one."""

    def __init__(
        self, header: Qcow2Header, target: int, spill: int, *, checkpoints: bool = False, resume_at: int = 0
    ) -> None:
        """`target` is a descriptor of the raw disk (already as long as the volume, all holes), `spill` of an empty
        file. `checkpoints`: keep in the spill what `checkpoint` needs. `resume_at`: both files are as another process
        left them, and feeding goes on at the offset that its checkpoint answered.
        """
        if header.extended_l2:
            raise NotStreamable("extended L2 entries")
        self._header, self._target, self._spill = header, target, spill
        self._cluster = 1 << header.cluster_bits
        self._zeros = bytes(self._cluster)
        self._current = memoryview(b"")  # what is being fed
        self._base = resume_at  # file offset of its first byte
        self._tail = b""  # what was fed just before
        self._kept_bytes = 2 * self._cluster + 1024  # how much of it an awaited piece can reach back
        self._cursor = resume_at  # all bytes below were placed, spilled or are of no use
        #: (offset at which it can be dealt with, start, kind, guest offset, end)
        self._waiting: list[tuple[int, int, int, int, int]] = []
        self._tables: set[int] = set()
        self._placed: set[int] = set()
        self._unread_tables = 1
        self._pool = ThreadPoolExecutor(max_workers=_INFLATERS, thread_name_prefix="inflate")
        self._slots = threading.Semaphore(_BACKLOG)
        self._batch: list[tuple[bytes, int]] = []
        self._failure: BaseException | None = None
        self._checkpoints = checkpoints
        self._restoring = resume_at > 0
        self._await(header.l1_offset, header.l1_offset + header.l1_entries * 8, _L1, 0)
        self._settle(resume_at)
        self._restoring = False

    @property
    def _end(self) -> int:
        return self._base + len(self._current)

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the image; they may be overwritten afterwards."""
        self._current = memoryview(data)
        if self._checkpoints and self._base < HEAD_BYTES:
            write_all(self._spill, self._current[: HEAD_BYTES - self._base], self._base)
        self._settle(self._end)
        self._pass_on()
        if self._failure:
            raise self._failure

    def finish(self) -> None:
        """The image is complete: place what is left, wait for the threads."""
        try:
            while self._waiting and self._failure is None:
                _, start, kind, guest, end = heapq.heappop(self._waiting)
                if kind in (_L1, _L2) or start >= self._end or (kind == _DATA and end - self._end >= self._cluster):
                    raise _truncated()
                if kind == _DATA:
                    self._write(self._take(start, end), guest)
                else:
                    self._pack(start, end, guest)
            self._flush_batch()
        finally:
            self._pool.shutdown(wait=True)
        if self._failure:
            raise self._failure

    def checkpoint(self) -> int:
        """Everything up to the answered offset of the image is in the two files, durably."""
        self._flush_batch()
        for _ in range(_BACKLOG):
            self._slots.acquire()
        self._slots.release(_BACKLOG)
        if self._failure:
            raise self._failure
        write_all(self._spill, self._tail, self._base - len(self._tail))
        os.fdatasync(self._target)
        os.fdatasync(self._spill)
        return self._base

    def close(self) -> None:
        """Give the threads up (after an error)."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    # -- order ------------------------------------------------------------------------------------------------------

    def _await(self, start: int, end: int, kind: int, guest: int) -> None:
        """Deal with it once it has arrived: with a run of clusters, once the first of them has."""
        ripe = start + self._cluster if kind == _DATA else end
        heapq.heappush(self._waiting, (ripe, start, kind, guest, end))

    def _settle(self, limit: int) -> None:
        """Deal with everything awaited that has arrived when the image is there up to offset `limit`."""
        while self._waiting and self._waiting[0][0] <= limit:
            _, start, kind, guest, end = heapq.heappop(self._waiting)
            if kind == _L1:
                self._l1(start, end)
            elif kind == _L2:
                self._l2(start, guest)
            elif kind == _PACKED:
                self._pack(start, end, guest)
            else:
                self._place(start, min(end, limit - (limit - start) % self._cluster), guest, end)

    def _pass_on(self) -> None:
        """The buffer goes back: spill what passed unclaimed while tables are missing, keep the last two clusters."""
        keep = max(self._base - len(self._tail), self._end - self._kept_bytes)
        if self._unread_tables and self._cursor < keep:
            self._to_spill(self._cursor, keep)
        self._cursor = max(self._cursor, keep)
        self._tail, self._base = self._take(keep, self._end), self._end
        self._current = memoryview(b"")

    def _to_spill(self, start: int, end: int) -> None:
        if start < self._base:
            write_all(self._spill, self._take(start, min(end, self._base)), start)
        if end > self._base:
            start = max(start, self._base)
            write_all(self._spill, self._current[start - self._base : end - self._base], start)

    def _take(self, start: int, end: int) -> bytes:
        """Bytes of the image by file offset, from spill, tail and buffer; short only at the image's end."""
        parts = []
        low = self._base - len(self._tail)
        if start < low:
            length = min(end, low) - start
            parts.append(os.pread(self._spill, length, start).ljust(length, b"\0"))
            start += length
        if start < min(end, self._base):
            parts.append(self._tail[start - low : end - low])
            start = self._base
        if start < end:
            parts.append(bytes(self._current[start - self._base : end - self._base]))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # -- tables -----------------------------------------------------------------------------------------------------

    def _table(self, start: int, end: int) -> array[int]:
        data = self._take(start, end)
        self._unread_tables -= 1
        if self._checkpoints and not self._restoring:
            write_all(self._spill, data, start)
        entries = array("Q", data)
        if struct.pack("=H", 1) != struct.pack(">H", 1):
            entries.byteswap()
        return entries

    def _l1(self, start: int, end: int) -> None:
        span = self._cluster * (self._cluster // 8)
        for index, entry in enumerate(self._table(start, end)):
            offset = entry & _OFFSET_MASK
            if not offset or index * span >= self._header.virtual_bytes:
                continue
            if offset % self._cluster:
                raise _malformed(f"L2 table at {offset} is not at a cluster")
            if offset in self._tables:
                raise NotStreamable("an L2 table is used twice")
            self._tables.add(offset)
            self._unread_tables += 1
            self._await(offset, offset + self._cluster, _L2, index * span)

    def _l2(self, start: int, guest: int) -> None:
        bits, size = self._header.cluster_bits, self._cluster
        offset_bits = 62 - (bits - 8)
        has_zero_flag = self._header.version >= 3
        first = host = 0  # a run of clusters that are neighbours in the image and in the guest's disk
        place = 0
        for index, entry in enumerate(self._table(start, start + size)):
            if not entry:
                continue
            at = guest + index * size
            if at >= self._header.virtual_bytes:
                break
            if entry & _COMPRESSED:
                offset = entry & ((1 << offset_bits) - 1)
                sectors = ((entry & ((1 << 62) - 1)) >> offset_bits) + 1
                self._await(offset, (offset & ~511) + sectors * 512, _PACKED, at)
            elif entry & _OFFSET_MASK and not (entry & _ZERO_FLAG and has_zero_flag):
                offset = entry & _OFFSET_MASK
                if offset % size:
                    raise _malformed(f"a data cluster at {offset} is not at a cluster")
                if offset in self._placed:
                    raise NotStreamable("a cluster is used twice")
                self._placed.add(offset)
                if first and offset == host and at == place + host - first:
                    host += size
                    continue
                if first:
                    self._await(first, host, _DATA, place)
                first, host, place = offset, offset + size, at
        if first:
            self._await(first, host, _DATA, place)

    # -- data -------------------------------------------------------------------------------------------------------

    def _pack(self, start: int, end: int, guest: int) -> None:
        """A compressed cluster."""
        if self._restoring:
            return
        self._batch.append((self._take(start, end), guest))
        if start >= self._base:
            self._claim(start, end - 512)  # the last sector may also hold the beginning of another cluster
        if len(self._batch) >= _BATCH:
            self._flush_batch()

    def _place(self, start: int, end: int, guest: int, run_end: int) -> None:
        """Clusters `start`..`end` of a run have arrived; the rest of it is awaited."""
        if end < run_end:
            self._await(end, run_end, _DATA, guest + end - start)
        if self._restoring:
            return
        while start < end:
            if start >= self._base:
                self._claim(start, end)
                self._write(self._current[start - self._base : end - self._base], guest)
                return
            # what was spilled or lies across two buffers, in moderate pieces that end at a cluster
            step = max(self._cluster, _COPY_BYTES)
            if start + step > self._base:
                step = -(-(self._base - start) // self._cluster) * self._cluster
            step = min(step, end - start)
            if start + step > self._base:
                self._claim(start, start + step)
            self._write(self._take(start, start + step), guest)
            start, guest = start + step, guest + step

    def _claim(self, start: int, end: int) -> None:
        """A range is being placed; what was passed over before it may be needed once tables are known."""
        if self._unread_tables and self._cursor < start:
            self._to_spill(self._cursor, start)
        self._cursor = max(self._cursor, end)

    def _write(self, data: bytes | memoryview, guest: int) -> None:
        """Guest data to its place; clusters of zeros stay holes; nothing beyond the virtual size."""
        write_sparse(self._target, data[: self._header.virtual_bytes - guest], guest, self._zeros)

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
                    data = isal_zlib.decompressobj(-12).decompress(packed, self._cluster)
                except InflateError as error:
                    raise _malformed(
                        f"the compressed cluster for guest offset {guest} does not inflate: {error}"
                    ) from error
            if len(data) != self._cluster:
                raise _malformed(f"the compressed cluster for guest offset {guest} is short")
            self._write(data, guest)


def _malformed(why: str) -> UnsafeImage:
    return UnsafeImage("MalformedImage", f"Unable to process data: qcow2 image is malformed: {why}")


def _truncated() -> UnsafeImage:
    return UnsafeImage(
        "TruncatedImage", "Unable to process data: qcow2 image is truncated: clusters lie beyond its end"
    )
