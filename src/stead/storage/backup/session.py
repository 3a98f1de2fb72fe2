"""One backup being written: granules into packs, packs into an index, maps, and last the point that makes it count.

Until the point is stored, nothing of a session can be seen; a crash at any byte leaves packs that nobody refers to,
which a prune removes. A session says first that it is at work (`writers/…`): as long as it does, no prune removes a
pack or a map. Its own thread calls; it reads its source ahead in one thread, hashes and compresses in two, stores packs
in one. Figures in `Moved`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from stead.storage.backup import points
from stead.storage.backup.keys import BackupError
from stead.storage.backup.maps import CHAIN, ZERO, DiskMap
from stead.storage.backup.packs import PACK_BYTES, PackBuilder, PackInfo, Table, squeeze
from stead.storage.backup.points import DiskPoint, Point
from stead.storage.backup.repository import Repository

#: a session that is older publishes nothing; a prune takes no heed of a writer that is older by a day
SESSION_SECONDS = 6 * 86400.0
WRITER_SECONDS = 7 * 86400.0
_RUN_BYTES = 1 << 20
_AHEAD = 6


class Source(Protocol):
    """A disk that does not change while it is read."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly so many bytes. OSError."""
        ...


class Extent(msgspec.Struct, frozen=True):
    """A piece of a disk that is to be taken up; `zero` when it is known to be zeros."""

    offset: int
    length: int
    zero: bool = False


class Run(msgspec.Struct, frozen=True):
    """Neighbouring granules."""

    first: int
    count: int
    zero: bool


class Moved(msgspec.Struct):
    """Bytes so far: read from the disk, granules taken up, put into the repository before and after compression, read
    from it.
    """

    source: int = 0
    changed: int = 0
    stored_plain: int = 0
    stored: int = 0
    repository_read: int = 0


class Writer(msgspec.Struct, frozen=True, rename="camel"):
    """What a `writers/…` object says."""

    owner: str
    kind: str
    time: str


