"""A point: what a machine was at one time. Pure but for nothing; one sealed object each, named by its content.

Whoever holds the key finds in it all that a restore needs: the disks' maps and the machine's own manifest.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from stead.storage.backup.keys import BackupError

POINT_LIMIT = 16 << 20


class DiskPoint(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One disk of a point. `volume` is its name in the machine; `map` names a map object; sizes in bytes.

    `changed_bytes` is what this point took up anew, in whole granules; `incremental` whether it rests on a bitmap.
    """

    volume: str
    size_bytes: int
    map: str
    changed_bytes: int = 0
    incremental: bool = False
    #: the claim it was, for a restore into claims of the same names
    claim: str = ""


class Point(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`time` is the moment whose disks these are, RFC 3339 in UTC; `quiesced` whether the guest had frozen its file
    systems then (or was off). `objects` are manifests as they were. `name` is the object's, never stored.
    """

    namespace: str
    machine: str
    machine_uid: str = ""
    time: str
    quiesced: bool = False
    running: bool = False
    host: str = ""
    disks: tuple[DiskPoint, ...] = ()
    objects: tuple[dict[str, Any], ...] = ()
    parent: str = ""
    checkpoint: str = ""
    name: str = ""

    @property
    def short(self) -> str:
        """What people type: the first twelve digits of the name."""
        return self.name.partition("/")[2][:12]

    @property
    def when(self) -> datetime:
        return datetime.fromisoformat(self.time.replace("Z", "+00:00")).astimezone(UTC)

    @property
    def kind(self) -> str:
        """Incremental when every disk rests on a bitmap."""
        return "Incremental" if self.disks and all(disk.incremental for disk in self.disks) else "Full"

    def disk(self, volume: str) -> DiskPoint | None:
        return next((disk for disk in self.disks if disk.volume == volume), None)


def encode(point: Point) -> bytes:
    """The plain text of the object."""
    return b"\x01" + msgspec.json.encode(msgspec.structs.replace(point, name=""))


def decode(name: str, data: bytes) -> Point:
    """BackupError Damaged or TooNew names the object."""
    if data[:1] != b"\x01":
        raise BackupError("TooNew", f"{name} was written by a newer release")
    try:
        point = msgspec.structs.replace(msgspec.json.decode(data[1:], type=Point), name=name)
        point.when  # noqa: B018  a point without a readable time is no point
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise BackupError("Damaged", f"{name} is damaged: {error}") from error
    return point


def time_text(time: datetime) -> str:
    """RFC 3339 in UTC, to the microsecond, so that points have an order."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
