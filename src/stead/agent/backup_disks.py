"""The disks of one machine as a backup sees them: frozen ones of a running guest, or the files of one that is off.

Used by `backups.py`, one task a machine. A `View` names disks that can be opened and read by a thread. For a running
guest the view begins with the freeze of its file systems (where its agent answers) and a checkpoint; `finish` keeps the
checkpoint together with the point's name in the machine's persistent folder, `give_up` takes the checkpoint back, so
that what it recorded goes to the one before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

import msgspec
import structlog

from stead.agent import paths, tracking
from stead.agent.machine import Machine
from stead.agent.policy import Call
from stead.agent.prepared import NotReady, Prepared
from stead.agent.workshop import Workshop
from stead.hypervisor.contract import (
    BACKUP_BITMAP,
    BackupDisk,
    BackupJob,
    Backups,
    Busy,
    Checkpoint,
    DriverError,
    NotFound,
)
from stead.kube.errors import ApiError
from stead.storage.backup.keys import BackupError
from stead.storage.backup.points import Point
from stead.storage.backup.session import Extent
from stead.storage.nbd import NbdDisk

log = structlog.get_logger(__name__)

Object = dict[str, Any]

_FILE = "backups.json"
#: the guest thaws by itself after this, whatever happens to us
_FREEZE = "30s"
_BUSY_TRIES = 20


class OpenDisk(Protocol):
    """A disk that is open for reading."""

    size_bytes: int

    def read(self, offset: int, length: int) -> bytes: ...

    def extents(self) -> Iterator[Extent]: ...

    def __enter__(self) -> OpenDisk: ...

    def __exit__(self, *_: Any) -> None: ...


class ViewDisk(msgspec.Struct, frozen=True):
    """One disk: its volume and claim, and where it is: an NBD socket (`export`, perhaps a bitmap) or a raw file."""

    volume: str
    claim: str
    path: str
    export: str = ""
    bitmap: str = ""

    def open(self) -> OpenDisk:
        """Blocking; OSError."""
        if self.export:
            return NbdDisk(Path(self.path), self.export, self.bitmap)
        return RawFile(Path(self.path))


class View(msgspec.Struct, frozen=True):
    """All disks at one moment. `parent` names the point that bitmaps begin at, "" = everything is read."""

    disks: tuple[ViewDisk, ...]
    time: datetime
    quiesced: bool = False
    parent: str = ""
    checkpoint: str = ""


class Chain(msgspec.Struct, frozen=True):
    """The last point in one repository: its checkpoint, its name, and the disks it had (volume → file)."""

    checkpoint: str = ""
    point: str = ""
    disks: dict[str, str] = {}


class _Kept(msgspec.Struct):
    chains: dict[str, Chain] = {}
    checkpoints: tuple[Checkpoint, ...] = ()


class Chains:
    """What is kept of a machine's checkpoints over its restarts. Blocking."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) if folder else None

    @classmethod
    def of(cls, prepared: Prepared | None) -> Chains:
        return cls(prepared.persistent if prepared else "")

    def _kept(self) -> _Kept:
        if self._folder is None:
            return _Kept()
        try:
            return msgspec.json.decode((self._folder / _FILE).read_bytes(), type=_Kept)
        except (OSError, msgspec.DecodeError):
            return _Kept()

    def read(self, repository: str) -> Chain:
        return self._kept().chains.get(repository, Chain())

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return self._kept().checkpoints

    def names(self) -> set[str]:
        """Checkpoints that some repository's chain goes on from."""
        return {chain.checkpoint for chain in self._kept().chains.values()}

    def write(self, repository: str, chain: Chain, checkpoints: tuple[Checkpoint, ...]) -> None:
        if self._folder is None:
            return
        kept = _Kept({**self._kept().chains, repository: chain}, checkpoints)
        paths.write_file(self._folder, _FILE, msgspec.json.encode(kept))

    def write_checkpoints(self, checkpoints: tuple[Checkpoint, ...]) -> None:
        if self._folder is not None:
            paths.write_file(self._folder, _FILE, msgspec.json.encode(_Kept(self._kept().chains, checkpoints)))


