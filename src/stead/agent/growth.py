"""Tells a running guest that a disk of its has grown: its volume was made larger while it ran.

One `Growth` belongs to one `Machine` and is touched on the loop only; calls of the hypervisor happen in the machine's
task. What a crash of the agent interrupted is found again when the machine is adopted: its file is then larger than
what the record says. A machine that does not run needs nothing; it reads the size when it starts.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import msgspec
import structlog

from stead.agent.prepared import PreparedVolume
from stead.hypervisor.contract import DriverError, Unsupported
from stead.kube.quantity import quantity_from_bytes

if TYPE_CHECKING:
    from stead.agent.machine import Machine

log = structlog.get_logger(__name__)


class Growth:
    """Sizes that a guest has not been told yet, by volume name."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._due: dict[str, int] = {}
        self._compared = False

    def _volumes(self) -> tuple[PreparedVolume, ...]:
        return self._machine.prepared.volumes if self._machine.prepared else ()

    def note(self, path: str, size_bytes: int) -> None:
        """A volume's file at `path` has `size_bytes` now; of no interest unless it is a disk of this machine."""
        found = [volume for volume in self._volumes() if volume.path == path and size_bytes > volume.size]
        if found:
            self._due.update({volume.name: size_bytes for volume in found})
            self._machine.wake()

    async def tell(self) -> None:
        """Tell the running guest, then the record. What fails is tried again with the next turn."""
        machine = self._machine
        if not machine.alive or machine.startup.starting:
            return
        if not self._compared:
            self._compared = True
            await self._compare()
        for name, size in list(self._due.items()):
            try:
                await machine.shop.hypervisor.resize_disk(machine.uid, name, size)
            except Unsupported as error:
                log.warning("a grown disk shows its size only after a restart", machine=machine.title, error=str(error))
            except DriverError as error:
                log.warning("the guest was not told yet of its grown disk", machine=machine.title, error=str(error))
                continue
            else:
                await self._record(name, size)
            del self._due[name]

    async def _compare(self) -> None:
        """What grew while no agent ran, or between the preparing and the start."""
        for volume in self._volumes():
            if volume.claim and volume.kind != "ephemeral" and volume.format == "raw" and volume.source == "file":
                size = await asyncio.to_thread(_length, volume.path)
                if 0 < volume.size < size:
                    self._due[volume.name] = size

    async def _record(self, name: str, size: int) -> None:
        machine = self._machine
        if machine.prepared is None:
            return
        volumes = tuple(_grown(volume, name, size) for volume in machine.prepared.volumes)
        machine.prepared = msgspec.structs.replace(machine.prepared, volumes=volumes)
        records = machine.shop.records
        record = await asyncio.to_thread(records.read, machine.uid)
        if record is not None:
            await asyncio.to_thread(records.write, msgspec.structs.replace(record, prepared=machine.prepared))


def _grown(volume: PreparedVolume, name: str, size: int) -> PreparedVolume:
    if volume.name != name:
        return volume
    capacity = str(quantity_from_bytes(size)) if volume.capacity else ""
    return msgspec.structs.replace(volume, size=size, capacity=capacity)


def _length(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
