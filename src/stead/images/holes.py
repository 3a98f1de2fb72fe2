"""Writes data to a disk file and leaves what is zero as holes. Pure system calls; used by the import worker.

Zeros are found by looking at three bytes of each block first: data that is not zero nearly always shows it there.
"""

from __future__ import annotations

import os

#: what is zero for so long, at a multiple of it in the file, stays a hole
HOLE_BYTES = 64 << 10
_ZEROS = bytes(HOLE_BYTES)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite until all is written (a short write comes before ENOSPC)."""
    written = os.pwrite(fd, data, offset) if data else 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)


def write_sparse(fd: int, data: bytes | memoryview, offset: int, zeros: bytes = _ZEROS) -> int:
    """Write what is not zero, judged in blocks that begin at multiples of `len(zeros)` of the file; answers the offset
    after it.
    """
    view, size = memoryview(data), len(zeros)
    length, position, start = len(view), 0, 0
    while position < length:
        end = min(position + size - (offset + position) % size, length)
        if not (view[position] or view[end - 1] or view[(position + end) // 2]) and (
            view[position:end].tobytes() == zeros[: end - position]
        ):
            if start < position:
                write_all(fd, view[start:position], offset + start)
            start = end
        position = end
    if start < length:
        write_all(fd, view[start:], offset + start)
    return offset + length
