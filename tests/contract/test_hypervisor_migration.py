"""The contract of live migration, run on every driver that offers it: exactly one side has the machine, ever.

Both sides of libvirt are hosts of a `segment`; the machines sit in their firmware.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.segment import Host, segment

from stead.agent.migration_keys import MigrationKeys
from stead.hypervisor.contract import (
    Busy,
    Cpu,
    Disk,
    DriverError,
    Failed,
    Graphics,
    Isolation,
    Machine,
    Memory,
    NotFound,
    State,
    Unsupported,
)
from stead.hypervisor.libvirt.driver import LibvirtHypervisor
from stead.hypervisor.migration import Migrating, Order
from stead.hypervisor.simulated import Script, SimulatedHypervisor

OWNERS = (310001, 310002)
MARK = b"written by the source"
#: with random content, seconds at the bandwidth of the move that is aborted
DISK_BYTES = 16 << 20


class Side:
    """One host: its driver, a folder, and what it takes to be reached."""

    def __init__(self, driver: LibvirtHypervisor | SimulatedHypervisor, folder: Path, host: Host | None) -> None:
        self.driver, self.folder, self.host = driver, folder, host
        self.keys: MigrationKeys | None = None
        if host is not None:
            self.keys = MigrationKeys(host.certificates, folder / "authority", (host.hostname, host.address))
            self.keys.open()

    def machine(self, uid: str, owner: int) -> Machine:
        """The machine as this side has prepared it: own files, own user."""
        place = self.folder / uid[:8]
        place.mkdir(mode=0o711)
        run_dir, disk = place / "run", place / "disk.img"
        run_dir.mkdir(mode=0o700)
        disk.touch(0o600)
        os.truncate(disk, DISK_BYTES)
        for path in (run_dir, disk):
            os.chown(path, owner, owner)
        return Machine(
            uid=uid, namespace="default", name="vm", cpu=Cpu(), memory=Memory(size=64 << 20), run_dir=str(run_dir),
            disks=(Disk(name="root", path=str(disk)),), serial_socket=str(run_dir / "serial.sock"),
            graphics=Graphics(vnc_socket=str(run_dir / "vnc.sock")),
            isolation=Isolation(uid=owner, gid=owner, pids_limit=200), software_emulation=True,
        )  # fmt: skip


class Pair:
    """Source and target, joined."""

    def __init__(self, source: Side, target: Side, peer: str) -> None:
        self.source, self.target, self.peer = source, target, peer
        self.uid = str(uuid.uuid4())
        self.arriving: Machine | None = None

    async def order(self, uid: str) -> Order:
        address = self.target.host.address if self.target.host else "192.0.2.1"
        for side, other, owner in ((self.source, self.target, OWNERS[0]), (self.target, self.source, OWNERS[1])):
            if side.keys is not None and other.keys is not None:
                side.keys.begin(uid, other.keys.authority, owner)
        machine = self.arriving = self.target.machine(uid, OWNERS[1])
        return Order(uid=uid, machine=machine, peer=self.peer, address=address, server_name=address,
                     copied_disks=("root",))  # fmt: skip


@contextlib.asynccontextmanager
async def _simulated(tmp_path: Path) -> AsyncIterator[Pair]:
    sides = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sides.append(Side(SimulatedHypervisor(), tmp_path / name, None))
    yield Pair(sides[0], sides[1], await sides[1].driver.peer_socket())


@contextlib.asynccontextmanager
async def _libvirt(tmp_path: Path) -> AsyncIterator[Pair]:
    async with segment(tmp_path, 2) as (_, hosts), contextlib.AsyncExitStack() as undo:
        sides = []
        for host in hosts:
            driver = LibvirtHypervisor(host.uri)
            await driver.open()
            undo.push_async_callback(driver.close)
            sides.append(Side(driver, host.root, host))
        path = hosts[0].root / "peer.sock"
        pair = Pair(sides[0], sides[1], str(path))

        async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = await asyncio.open_unix_connection(await sides[1].driver.peer_socket())

            assert pair.arriving is not None
            gate = sides[1].driver.peer_gate(pair.arriving)

            async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, gated: bool) -> None:
                with contextlib.suppress(OSError, Unsupported):
                    while data := await source.read(65536):
                        sink.write(gate(data) if gated else data)
                        await sink.drain()
                sink.close()

            await asyncio.gather(carry(reader, there[1], True), carry(there[0], writer, False))

        server = await asyncio.start_unix_server(join, str(path))
        undo.callback(server.close)
        yield pair


@pytest.fixture(params=["simulated", pytest.param("libvirt", marks=[pytest.mark.guest, pytest.mark.timeout(300)])])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    async with {"simulated": _simulated, "libvirt": _libvirt}[request.param](tmp_path) as made:
        yield made


async def test_a_machine_is_on_one_side_at_a_time(pair: Pair) -> None:
    """A move that finds nobody, one that is aborted, and one that succeeds."""
    source, target = pair.source.driver, pair.target.driver
    assert isinstance(source, Migrating)
    assert (await source.capabilities()).live_migration
    uid = pair.uid
    machine = pair.source.machine(uid, OWNERS[0])
    content = MARK + os.urandom(DISK_BYTES - len(MARK))
    Path(machine.disks[0].path).write_bytes(content)
    os.chown(machine.disks[0].path, OWNERS[0], OWNERS[0])
    await source.define(machine)
    await source.start(uid)
    assert await source.migration_progress(uid) is None
    with pytest.raises(Busy):
        await source.start_post_copy(uid)

    order = await pair.order(uid)
    with pytest.raises(DriverError):
        await source.migrate(msgspec.structs.replace(order, peer=f"{pair.peer}-of-nobody"))
    assert (await source.observe(uid)).state is State.RUNNING

    # A bandwidth that would take minutes: it is under way when the end is asked for.
    if isinstance(source, SimulatedHypervisor):
        source.script = Script(delays={"migrate": (0.2, 0.2)})
    work = asyncio.create_task(source.migrate(msgspec.structs.replace(order, bandwidth=1 << 20)))
    while await source.migration_progress(uid) is None and not work.done():
        await asyncio.sleep(0.02)
    while not work.done():
        with contextlib.suppress(DriverError):
            await source.abort_migration(uid)
        await asyncio.wait((work,), timeout=0.1)
    with pytest.raises(Failed):
        await work
    assert (await source.observe(uid)).state is State.RUNNING
    with pytest.raises(NotFound):
        await target.observe(uid)

    await source.migrate(order)
    with pytest.raises(NotFound):
        await source.observe(uid)
    await target.received(order.machine)
    seen = await target.observe(uid)
    assert (seen.state, bool(seen.fingerprint)) == (State.RUNNING, True)
    if pair.target.host is not None:
        assert Path(order.machine.disks[0].path).read_bytes() == content
        owner = os.stat(f"/proc/{seen.pid}").st_uid
        assert owner == OWNERS[1], "it runs under the target's user"


@pytest.mark.guest
@pytest.mark.timeout(300)
async def test_nothing_moves_to_a_host_that_is_not_trusted(tmp_path: Path) -> None:
    """QEMU's TLS is not for show: a target whose authority the source does not believe gets nothing."""
    async with _libvirt(tmp_path) as pair:
        uid = pair.uid
        machine = pair.source.machine(uid, OWNERS[0])
        await pair.source.driver.define(machine)
        await pair.source.driver.start(uid)
        order = await pair.order(uid)
        assert pair.source.keys is not None
        assert pair.target.keys is not None
        pair.source.keys.begin(uid, pair.source.keys.authority, OWNERS[0])
        with pytest.raises(DriverError):
            await pair.source.driver.migrate(order)
        assert (await pair.source.driver.observe(uid)).state is State.RUNNING
        pair.source.keys.end(uid)
        for name in ("server-key.pem", "client-key.pem"):
            found = pair.source.host.certificates / name if pair.source.host else tmp_path
            assert found.stat().st_mode & 0o077 == 0, "no machine may read the keys when none moves"