class LiveDisks:
    """Disks of a running machine. `begin`, then `finish` or `give_up`."""

    def __init__(self, machine: Machine, chains: Chains, chain: Chain, checkpoint: str) -> None:
        if machine.prepared is None:
            raise NotReady("MachineStarting", f"machine {machine.title} is not ready")
        self._machine, self._prepared, self._chains, self._chain = machine, machine.prepared, chains, chain
        driver = machine.shop.hypervisor
        if not hasattr(driver, "begin_backup"):
            raise BackupError("Invalid", "this host's hypervisor driver offers no backups of running machines")
        self._driver = cast(Backups, driver)
        self._volumes = tuple(v for v in self._prepared.volumes if tracking.is_eligible(v))
        if not self._volumes:
            raise BackupError("Invalid", f"machine {machine.title} has no volumes to back up")
        tracked = bool(self._prepared.persistent) and all(v.tracking or v.format == "qcow2" for v in self._volumes)
        self._checkpoint = checkpoint if tracked else ""
        self._files = {volume.name: volume.path for volume in self._volumes}

    async def begin(self, quiesce: bool) -> View:
        """DriverError, BackupError."""
        since = await self._since()
        frozen = quiesce and await self._freeze()
        try:
            time = datetime.now(UTC)
            try:
                await self._start(since)
            except NotFound:
                if not since:
                    raise
                log.warning("changed blocks are not known any more: a full backup", machine=self._machine.title)
                since = ""
                await self._start("")
        finally:
            if frozen:
                with contextlib.suppress(ApiError):
                    await self._machine.call(Call.UNFREEZE, {})
        socket, bitmap = self._job("").socket, BACKUP_BITMAP if since else ""
        disks = tuple(ViewDisk(v.name, v.claim, socket, v.name, bitmap) for v in self._volumes)
        return View(disks, time, frozen, self._chain.point if since else "", self._checkpoint)

    async def _since(self) -> str:
        """The checkpoint to go on from; "" for a full backup."""
        if not self._checkpoint or not self._chain.checkpoint or self._chain.disks != self._files:
            return ""
        uid = self._machine.uid
        known = {checkpoint.name for checkpoint in await self._driver.checkpoints(uid)}
        if self._chain.checkpoint not in known:
            kept = await asyncio.to_thread(self._chains.checkpoints)
            if not await self._driver.restore_checkpoints(uid, kept):
                return ""
        return self._chain.checkpoint

    async def _freeze(self) -> bool:
        """Whether the guest has frozen its file systems. One that cannot is backed up as if its power had failed."""
        try:
            await self._machine.call(Call.FREEZE, {"unfreezeTimeout": _FREEZE})
        except ApiError as error:
            log.info("the guest is not quiesced", machine=self._machine.title, why=error.message)
            return False
        return True

    def _job(self, since: str) -> BackupJob:
        folder = Path(self._prepared.directory)
        disks = tuple(BackupDisk(name=v.name, scratch=str(folder / f"backup-{v.name}.qcow2")) for v in self._volumes)
        socket = f"{self._prepared.run_dir}/backup.sock"
        return BackupJob(disks=disks, socket=socket, checkpoint=self._checkpoint, since=since)

    async def _start(self, since: str) -> None:
        for attempt in range(_BUSY_TRIES):
            try:
                await self._driver.begin_backup(self._machine.uid, self._job(since))
                return
            except Busy:  # another job, or what a killed agent has left
                if attempt == _BUSY_TRIES - 1:
                    raise
                if attempt == 0:
                    await self._driver.end_backup(self._machine.uid)
                await asyncio.sleep(0.5)

    async def give_up(self) -> None:
        """Let go of the view and take the checkpoint back."""
        uid = self._machine.uid
        with contextlib.suppress(DriverError):
            await self._driver.end_backup(uid)
            if self._checkpoint:
                await self._driver.delete_checkpoint(uid, self._checkpoint)

    async def finish(self, repository: str, point: Point) -> None:
        """Let go of the view; remember the point; let go of checkpoints that nobody goes on from."""
        uid = self._machine.uid
        try:
            await self._driver.end_backup(uid)
            if not self._checkpoint:
                return
            chain = Chain(self._checkpoint, point.name, self._files)
            await asyncio.to_thread(self._chains.write, repository, chain, await self._driver.checkpoints(uid))
            needed = await asyncio.to_thread(self._chains.names)
            for old in await self._driver.checkpoints(uid):
                if old.name.startswith("stead-") and old.name not in needed:
                    await self._driver.delete_checkpoint(uid, old.name)
            await asyncio.to_thread(self._chains.write_checkpoints, await self._driver.checkpoints(uid))
        except DriverError as error:
            log.warning("old checkpoints are still there", machine=self._machine.title, error=str(error))


