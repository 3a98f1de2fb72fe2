"""Changed blocks of a machine's disks: where they are recorded, and what that record is worth after a restart.

A raw disk gets a qcow2 beside it that holds bitmaps only and names the disk as its data file; it lies in the machine's
persistent folder on this host (`persistence.py`), so that increments go on after a restart. What wrote to the disk
while no guest ran is not in the bitmaps: when the machine ends, the disk's size and time of change are noted, and a
disk that differs from its note at the next start gets a new, empty record: the next backup is then a full one. A disk
that is qcow2 itself keeps its own bitmaps. Called by `bringup.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from stead.agent import paths
from stead.agent import vmi as reading
from stead.agent.prepared import NotReady, Prepared, PreparedVolume
from stead.storage.overlays import create_tracking
from stead.storage.pools import PoolError

Object = dict[str, Any]

_FOLDER = "changes"
#: volumes that KubeVirt's changed-block tracking knows
ELIGIBLE = ("persistentVolumeClaim", "dataVolume", "hostDisk")


class _Note(msgspec.Struct):
    """A disk as it was when its machine ended."""

    path: str
    size: int
    changed_ns: int


def is_eligible(volume: PreparedVolume) -> bool:
    """Whether a backup takes the volume."""
    return volume.kind in ELIGIBLE and not volume.read_only


async def prepare(
    vmi: Object, volumes: tuple[PreparedVolume, ...], persistent: str, owner: tuple[int, int]
) -> tuple[PreparedVolume, ...]:
    """The volumes, those that are raw with a record of their changes where the instance asks for it."""
    if not persistent or not reading.tracks_changes(vmi):
        return volumes
    folder = await asyncio.to_thread(paths.make_directory, Path(persistent), _FOLDER, mode=0o711)
    made = []
    for volume in volumes:
        if is_eligible(volume) and volume.format == "raw" and volume.source == "file":
            made.append(await _tracked(volume, folder, owner))
        else:
            made.append(volume)
    return tuple(made)


async def _tracked(volume: PreparedVolume, folder: Path, owner: tuple[int, int]) -> PreparedVolume:
    target = folder / f"{volume.name}.qcow2"
    if not await asyncio.to_thread(_is_still_true, target, volume):
        try:
            await create_tracking(target, Path(volume.path), volume.size)
        except PoolError as error:
            raise NotReady("ChangedBlockTracking", str(error), 30) from error
    await asyncio.to_thread(paths.give, folder, target.name, *owner)
    return msgspec.structs.replace(volume, tracking=str(target))


def _is_still_true(target: Path, volume: PreparedVolume) -> bool:
    """Blocking. The note is used once: whatever happens to the guest, another one must be written at its end."""
    note = target.with_suffix(".json")
    try:
        found = msgspec.json.decode(note.read_bytes(), type=_Note)
        note.unlink()
        info = os.lstat(volume.path)
    except (OSError, msgspec.DecodeError):
        return False
    return target.is_file() and found == _Note(volume.path, info.st_size, info.st_mtime_ns)


def note_end(prepared: Prepared) -> None:
    """Blocking. The machine's process has ended: what its disks are now is what their records speak of."""
    for volume in prepared.volumes:
        if volume.tracking:
            target = Path(volume.tracking)
            with contextlib.suppress(OSError):
                info = os.lstat(volume.path)
                note = _Note(volume.path, info.st_size, info.st_mtime_ns)
                paths.write_file(target.parent, target.with_suffix(".json").name, msgspec.json.encode(note))
