"""How far an import has come, on disk beside what it has written, so that another process can go on from there.

Written and read by the import worker only, through a descriptor that the agent opened: one record, renewed in place
after the disk (and the spill) were synced up to it. A record that was torn by a crash does not check and counts as
none; then the import begins anew.
"""

from __future__ import annotations

import os
import zlib

import msgspec

_LENGTH = 4096


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`offset` bytes of the source's `total` (-1 unknown) have been dealt with. `source` tells one source from another,
    `validator` one version of it (an ETag or a date), `format` is raw or qcow2.
    """

    source: str
    validator: str
    format: str
    offset: int
    total: int = -1


def read(fd: int) -> Checkpoint | None:
    """The checkpoint that was written last, or None."""
    checked, _, text = os.pread(fd, _LENGTH, 0).partition(b" ")
    body = text.rstrip(b"\0")
    if not body or checked != b"%08x" % zlib.crc32(body):
        return None
    try:
        found = msgspec.json.decode(body, type=Checkpoint)
    except msgspec.DecodeError:
        return None
    return found if found.offset > 0 else None


def write(fd: int, checkpoint: Checkpoint) -> None:
    """Keep a checkpoint, durably; what it speaks of must be durable already."""
    body = msgspec.json.encode(checkpoint)
    record = b"%08x %b" % (zlib.crc32(body), body)
    if len(record) > _LENGTH:
        return  # a URL of such length is not worth it
    os.pwrite(fd, record.ljust(_LENGTH, b"\0"), 0)
    os.fdatasync(fd)