class OfflineDisks:
    """Disks of a machine that is off, kept from being started while they are read."""

    def __init__(self, shop: Workshop, namespace: str, name: str, manifests: tuple[Object, ...]) -> None:
        self._shop, self._namespace, self._name, self._manifests = shop, namespace, name, manifests
        self._holder = f"backup of {namespace}/{name}"

    async def __aenter__(self) -> View:
        volumes = _claims_of(self._manifests)
        if not volumes:
            raise BackupError("Invalid", f"machine {self._namespace}/{self._name} has no volumes to back up")
        try:
            disks = tuple([await self._take(volume, claim) for volume, claim in volumes])
        except BaseException:
            self._shop.disks_in_use.free(self._holder)
            raise
        return View(disks, datetime.now(UTC), True)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._shop.disks_in_use.free(self._holder)

    async def _take(self, volume: str, claim: str) -> ViewDisk:
        pvc = await self._shop.lookups.claim(self._namespace, claim)
        handle = await self._shop.lookups.volume_handle(pvc)
        pool, _, uid = handle.partition("/")
        try:
            file = await self._shop.disks.volume(pool, uid)
        except (LookupError, OSError) as error:
            raise NotReady("FailedMount", f"volume of claim {claim} is not on this host: {error}") from error
        if file.format != "raw":
            text = (
                f"claim {claim} is kept as {file.format}: it is backed up while its machine runs, not while it is off"
            )
            raise BackupError("Invalid", text)
        self._shop.disks_in_use.take(self._holder, file.path, shared=False)
        return ViewDisk(volume, claim, file.path)


def _claims_of(manifests: tuple[Object, ...]) -> list[tuple[str, str]]:
    """(volume, claim) of a machine's manifest."""
    found = []
    for manifest in manifests:
        if manifest.get("kind") != "VirtualMachine":
            continue
        template = ((manifest.get("spec") or {}).get("template") or {}).get("spec") or {}
        for volume in template.get("volumes") or []:
            source = volume.get("persistentVolumeClaim") or {}
            claim = source.get("claimName") or (volume.get("dataVolume") or {}).get("name")
            if claim and not source.get("readOnly"):
                found.append((str(volume["name"]), str(claim)))
    return found


class RawFile:
    """A raw disk's file, whose holes are known to be zeros. Blocking; OSError."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> RawFile:
        return self

    def __exit__(self, *_: Any) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        while length > 0:
            part = os.pread(self._fd, length, offset)
            if not part:
                raise OSError(f"the disk ends at byte {offset}")
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def extents(self) -> Iterator[Extent]:
        at = 0
        while at < self.size_bytes:
            try:
                data = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                data = self.size_bytes
            if data > at:
                yield Extent(at, data - at, True)
            if data >= self.size_bytes:
                return
            at = os.lseek(self._fd, data, os.SEEK_HOLE)
            yield Extent(data, at - data)
