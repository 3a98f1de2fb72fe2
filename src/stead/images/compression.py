"""Streams inside streams: gzip, xz, zstd and bzip2 undone piece by piece, each output piece bounded.

Used inside the import worker. A small input can stand for any amount of output; callers count what comes and stop.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Iterator
from typing import cast

import zstandard
from isal import isal_zlib

from stead.images.safety import COMPRESSIONS, UnsafeImage, sniff
from stead.images.sources import Stream

#: its stubs call this class an instance
InflateError = cast("type[Exception]", isal_zlib.error)
_PIECE = 1 << 20
#: how many layers of compression are undone (an `.img.xz` in a gzip layer is one too many already)
_MAX_DEPTH = 2


def opened(stream: Stream) -> Iterator[bytes]:
    """The pieces of a stream, with its compression (told by magic number) undone."""
    return decompressed(iter(stream.read, b""))


def decompressed(pieces: Iterator[bytes], depth: int = 0) -> Iterator[bytes]:
    """Look at the first piece; undo gzip, xz, zstd or bzip2, else pass through. UnsafeImage when data is damaged."""
    first = next(pieces, b"")
    while len(first) < 512 and (more := next(pieces, b"")):
        first += more
    kind = sniff(first)
    whole = _chain(first, pieces)
    if kind not in COMPRESSIONS:
        yield from whole
        return
    if depth >= _MAX_DEPTH:
        raise UnsafeImage("UnsupportedFormat", "Unable to process data: compressed more than twice")
    yield from decompressed(_undo(kind, whole), depth + 1)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _undo(kind: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        if kind == "zst":
            yield from _zstd(pieces)
        elif kind == "gz":
            yield from _gzip(pieces)
        else:
            yield from _lzma_or_bz2(kind, pieces)
    except (InflateError, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # from the source, not the decoder
        raise UnsafeImage("MalformedImage", f"Unable to process data: {kind} stream is damaged: {error}") from error


def _gzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    decoder = isal_zlib.decompressobj(31)
    for piece in pieces:
        data = piece
        while data:
            yield from _some(decoder.decompress(data, _PIECE))
            if decoder.eof:  # another member may follow
                data = decoder.unused_data.lstrip(b"\0")
                if data:
                    decoder = isal_zlib.decompressobj(31)
            else:
                data = decoder.unconsumed_tail
    if not decoder.eof:
        raise EOFError("it ends early")


def _lzma_or_bz2(kind: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    def new() -> lzma.LZMADecompressor | bz2.BZ2Decompressor:
        return lzma.LZMADecompressor(memlimit=512 << 20) if kind == "xz" else bz2.BZ2Decompressor()

    decoder = new()
    for piece in pieces:
        data = piece
        while True:
            if decoder.eof:
                data = (decoder.unused_data + data).lstrip(b"\0")
                if not data:
                    break
                decoder = new()
            yield from _some(decoder.decompress(data, _PIECE))
            data = b""
            if not decoder.eof and decoder.needs_input:
                break
    if not decoder.eof:
        raise EOFError("it ends early")


def _zstd(pieces: Iterator[bytes]) -> Iterator[bytes]:
    source = _PieceReader(pieces)
    reader = zstandard.ZstdDecompressor(max_window_size=128 << 20).stream_reader(
        source,  # type: ignore[arg-type]  # any object with read(size)
        read_across_frames=True,
    )
    while data := reader.read(_PIECE):
        yield data


class _PieceReader:
    """Pieces as a file to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int) -> bytes:
        data = self._rest or next(self._pieces, b"")
        self._rest = data[size:]
        return data[:size]


def _some(data: bytes) -> Iterator[bytes]:
    if data:
        yield data
