"""The disks of this host as streams: raw, or gzip, for the plane's download paths.

Composed by `run`, called by the agent's server. A disk is only ever read, as bytes, and only while no machine writes
it: a download of a disk whose machine is started meanwhile is broken off. Holes are read as zeros, which gzip makes
small. Reads and compression run in threads; one chunk is held at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterable

import msgspec

from stead.kube.errors import ApiError
from stead.storage.pools import Pool, PoolError, Volume

CHUNK_BYTES = 1 << 20
#: fast, since most of a disk's bytes are zeros or compressed already
_LEVEL = 1
_GZIP = 31
FORMATS = ("raw", "gzip")


class Download(msgspec.Struct, frozen=True):
    """A disk to be sent: its bytes, and how many there will be (-1: not known beforehand)."""

    length: int
    chunks: AsyncIterator[bytes]


class Exports:
    """See the module's prose. `is_in_use` says whether a machine has the disk at a path."""

    def __init__(self, pools: Iterable[Pool], is_in_use: Callable[[str], bool]) -> None:
        self._pools = tuple(pools)
        self._is_in_use = is_in_use

    async def open(self, uid: str, format: str) -> Download:
        """The disk of a claim or snapshot, by its uid. ApiError: 404, 400 (format), 409 (in use)."""
        if format not in FORMATS:
            raise ApiError("BadRequest", f"a disk is sent as {' or '.join(FORMATS)}, not {format[:20]!r}")
        volume = await asyncio.to_thread(self._find, uid)
        if volume is None:
            raise ApiError("NotFound", f"volume {uid[:64]} is in no pool of this host")
        if volume.format != "raw":
            raise ApiError("BadRequest", f"volume {volume.name} is kept as {volume.format} and cannot be exported yet")
        if self._is_in_use(str(volume.path)):
            raise ApiError("Conflict", f"volume {volume.name} is in use by a machine")
        pieces = self._pieces(volume)
        if format == "raw":
            return Download(volume.size_bytes, pieces)
        return Download(-1, _compressed(pieces))

    def _find(self, uid: str) -> Volume | None:
        for pool in self._pools:
            with contextlib.suppress(PoolError):
                return pool.get(uid)
        return None

    async def _pieces(self, volume: Volume) -> AsyncIterator[bytes]:
        descriptor = os.open(volume.path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            position = 0
            while position < volume.size_bytes:
                if not volume.snapshot and self._is_in_use(str(volume.path)):
                    raise ApiError("Conflict", f"volume {volume.name} came into use while it was sent")
                count = min(CHUNK_BYTES, volume.size_bytes - position)
                piece = await asyncio.to_thread(os.pread, descriptor, count, position)
                if not piece:
                    raise ApiError("InternalError", f"volume {volume.name} became shorter while it was sent")
                position += len(piece)
                yield piece
        finally:
            os.close(descriptor)


async def _compressed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    async for piece in pieces:
        if packed := await asyncio.to_thread(packer.compress, piece):
            yield packed
    yield packer.flush()
