"""The map of a disk at one point: which granule lies where. Pure.

A map names the granules that differ from those of its base (another map, named by its object), or all of them. A
granule of zeros has no object. A disk's map is so as small as its change; the chain of bases is bounded by `CHAIN`,
after which a whole map is written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import msgspec

from stead.storage.backup.keys import BackupError

CHAIN = 64
MAP_LIMIT = 1 << 30
DISK_LIMIT = 64 << 40
ZERO = bytes(32)
_HEAD = struct.Struct(">BIQ32sHI")
_ENTRY = struct.Struct(">I32s")


class DiskMap(msgspec.Struct, frozen=True):
    """`changed`: number of a granule → its name (`ZERO` for zeros). `base` is the name of a map object or "".

    `depth` counts the maps below it.
    """

    size_bytes: int
    granule_bytes: int
    changed: dict[int, bytes]
    base: str = ""
    depth: int = 0

    @property
    def granules(self) -> int:
        return -(-self.size_bytes // self.granule_bytes)


def encode(disk: DiskMap) -> bytes:
    """The plain text of the object."""
    base = bytes.fromhex(disk.base.partition("/")[2]) if disk.base else ZERO
    head = _HEAD.pack(1, disk.granule_bytes, disk.size_bytes, base, disk.depth, len(disk.changed))
    return head + b"".join(_ENTRY.pack(number, name) for number, name in sorted(disk.changed.items()))


def decode(name: str, data: bytes) -> DiskMap:
    """BackupError Damaged or TooNew names the object."""
    if data[:1] != b"\x01":
        raise BackupError("TooNew", f"{name} was written by a newer release")
    if len(data) < _HEAD.size:
        raise BackupError("Damaged", f"{name} is damaged: it ends in the middle")
    _, granule, size, base, depth, count = _HEAD.unpack_from(data)
    body = memoryview(data)[_HEAD.size :]
    if len(body) != count * _ENTRY.size or size > DISK_LIMIT or granule < 4096 or depth > CHAIN:
        raise BackupError("Damaged", f"{name} is damaged: its parts do not fit together")
    changed = dict(_ENTRY.iter_unpack(body))
    found = DiskMap(size, granule, changed, "" if base == ZERO else f"maps/{base.hex()}", depth)
    if changed and max(changed) >= found.granules:
        raise BackupError("Damaged", f"{name} is damaged: it names a granule behind the disk's end")
    return found


class Resolved:
    """Every granule of a disk, 32 bytes each; zeros where nothing was ever written."""

    def __init__(self, size_bytes: int, granule_bytes: int, names: bytearray) -> None:
        self.size_bytes, self.granule_bytes, self._names = size_bytes, granule_bytes, names

    def name(self, number: int) -> bytes:
        return bytes(self._names[number * 32 : number * 32 + 32])

    def named(self) -> Iterator[tuple[int, bytes]]:
        """(number, name) of the granules that are not zeros."""
        for number in range(len(self._names) // 32):
            if (name := self.name(number)) != ZERO:
                yield number, name


def resolve(name: str, read: Callable[[str], DiskMap]) -> Resolved:
    """Lay a chain of maps over each other. A disk that grew has zeros behind what its base had."""
    chain: list[DiskMap] = []
    while name:
        if len(chain) > CHAIN:
            raise BackupError("Damaged", f"{name}: a chain of more than {CHAIN} maps")
        chain.append(read(name))
        name = chain[-1].base
    top = chain[0]
    names = bytearray(top.granules * 32)
    for disk in reversed(chain):
        if disk.granule_bytes != top.granule_bytes:
            raise BackupError("Damaged", "maps of one disk have granules of different sizes")
        for number, granule in disk.changed.items():
            if number < top.granules:
                names[number * 32 : number * 32 + 32] = granule
    return Resolved(top.size_bytes, top.granule_bytes, names)
