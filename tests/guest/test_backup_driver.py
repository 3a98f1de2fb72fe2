"""Frozen views and changed blocks of a real guest that writes all the time: on qcow2, and on raw behind an overlay."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests import guest_image
from tests.backup_world import SECRET, restored
from tests.contract.test_hypervisor import Site, real_site

from stead.hypervisor.contract import (
    BACKUP_BITMAP,
    BackupDisk,
    BackupJob,
    Busy,
    Disk,
    Firmware,
    Machine,
    NotFound,
    State,
)
from stead.storage.backup.points import Point
from stead.storage.backup.repository import Repository
from stead.storage.backup.session import Session
from stead.storage.backup.store import Directory
from stead.storage.nbd import NbdDisk
from stead.storage.overlays import create_empty, create_tracking

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

MIB = 1 << 20
SIZE = 24 * MIB
DISKS = ("one", "two")


class Serial:
    """The guest's shell through the serial socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.text = ""

    async def until(self, wanted: str, seconds: float = 150) -> None:
        start = len(self.text)
        async with asyncio.timeout(seconds):
            while wanted not in self.text[start:]:
                data = await self._reader.read(4096)
                assert data, self.text[-1000:]
                self.text += data.decode(errors="replace")

    async def shell(self, command: str) -> None:
        mark = os.urandom(4).hex()
        self._writer.write(f"\n{command}; echo {mark[:4]}''{mark[4:]}\n".encode())
        await self._writer.drain()
        await self.until(mark, 60)


class Guest:
    """One running guest with two data disks: `one` is qcow2, `two` is raw with its bitmaps beside it."""

    def __init__(self, site: Site, machine: Machine, serial: Serial) -> None:
        self.site, self.machine, self.serial = site, machine, serial
        self.scratch = site.folder / "scratch"
        self.scratch.mkdir(mode=0o711, exist_ok=True)

    @property
    def uid(self) -> str:
        return self.machine.uid

    def job(self, checkpoint: str = "", since: str = "") -> BackupJob:
        disks = tuple(BackupDisk(name=name, scratch=str(self.scratch / f"{name}.qcow2")) for name in DISKS)
        return BackupJob(disks=disks, socket=f"{self.machine.run_dir}/backup.sock", checkpoint=checkpoint, since=since)

    async def back_up(
        self, repository: Repository, number: int, parent: Point | None
    ) -> tuple[Point, dict[str, bytes]]:
        """A point, and the frozen view read whole beside it."""
        job = self.job(f"c{number}", f"c{number - 1}" if parent else "")
        await self.site.driver.begin_backup(self.uid, job)
        try:
            return await asyncio.to_thread(self._pull, repository, job, number, parent)
        finally:
            await self.site.driver.end_backup(self.uid)

    def _pull(
        self, repository: Repository, job: BackupJob, number: int, parent: Point | None
    ) -> tuple[Point, dict[str, bytes]]:
        truth, taken = {}, []
        assert Path(job.socket).stat().st_mode & 0o777 == 0o600
        with Session(repository, "test") as session:
            for name in DISKS:
                base = parent.disk(name).map if parent else ""  # type: ignore[union-attr]  # it is there
                with NbdDisk(Path(job.socket), name, BACKUP_BITMAP if parent else "") as disk:
                    truth[name] = disk.read(0, disk.size_bytes)
                    taken.append(session.add_disk(name, disk.size_bytes, disk, disk.extents(), base))
            point = Point(namespace="ns", machine="vm", time=f"2026-04-01T00:00:{number:02}Z", disks=tuple(taken))
            return session.publish(point), truth


@contextlib.asynccontextmanager
async def running_guest(tmp_path: Path) -> AsyncIterator[Guest]:
    async with real_site(tmp_path) as site:
        machine = await _machine(site)
        await site.driver.define(machine)
        yield Guest(site, machine, await _boot(site, machine))


