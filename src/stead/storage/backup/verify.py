"""Proves a repository: every object is read again, every seal and every name checked, every point followed to its
granules. What is damaged is named, down to the disks and bytes that it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from stead.storage.backup.keys import BackupError
from stead.storage.backup.packs import PACK_LIMIT, PackInfo, Table, open_record, read_trailer
from stead.storage.backup.points import DiskPoint, Point
from stead.storage.backup.repository import Repository
from stead.storage.backup.store import content_name

#: damaged places named of one disk
_NAMED = 20


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong: an object, or a piece of a disk at a point (then `point` and `volume` are set)."""

    object: str
    message: str
    point: str = ""
    volume: str = ""
    offset: int = -1


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`points` is name → whether it can be restored whole."""

    findings: tuple[Finding, ...]
    points: dict[str, bool]
    packs: int
    granules: int
    read_bytes: int

    @property
    def ok(self) -> bool:
        return not self.findings


def verify(repository: Repository, progress: Callable[[int], None] = lambda _bytes: None) -> Report:
    """Read and prove everything. Nothing is changed."""
    begun = repository.store.read_bytes
    findings: list[Finding] = []
    infos = list(_indexed(repository, findings))
    lost: set[bytes] = set()
    good: set[bytes] = set()
    for info in infos:
        before = repository.store.read_bytes
        _check_pack(repository, info, findings, (good, lost))
        progress(repository.store.read_bytes - before)
    table = Table(infos)
    outcome: dict[str, bool] = {}
    for name, _ in list(repository.store.list("points")):
        try:
            point = repository.point(name)
        except BackupError as error:
            findings.append(Finding(object=name, message=str(error)))
            outcome[name] = False
            continue
        wrong = [one for disk in point.disks for one in _check_disk(repository, point, disk, (table, lost - good))]
        findings += wrong
        outcome[name] = not wrong
    return Report(findings=tuple(findings), points=outcome, packs=len(infos), granules=len(good),
                  read_bytes=repository.store.read_bytes - begun)  # fmt: skip


def _indexed(repository: Repository, findings: list[Finding]) -> Iterator[PackInfo]:
    """Every pack that an index names, or that is there and tells itself what it holds; each once."""
    seen: set[str] = set()
    for name in sorted(repository.index_names()):
        try:
            infos = repository.read_indexes([name])
        except BackupError as error:
            findings.append(Finding(object=name, message=str(error)))
            continue
        for info in infos:
            if info.name not in seen:
                seen.add(info.name)
                yield info
    if not findings:
        return
    for name, _ in list(repository.store.list("packs")):  # an index is damaged: packs speak for themselves
        if name not in seen:
            try:
                yield read_trailer(repository.keys, name, repository.store.get(name, PACK_LIMIT))
            except BackupError as error:
                findings.append(Finding(object=name, message=str(error)))


def _check_pack(
    repository: Repository, info: PackInfo, findings: list[Finding], sets: tuple[set[bytes], set[bytes]]
) -> None:
    good, lost = sets
    try:
        data = repository.store.get(info.name, PACK_LIMIT)
    except BackupError as error:
        findings.append(Finding(object=info.name, message=str(error)))
        lost.update(entry.name for entry in info.entries)
        return
    if content_name("packs", data) != info.name:
        what = (
            f"has {len(data)} bytes of {info.size}" if len(data) != info.size else "has other bytes than were written"
        )
        findings.append(Finding(object=info.name, message=f"{info.name} is damaged: it {what}"))
    for entry in info.entries:
        try:
            record = data[entry.offset : entry.offset + entry.length]
            open_record(repository.keys, info.salt, entry, record, repository.granule_bytes)
            good.add(entry.name)
        except BackupError as error:
            findings.append(Finding(object=info.name, message=f"{info.name}: {error}", offset=entry.offset))
            lost.add(entry.name)


def _check_disk(
    repository: Repository, point: Point, disk: DiskPoint, known: tuple[Table, set[bytes]]
) -> Iterator[Finding]:
    table, lost = known
    try:
        resolved = repository.resolve(disk.map)
    except BackupError as error:
        yield Finding(object=disk.map, message=str(error), point=point.name, volume=disk.volume)
        return
    named = 0
    for number, name in resolved.named():
        if name in lost or name not in table:
            offset = number * resolved.granule_bytes
            whose = f"disk {disk.volume} of {point.namespace}/{point.machine} at {point.time}"
            message = f"{whose} has lost its bytes from {offset}"
            yield Finding(object=point.name, message=message, point=point.name, volume=disk.volume, offset=offset)
            named += 1
            if named >= _NAMED:
                return
