"""Reads disks out of a repository: whole, in the order of the packs, or piece by piece.

Every granule is proved by its seal and its name before it is handed on. All calls block. A pack that a prune has moved
meanwhile is looked up again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from stead.storage.backup.keys import BackupError
from stead.storage.backup.maps import ZERO, Resolved
from stead.storage.backup.packs import PACK_LIMIT, Entry, open_record
from stead.storage.backup.points import DiskPoint
from stead.storage.backup.repository import Repository

#: granules whose places are sorted at a time: 16 GiB of a disk
_WINDOW = 1 << 18
_THREADS = 3
_CACHED = 512

#: writes at an offset; called by several threads at once
Write = Callable[[int, bytes], object]


class Disk:
    """A disk at a point, for reading."""

    def __init__(self, repository: Repository, disk: DiskPoint) -> None:
        self._repository = repository
        self._disk = disk
        self._resolved: Resolved = repository.resolve(disk.map)
        if self._resolved.size_bytes != disk.size_bytes:
            raise BackupError("Damaged", f"{disk.map} is of another disk: {self._resolved.size_bytes} bytes")
        self._table, _ = repository.load_table()
        self._cache: OrderedDict[int, bytes] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        return self._disk.size_bytes

    @property
    def data_bytes(self) -> int:
        """How much of it is not zeros, in whole granules."""
        return sum(1 for _ in self._resolved.named()) * self._resolved.granule_bytes

    def read(self, offset: int, length: int) -> bytes:
        """One piece; one thread at a time. BackupError Damaged."""
        granule = self._resolved.granule_bytes
        parts = []
        end = min(offset + length, self.size_bytes)
        while offset < end:
            number, inner = divmod(offset, granule)
            part = self._granule(number)[inner : inner + end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _granule(self, number: int) -> bytes:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        name = self._resolved.name(number)
        data = bytes(self._resolved.granule_bytes) if name == ZERO else self._fetch(name)
        self._cache[number] = data
        if len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return data

    def _fetch(self, name: bytes) -> bytes:
        for again in (False, True):
            if again:
                self._table, _ = self._repository.load_table()
            row = self._table.find(name)
            if row < 0:
                continue
            number, entry = self._table.place(row)
            pack = self._table.packs[number]
            try:
                record = self._repository.store.get_part(pack.name, entry.offset, entry.length)
                return self._open(pack.name, pack.salt, entry, record)
            except BackupError as error:
                if error.reason != "NotFound":
                    raise
        raise BackupError("Damaged", f"no pack has the granule {name.hex()[:16]}")

    def _open(self, pack: str, salt: bytes, entry: Entry, record: bytes) -> bytes:
        try:
            return open_record(self._repository.keys, salt, entry, record, self._resolved.granule_bytes)
        except BackupError as error:
            raise BackupError(error.reason, f"{pack}: {error}") from error

    # whole disks -------------------------------------------------------------------------------------------------

    def copy_to(self, write: Write, progress: Callable[[int], None] = lambda _bytes: None) -> None:
        """Write all that is not zeros into what is zeros already. BackupError, OSError."""
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="restore") as pool:
            for wanted in self._windows():
                works = [pool.submit(self._copy_pack, number, places, write) for number, places in wanted.items()]
                try:
                    for work in works:
                        progress(work.result())
                except BaseException:
                    for work in works:
                        work.cancel()
                    raise

    def _windows(self) -> Iterator[dict[int, list[tuple[Entry, int]]]]:
        """Pack → (entry, number of the granule) in the order of the pack."""
        wanted: dict[int, list[tuple[Entry, int]]] = {}
        for count, (number, name) in enumerate(self._resolved.named(), 1):
            row = self._table.find(name)
            if row < 0:
                raise BackupError("Damaged", f"no pack has granule {number} of {self._disk.volume}")
            pack, entry = self._table.place(row)
            wanted.setdefault(pack, []).append((entry, number))
            if count % _WINDOW == 0:
                yield wanted
                wanted = {}
        yield wanted

    def _copy_pack(self, number: int, places: list[tuple[Entry, int]], write: Write) -> int:
        pack = self._table.packs[number]
        granule = self._resolved.granule_bytes
        whole = b""
        if sum(entry.length for entry, _ in places) * 4 > pack.size:
            whole = self._whole(pack.name)
        for entry, at in places:
            if whole:
                data = self._open(pack.name, pack.salt, entry, whole[entry.offset : entry.offset + entry.length])
            else:
                data = self._fetch(entry.name)
            offset = at * granule
            write(offset, data[: self.size_bytes - offset])
        return len(places) * granule

    def _whole(self, pack: str) -> bytes:
        try:
            return self._repository.store.get(pack, PACK_LIMIT)
        except BackupError as error:
            if error.reason != "NotFound":
                raise
            return b""  # moved by a prune: one by one
