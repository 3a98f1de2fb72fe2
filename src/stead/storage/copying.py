"""Copies one disk file onto another: shared blocks where the filesystem can, else data only, holes kept.

Called by `storage.pools`; blocks, so callers use threads. Sources: ioctl_ficlonerange(2); holes: lseek(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

_FICLONE = 0x40049409
_COPY_BYTES = 64 << 20
_READ_BYTES = 1 << 20


def copy_disk(source: Path, target: Path, on_share: Callable[[float], None] | None = None) -> None:
    """Copy a file onto an existing one: shared blocks if the filesystem can, else data only, holes kept."""
    tell = on_share or (lambda _share: None)
    with contextlib.ExitStack() as stack:
        read = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
        stack.callback(os.close, read)
        write = os.open(target, os.O_RDWR | os.O_NOFOLLOW)
        stack.callback(os.close, write)
        copy_open_disk(read, write, tell)
        os.fsync(write)
        tell(1.0)


def copy_open_disk(read: int, write: int, tell: Callable[[float], None]) -> None:
    """The same between two open descriptors, without waiting until it is on the medium."""
    size = os.fstat(read).st_size
    os.ftruncate(write, size)
    try:
        fcntl.ioctl(write, _FICLONE, read)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(write, 0)
        os.ftruncate(write, size)
        _copy_data(read, write, size, tell)


def _copy_data(read: int, write: int, size: int, tell: Callable[[float], None]) -> None:
    position = 0
    while position < size:
        try:
            start = os.lseek(read, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            raise
        position = os.lseek(read, start, os.SEEK_HOLE)
        while start < position:
            copied = _copy_piece(read, write, min(_COPY_BYTES, position - start), start)
            if not copied:
                raise OSError(errno.EIO, "the source became shorter while it was copied")
            start += copied
            tell(start / size)


def _copy_piece(read: int, write: int, count: int, offset: int) -> int:
    """Copy some of `count` bytes at an offset; answers how many. In the kernel, but between filesystems by hand."""
    try:
        return os.copy_file_range(read, write, count, offset, offset)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
    return os.pwrite(write, os.pread(read, min(count, _READ_BYTES), offset), offset)