async def _machine(site: Site) -> Machine:
    for source, target in ((guest_image.kernel_path(), "kernel"), (guest_image.initrd_path(), "initrd")):
        (site.folder / target).write_bytes(source.read_bytes())
        (site.folder / target).chmod(0o644)
    await create_empty(site.folder / "one.qcow2", SIZE)
    (site.folder / "two.raw").write_bytes(random.Random(1).randbytes(SIZE // 4) + bytes(SIZE - SIZE // 4))
    await create_tracking(site.folder / "two.qcow2", site.folder / "two.raw", SIZE)
    firmware = Firmware(
        kernel=str(site.folder / "kernel"), initrd=str(site.folder / "initrd"), cmdline=guest_image.CMDLINE
    )
    disks = (
        Disk(name="one", path=str(site.folder / "one.qcow2"), format="qcow2"),
        Disk(name="two", path=str(site.folder / "two.qcow2"), format="qcow2", data_file=str(site.folder / "two.raw")),
    )
    machine = site.machine(disks=disks, firmware=firmware)
    for path in ("one.qcow2", "two.qcow2", "two.raw"):
        os.chown(site.folder / path, machine.isolation.uid, machine.isolation.gid)
    import msgspec

    return msgspec.structs.replace(machine, memory=msgspec.structs.replace(machine.memory, size=160 * MIB))


async def _boot(site: Site, machine: Machine) -> Serial:
    await site.driver.start(machine.uid)
    reader, writer = await asyncio.open_unix_connection(machine.serial_socket)
    serial = Serial(reader, writer)
    await serial.until("stead-guest: disks")
    await serial.shell("touch /run/quiet; stty -echo")
    return serial


SCRIBBLE = (
    "( i=0; while [ ! -e /run/stop ]; do i=$((i+1)); for d in vda vdb; do"
    " dd if=/dev/urandom of=/dev/$d bs=4096 count=1 seek=$(( (i*7919) % 6000 )) conv=notrunc 2>/dev/null; done;"
    " sync; done ) & true"
)


async def test_every_point_is_the_disk_at_its_moment(tmp_path: Path) -> None:
    """Full, then increments, while the guest writes; then a restart, a killed QEMU, an offline look."""
    increments = int(os.environ.get("STEAD_BACKUP_INCREMENTS", "3"))
    repository = Repository.create(Directory(tmp_path / "repository"), SECRET)
    async with running_guest(tmp_path) as guest:
        driver = guest.site.driver
        assert (guest.site.folder / "two.raw").read_bytes()[: SIZE // 4] == random.Random(1).randbytes(SIZE // 4)
        await guest.serial.shell(SCRIBBLE)
        points: list[tuple[Point, dict[str, bytes]]] = []
        for number in range(increments + 1):
            await asyncio.sleep(0.5)
            parent = points[-1][0] if points else None
            points.append(await guest.back_up(repository, number, parent))
            if parent is not None:
                await driver.delete_checkpoint(guest.uid, f"c{number - 1}")
        for point, truth in points:
            for name in DISKS:
                assert restored(repository, point, name) == truth[name]
        changed = [sum(disk.changed_bytes for disk in point.disks) for point, _ in points]
        assert all(0 < part < changed[0] / 3 for part in changed[1:]), changed
        assert points[0][0].kind == "Full"
        assert points[1][0].kind == "Incremental"

        # What is on disk while nothing runs is what a point of the paused guest says.
        await guest.serial.shell("touch /run/stop; sleep 1; sync")
        await driver.pause(guest.uid)
        last, _ = await guest.back_up(repository, increments + 1, points[-1][0])
        assert restored(repository, last, "two") == (guest.site.folder / "two.raw").read_bytes()
        await driver.resume(guest.uid)

        # A clean stop keeps the bitmaps; the domain is made anew, as with a restart of the machine.
        known = await driver.checkpoints(guest.uid)
        await driver.stop(guest.uid)
        await driver.undefine(guest.uid)
        await driver.define(guest.machine)
        guest.serial = await _boot(guest.site, guest.machine)
        assert await driver.restore_checkpoints(guest.uid, known)
        await guest.serial.shell("dd if=/dev/urandom of=/dev/vda bs=4096 count=1 seek=9 conv=notrunc; sync")
        again, truth = await guest.back_up(repository, increments + 2, last)
        assert {name: restored(repository, again, name) for name in DISKS} == truth
        assert again.disk("one").changed_bytes <= 2 * 65536  # type: ignore[union-attr]  # it is there

        # A killed QEMU leaves bitmaps that nobody may believe.
        known = await driver.checkpoints(guest.uid)
        os.kill((await driver.observe(guest.uid)).pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while (await driver.observe(guest.uid)).state is State.RUNNING:
                await asyncio.sleep(0.1)
        await driver.undefine(guest.uid)
        await driver.define(guest.machine)
        await driver.start(guest.uid)
        assert not await driver.restore_checkpoints(guest.uid, known)
        with pytest.raises(NotFound):
            await driver.begin_backup(guest.uid, guest.job("d1", known[-1].name))
        await driver.begin_backup(guest.uid, guest.job("d1"))
        with pytest.raises(Busy):
            await driver.begin_backup(guest.uid, guest.job("d2"))
        await driver.end_backup(guest.uid)
        await driver.end_backup(guest.uid)
        assert not list(guest.scratch.iterdir())
