"""What tests of backup repositories share: a disk that changes, and a directory that dies after so many bytes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from stead.storage.backup.points import Point
from stead.storage.backup.repository import Repository
from stead.storage.backup.restore import Disk
from stead.storage.backup.session import Extent, Session
from stead.storage.backup.store import Directory

GRANULE = 4096
SECRET = bytes(range(32))


class Memory:
    """A disk in memory, whose changes are known."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self.data = bytearray(size)
        self.random = random.Random(seed)
        self.dirty: set[int] = set()

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def scribble(self, writes: int = 4, most: int = 3 * GRANULE) -> None:
        """Write random bytes, sometimes zeros, sometimes what lies elsewhere already."""
        for _ in range(writes):
            at = self.random.randrange(len(self.data))
            length = min(self.random.randrange(1, most), len(self.data) - at)
            kind = self.random.random()
            text = bytes(length) if kind < 0.2 else self.random.randbytes(length)
            if kind > 0.85:
                at, length = at // GRANULE * GRANULE, GRANULE
                text = bytes(self.data[:GRANULE])[: len(self.data) - at]
            self.data[at : at + len(text)] = text
            self.dirty.update(range(at // GRANULE, -(-(at + len(text)) // GRANULE)))

    def extents(self) -> Iterator[Extent]:
        """What changed since it was last asked."""
        dirty, self.dirty = sorted(self.dirty), set()
        for number in dirty:
            yield Extent(number * GRANULE, GRANULE)


def back_up(repository: Repository, disk: Memory, time: str, parent: Point | None = None, owner: str = "test") -> Point:
    """One point of a machine with one disk: full without a parent."""
    base = parent.disks[0].map if parent else ""
    extents = list(disk.extents()) if parent else [Extent(0, len(disk.data))]
    with Session(repository, owner) as session:
        made = session.add_disk("root", len(disk.data), disk, extents, base)
        point = Point(namespace="default", machine="vm", time=time, disks=(made,), parent=parent.name if parent else "")
        return session.publish(point)


def restored(repository: Repository, point: Point, volume: str = "root") -> bytes:
    """The whole disk."""
    found = point.disk(volume)
    assert found is not None
    target = bytearray(found.size_bytes)

    def write(offset: int, data: bytes) -> None:
        target[offset : offset + len(data)] = data

    Disk(repository, found).copy_to(write)
    return bytes(target)


class Crashed(Exception):
    """The process died here."""


class Dying(Directory):
    """A directory whose process dies after so many bytes and steps: a rename and a removal are one step each."""

    def __init__(self, path: Path, budget: int) -> None:
        super().__init__(path)
        self.left = budget
        self.spent = 0

    def _spend(self, steps: int) -> int:
        allowed = min(steps, self.left)
        self.left -= allowed
        self.spent += allowed
        return allowed

    def _write(self, fd: int, data: bytes) -> None:
        allowed = self._spend(len(data))
        os.write(fd, data[:allowed])
        if allowed < len(data):
            raise Crashed

    def _rename(self, draft: Path, target: Path) -> None:
        if not self._spend(1):
            raise Crashed
        draft.rename(target)

    def _unlink(self, path: Path) -> None:
        if not self._spend(1):
            raise Crashed
        path.unlink(missing_ok=True)