def plan_runs(extents: Iterable[Extent], size_bytes: int, granule_bytes: int) -> Iterator[Run]:
    """Whole granules that cover the extents (in order, not overlapping), none twice. Pure."""
    done = 0
    for extent in extents:
        end = min(extent.offset + extent.length, size_bytes)
        if extent.offset < 0 or extent.length <= 0 or end <= extent.offset:
            continue
        first, last = extent.offset // granule_bytes, -(-end // granule_bytes)
        if not extent.zero:
            parts = [Run(first, last - first, False)]
        else:
            inner = -(-extent.offset // granule_bytes)
            outer = last if end == size_bytes else end // granule_bytes
            parts = [Run(first, inner - first, False), Run(inner, outer - inner, True)]
            parts.append(Run(max(outer, inner), last - max(outer, inner), False))
        for part in parts:
            start = max(part.first, done)
            if (count := part.first + part.count - start) > 0:
                yield Run(start, count, part.zero)
                done = start + count


class Session:
    """See the module's prose. Use it as a context manager; `publish` at most once."""

    def __init__(self, repository: Repository, owner: str, progress: Callable[[int], None] | None = None) -> None:
        self._repository = repository
        self._progress = progress or (lambda _bytes: None)
        self._began = time.monotonic()
        self._read_before = repository.store.read_bytes
        self._intent = declare(repository, owner, "backup")
        self._table, self._indexes = repository.load_table()
        self._builder = PackBuilder(repository.keys)
        self._fresh: set[bytes] = set()
        self._packs: list[PackInfo] = []
        self._uploads: deque[Future[None]] = deque()
        self._uploader = ThreadPoolExecutor(1, thread_name_prefix="backup-store")
        self.moved = Moved()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End; what was not published is left to a prune."""
        self._uploader.shutdown(wait=True, cancel_futures=True)
        self._repository.store.delete(self._intent)

    # disks -------------------------------------------------------------------------------------------------------

    def add_disk(
        self, volume: str, size_bytes: int, source: Source, extents: Iterable[Extent], base: str = ""
    ) -> DiskPoint:
        """Take up a disk: all that the extents name, on top of the map `base` ("" = zeros). OSError, BackupError.

        The extents are all asked for before the source is read, since both may use one connection.
        """
        granule = self._repository.granule_bytes
        changed: dict[int, bytes] = {}
        runs = (part for run in plan_runs(list(extents), size_bytes, granule) for part in _split(run, granule))
        with (
            ThreadPoolExecutor(1, thread_name_prefix="backup-read") as reader,
            ThreadPoolExecutor(2, thread_name_prefix="backup-hash") as workers,
        ):
            waiting: deque[tuple[Run, Future[list[tuple[bytes, bytes | None]]]]] = deque()
            for run in runs:
                if run.zero:
                    changed.update(dict.fromkeys(range(run.first, run.first + run.count), ZERO))
                    continue
                data = reader.submit(_read_run, source, run, size_bytes, granule)
                waiting.append((run, workers.submit(self._prepare, data)))
                if len(waiting) >= _AHEAD:
                    self._take(*waiting.popleft(), changed)
            while waiting:
                self._take(*waiting.popleft(), changed)
        self.moved.changed += len(changed) * granule
        name = self._write_map(DiskMap(size_bytes, granule, changed, base))
        return DiskPoint(volume=volume, size_bytes=size_bytes, map=name, changed_bytes=len(changed) * granule,
                         incremental=bool(base))  # fmt: skip

    def _prepare(self, data: Future[bytes]) -> list[tuple[bytes, bytes | None]]:
        """(name, what to seal or None when it is there already) of each granule of a run."""
        granule = self._repository.granule_bytes
        whole, zeros = memoryview(data.result()), bytes(granule)
        prepared: list[tuple[bytes, bytes | None]] = []
        for at in range(0, len(whole), granule):
            piece = bytes(whole[at : at + granule])
            if piece == zeros:
                prepared.append((ZERO, None))
                continue
            name = self._repository.keys.name_granule(piece)
            known = name in self._fresh or name in self._table
            prepared.append((name, None if known else squeeze(piece)))
        return prepared

    def _take(self, run: Run, prepared: Future[list[tuple[bytes, bytes | None]]], changed: dict[int, bytes]) -> None:
        granule = self._repository.granule_bytes
        for number, (name, squeezed) in enumerate(prepared.result(), run.first):
            changed[number] = name
            if squeezed is not None and name not in self._fresh:
                self._fresh.add(name)
                self._builder.add(name, squeezed)
                self.moved.stored_plain += granule
                if self._builder.size >= PACK_BYTES:
                    self._flush()
        self.moved.source += run.count * granule
        self._progress(run.count * granule)

    def _flush(self) -> None:
        if self._builder.is_empty:
            return
        info, data = self._builder.finish()
        self._builder = PackBuilder(self._repository.keys)
        while len(self._uploads) >= 2:
            self._uploads.popleft().result()
        self._uploads.append(self._uploader.submit(self._repository.store.put, info.name, data))
        self._packs.append(info)
        self.moved.stored += len(data)

    def _write_map(self, disk: DiskMap) -> str:
        """As a change of its base, or whole where the base cannot carry it any more."""
        if disk.base:
            base = self._repository.read_map(disk.base)
            if (
                base.depth + 1 < CHAIN
                and base.granule_bytes == disk.granule_bytes
                and base.size_bytes <= disk.size_bytes
            ):
                depth = base.depth + 1
                return self._count(self._repository.write_map(msgspec.structs.replace(disk, depth=depth)), disk)
            whole = dict(self._repository.resolve(disk.base).named())
            whole.update(disk.changed)
            disk = msgspec.structs.replace(disk, changed=whole, base="")
        if not disk.base:
            nothing = {number for number, name in disk.changed.items() if name == ZERO}
            kept = {number: name for number, name in disk.changed.items() if number not in nothing}
            disk = msgspec.structs.replace(disk, changed={n: g for n, g in kept.items() if n < disk.granules})
        return self._count(self._repository.write_map(disk), disk)

    def _count(self, name: str, disk: DiskMap) -> str:
        self.moved.stored_plain += 36 * len(disk.changed)
        return name

    # the end -----------------------------------------------------------------------------------------------------

    def publish(self, point: Point) -> Point:
        """Make it count: everything is durable on return. BackupError when the session took too long."""
        self._flush()
        while self._uploads:
            self._uploads.popleft().result()
        self._indexes |= self._repository.write_indexes(self._packs)
        if time.monotonic() - self._began > SESSION_SECONDS:
            raise BackupError("Failed", "the backup took longer than six days and cannot be completed safely")
        self._stay_indexed(point)
        text = points.encode(point)
        name = self._repository.write_object("points", text)
        self._stay_indexed(point)
        self.moved.stored_plain += 40 * len(self._fresh) + len(text)
        self.moved.stored += len(text)
        self.moved.repository_read = self._repository.store.read_bytes - self._read_before
        return msgspec.structs.replace(point, name=name)

    def _stay_indexed(self, point: Point) -> None:
        """When a prune has replaced the indexes meanwhile, what this point needs may be named by none of them."""
        if self._indexes <= self._repository.index_names():
            return
        table, self._indexes = self._repository.load_table()
        missing = missing_of(self._repository, (point,), table)
        if missing and (left := self._repository.adopt(missing, table)):
            raise BackupError(
                "Failed", f"{len(left)} granules of the backup have gone meanwhile; it must be made again"
            )
        self._indexes |= self._repository.index_names()


def declare(repository: Repository, owner: str, kind: str) -> str:
    """Say that somebody is at work; returns the object's name, to be deleted when done."""
    name = f"writers/{os.urandom(32).hex()}"
    writer = Writer(owner, kind, points.time_text(datetime.now(UTC)))
    repository.store.put(name, repository.keys.seal("writers", msgspec.json.encode(writer)))
    return name


def writers(repository: Repository, now: datetime) -> dict[str, Writer]:
    """Who is at work. One that is too old to publish anything is removed, as is an unreadable one."""
    found: dict[str, Writer] = {}
    for name, _ in list(repository.store.list("writers")):
        try:
            text = repository.keys.unseal("writers", name, repository.store.get(name, 4096))
            writer = msgspec.json.decode(text, type=Writer)
            age = now - datetime.fromisoformat(writer.time.replace("Z", "+00:00"))
        except (BackupError, msgspec.DecodeError, ValueError) as error:
            if isinstance(error, BackupError) and error.reason not in ("NotFound", "Damaged"):
                raise
            repository.store.delete(name)
            continue
        if age.total_seconds() > WRITER_SECONDS:
            repository.store.delete(name)
        else:
            found[name] = writer
    return found


def forget_writers(repository: Repository, owner: str) -> None:
    """Remove what a crash of this owner's sessions has left; call it while none of them is at work."""
    for name, writer in writers(repository, datetime.now(UTC)).items():
        if writer.owner == owner:
            repository.store.delete(name)


def missing_of(repository: Repository, of: Iterable[Point], table: Table) -> set[bytes]:
    """Granules of these points that the table does not have."""
    missing: set[bytes] = set()
    for name in {disk.map for point in of for disk in point.disks}:
        missing.update(granule for _, granule in repository.resolve(name).named() if granule not in table)
    return missing


def _split(run: Run, granule_bytes: int) -> Iterator[Run]:
    """Pieces of at most 1 MiB, except for zeros."""
    if run.zero:
        yield run
        return
    most = max(_RUN_BYTES // granule_bytes, 1)
    for first in range(run.first, run.first + run.count, most):
        yield Run(first, min(most, run.first + run.count - first), False)


def _read_run(source: Source, run: Run, size_bytes: int, granule_bytes: int) -> bytes:
    offset, length = run.first * granule_bytes, run.count * granule_bytes
    data = source.read(offset, min(length, size_bytes - offset))
    return data if len(data) == length else data + bytes(length - len(data))
