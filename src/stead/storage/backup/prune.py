"""Removes points and what only they needed, safely beside writers.

The order is what makes it safe (the decision record argues it): say that we are at work; remove points; mark; move what
lives out of packs that are mostly dead; write new indexes, then remove the old ones; list packs and maps, *then* look
for writers, *then* for points. With no writer at work, a pack that was listed and is in no index is needed by nobody:
whoever begins later sees the new indexes only. With one at work, nothing but points and indexes goes; the next prune
does the rest. A point that was published meanwhile, and rests on what was dead, has its packs indexed again.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import msgspec

from stead.storage.backup.keys import BackupError
from stead.storage.backup.packs import PACK_BYTES, PACK_LIMIT, Entry, PackBuilder, PackInfo, Table, open_record, squeeze
from stead.storage.backup.points import Point
from stead.storage.backup.repository import Repository
from stead.storage.backup.session import declare, missing_of, writers

#: a pack is emptied when less than this share of it is still needed
_WORTH_KEEPING = 0.6
_SWEEP_SECONDS = 86400.0


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What went. `waits_for` names writers for whose sake packs and maps stay until the next time."""

    points: int = 0
    packs: int = 0
    maps: int = 0
    freed_bytes: int = 0
    waits_for: tuple[str, ...] = ()


def prune(repository: Repository, remove: Collection[str], now: datetime, owner: str = "prune") -> Pruned:
    """Remove these points and all that nobody needs. BackupError: Busy beside another prune, Damaged when a granule
    that is needed is missing (then nothing but points went).
    """
    intent = declare(repository, owner, "prune")
    try:
        others = {n: w for n, w in writers(repository, now).items() if n != intent and w.kind == "prune"}
        if others:
            raise BackupError("Busy", f"the repository is being pruned by {next(iter(others.values())).owner}")
        for name in remove:
            repository.store.delete(name)
        return _collect(repository, intent, len(remove), now)
    finally:
        repository.store.delete(intent)


def _collect(repository: Repository, intent: str, removed: int, now: datetime) -> Pruned:
    before = repository.points()
    table, old = repository.load_table()
    if lost := missing_of(repository, before, table):
        if left := repository.adopt(lost, table):
            raise BackupError("Damaged", f"{len(left)} granules that points need are missing; nothing else is removed")
        table, old = repository.load_table()
    infos = {pack.name: pack for pack in repository.read_indexes(sorted(old))}
    keep = _rearrange(repository, infos, _mark(repository, before, table))
    if {pack.name for pack in keep} != set(infos) or len(old) > 8:
        fresh = repository.write_indexes(keep)
        for name in old - fresh:
            repository.store.delete(name)
    listed = {kind: dict(repository.store.list(kind)) for kind in ("packs", "maps")}
    at_work = {name: w for name, w in writers(repository, now).items() if name != intent}
    after = repository.points()
    _rescue(repository, [point for point in after if point.name not in {known.name for known in before}])
    if at_work:
        return Pruned(points=removed, waits_for=tuple(sorted(writer.owner for writer in at_work.values())))
    return _sweep(repository, listed, after, removed)


def _mark(repository: Repository, of: list[Point], table: Table) -> dict[str, set[bytes]]:
    """Pack → granules in it that points need (one copy of each)."""
    seen = bytearray(table.count)
    live: dict[str, set[bytes]] = {}
    for name in {disk.map for point in of for disk in point.disks}:
        for _, granule in repository.resolve(name).named():
            row = table.find(granule)
            if row >= 0 and not seen[row]:
                seen[row] = 1
                live.setdefault(table.packs[table.place(row)[0]].name, set()).add(granule)
    return live


def _rearrange(repository: Repository, infos: dict[str, PackInfo], live: dict[str, set[bytes]]) -> list[PackInfo]:
    """The packs to index from now on, after the granules of mostly dead ones were written into new ones."""
    keep: list[PackInfo] = []
    builder = PackBuilder(repository.keys)
    for name, info in sorted(infos.items()):
        needed = live.get(name, set())
        alive = sum(entry.length for entry in info.entries if entry.name in needed)
        if not needed:
            continue
        if alive >= _WORTH_KEEPING * info.size or len(needed) == len(info.entries):
            keep.append(info)
            continue
        data = repository.store.get(name, PACK_LIMIT)
        for entry in info.entries:
            if entry.name in needed:
                builder.add(entry.name, _squeezed(repository, info, entry, data))
                if builder.size >= PACK_BYTES:
                    keep.append(_store(repository, builder))
                    builder = PackBuilder(repository.keys)
    if not builder.is_empty:
        keep.append(_store(repository, builder))
    return keep


def _squeezed(repository: Repository, info: PackInfo, entry: Entry, data: bytes) -> bytes:
    record = data[entry.offset : entry.offset + entry.length]
    try:
        return squeeze(open_record(repository.keys, info.salt, entry, record, repository.granule_bytes))
    except BackupError as error:
        raise BackupError(error.reason, f"{info.name}: {error}") from error


def _store(repository: Repository, builder: PackBuilder) -> PackInfo:
    info, data = builder.finish()
    repository.store.put(info.name, data)
    return info


def _rescue(repository: Repository, fresh: list[Point]) -> None:
    """Points published while we worked: what they rest on is indexed again where we had given it up."""
    if fresh:
        table, _ = repository.load_table()
        if missing := missing_of(repository, fresh, table):
            repository.adopt(missing, table)


def _sweep(repository: Repository, listed: dict[str, dict[str, int]], of: list[Point], removed: int) -> Pruned:
    indexed = {pack.name for pack in repository.read_indexes(sorted(repository.index_names()))}
    needed = _maps_of(repository, of)
    dead_packs = {name: size for name, size in listed["packs"].items() if name not in indexed}
    dead_maps = {name: size for name, size in listed["maps"].items() if name not in needed}
    for name in (*dead_packs, *dead_maps):
        repository.store.delete(name)
    repository.store.sweep(_SWEEP_SECONDS)
    freed = sum(dead_packs.values()) + sum(dead_maps.values())
    return Pruned(points=removed, packs=len(dead_packs), maps=len(dead_maps), freed_bytes=freed)


def _maps_of(repository: Repository, of: list[Point]) -> set[str]:
    needed: set[str] = set()
    for point in of:
        for disk in point.disks:
            name = disk.map
            while name and name not in needed:
                needed.add(name)
                name = repository.read_map(name).base
    return needed
