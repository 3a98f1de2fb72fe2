"""The contract of a hypervisor driver, run on both; then what only real machines can prove: faults and isolation.

The machines have no disk but an empty one and sit in their firmware: every state that the contract speaks of is
reached without a guest. (Guests are booted by `tests/guest`.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from tests.libvirt_host import LibvirtHost, libvirt_host

from stead.hypervisor.contract import (
    Busy,
    Cpu,
    Disk,
    DriverEvent,
    Failed,
    Firmware,
    Graphics,
    Hypervisor,
    Isolation,
    Machine,
    Memory,
    NotFound,
    Observed,
    State,
    StopReason,
    Unsupported,
)
from stead.hypervisor.libvirt.driver import LibvirtHypervisor
from stead.hypervisor.simulated import Script, SimulatedHypervisor

MAKE = Callable[..., Machine]
UID = 310001
SECONDS = 60.0


class Site:
    """A driver under test, with a folder that its machines' processes can reach."""

    def __init__(self, driver: Hypervisor, folder: Path, host: LibvirtHost | None) -> None:
        self.driver, self.folder, self.host = driver, folder, host

    def machine(self, name: str = "vm", owner: int = UID, **more: object) -> Machine:
        """A small machine with one empty disk, its files owned by `owner`."""
        uid = str(uuid.uuid4())
        run_dir = self.folder / uid[:8]
        run_dir.mkdir(mode=0o700)
        disk = self.folder / f"{uid[:8]}.img"
        disk.touch(0o600)
        os.truncate(disk, 1 << 20)
        if os.geteuid() == 0:
            os.chown(run_dir, owner, owner)
            os.chown(disk, owner, owner)
        values: dict[str, object] = {
            "cpu": Cpu(),
            "memory": Memory(size=64 << 20),
            "run_dir": str(run_dir),
            "disks": (Disk(name="root", path=str(disk)),),
            "serial_socket": str(run_dir / "serial.sock"),
            "graphics": Graphics(vnc_socket=str(run_dir / "vnc.sock")),
            "isolation": Isolation(uid=owner, gid=owner, memory_limit=512 << 20, pids_limit=200, cpu_shares=512),
            "software_emulation": True,
            **more,
        }
        return Machine(uid=uid, namespace="default", name=name, **values)  # type: ignore[arg-type]  # by name


@pytest.fixture(params=["simulated", pytest.param("libvirt", marks=pytest.mark.guest)])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    if request.param == "simulated":
        yield Site(SimulatedHypervisor(), tmp_path, None)
        return
    async with real_site(tmp_path) as made:
        yield made


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Site]:
    async with real_site(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def real_site(tmp_path: Path) -> AsyncIterator[Site]:
    async with libvirt_host(tmp_path) as host:
        driver = LibvirtHypervisor(host.uri)
        await driver.open()
        try:
            yield Site(driver, host.root, host)
        finally:
            await driver.close()


async def running(site: Site, **more: object) -> Machine:
    machine = site.machine(**more)  # type: ignore[arg-type]  # by name
    await site.driver.define(machine)
    await site.driver.start(machine.uid)
    return machine


async def until_state(driver: Hypervisor, uid: str, state: State) -> Observed:
    async with asyncio.timeout(SECONDS):
        while (seen := await driver.observe(uid)).state is not state:
            await asyncio.sleep(0.05)
    return seen


class Recorder:
    """All events since it was made."""

    def __init__(self, driver: Hypervisor) -> None:
        self.events: list[DriverEvent] = []
        self._stream = driver.events()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self._stream:
            self.events.append(event)

    async def until(self, uid: str, kind: str, detail: str = "") -> None:
        async with asyncio.timeout(SECONDS):
            while not any(e.uid == uid and e.kind == kind and detail in e.detail for e in self.events):
                await asyncio.sleep(0.02)

    def close(self) -> None:
        self._task.cancel()


# -- the contract -----------------------------------------------------------------------------------------------------


async def test_a_machine_lives_through_its_states(site: Site) -> None:
    driver = site.driver
    recorder = Recorder(driver)
    machine = site.machine()
    with pytest.raises(NotFound):
        await driver.observe(machine.uid)
    with pytest.raises(NotFound):
        await driver.start(machine.uid)
    await driver.stop(machine.uid)
    await driver.undefine(machine.uid)

    await driver.define(machine)
    defined = await driver.observe(machine.uid)
    assert (defined.state, defined.pid, defined.namespace, defined.name) == (State.OFF, 0, "default", "vm")
    await driver.define(machine)
    assert (await driver.observe(machine.uid)).fingerprint == defined.fingerprint != ""

    await driver.start(machine.uid)
    seen = await driver.observe(machine.uid)
    assert seen.state is State.RUNNING
    assert seen.pid > 0
    assert seen.fingerprint == defined.fingerprint
    with pytest.raises(Busy):
        await driver.start(machine.uid)
    with pytest.raises(Busy):
        await driver.define(msgspec.structs.replace(machine, rng=True))
    with pytest.raises(Busy):
        await driver.undefine(machine.uid)

    await driver.pause(machine.uid)
    paused = await driver.observe(machine.uid)
    assert (paused.state, paused.reason) == (State.PAUSED, StopReason.USER)
    await driver.resume(machine.uid)
    await driver.resume(machine.uid)
    assert (await driver.observe(machine.uid)).state is State.RUNNING
    await driver.reset(machine.uid)
    assert (await driver.observe(machine.uid)).pid == seen.pid, "a reset keeps the process"

    await driver.stop(machine.uid)
    stopped = await driver.observe(machine.uid)
    assert (stopped.state, stopped.reason, stopped.pid) == (State.OFF, StopReason.DESTROYED, 0)
    await driver.stop(machine.uid)
    with pytest.raises(Busy):
        await driver.pause(machine.uid)
    await recorder.until(machine.uid, "lifecycle", "started")
    await recorder.until(machine.uid, "lifecycle", "stopped: destroyed")
    recorder.close()

    assert [each.uid for each in await driver.list()] == [machine.uid]
    await driver.undefine(machine.uid)
    assert await driver.list() == []


async def test_a_start_may_be_paused(site: Site) -> None:
    machine = site.machine()
    await site.driver.define(machine)
    await site.driver.start(machine.uid, paused=True)
    seen = await site.driver.observe(machine.uid)
    assert (seen.state, seen.reason) == (State.PAUSED, StopReason.USER)
    await site.driver.resume(machine.uid)
    assert (await site.driver.observe(machine.uid)).state is State.RUNNING
    await site.driver.stop(machine.uid)


async def test_a_running_machine_can_be_looked_into(site: Site) -> None:
    machine = await running(site, guest_agent=False)
    statistics = await site.driver.statistics(machine.uid)
    assert statistics["memory_rss_bytes"] > 0
    assert "block.root.rd_bytes" in statistics
    assert "cpu_time_ns" in statistics
    assert (await site.driver.screenshot(machine.uid)).startswith(b"\x89PNG")
    assert machine.uid in await site.driver.describe(machine.uid)
    with pytest.raises((Busy, Unsupported)):
        await site.driver.agent_command(machine.uid, "guest-ping")
    capabilities = await site.driver.capabilities()
    assert capabilities.software_emulation == bool(capabilities.software_emulation_reason)
    await site.driver.stop(machine.uid)


# -- the simulated driver's script ------------------------------------------------------------------------------------


async def test_scripted_failures_come_when_told() -> None:
    driver = SimulatedHypervisor(Script(failures={"start": (1,)}, shutdown_seconds=0.0, agent_seconds=0.0))
    machine = Machine(
        uid=str(uuid.uuid4()), namespace="d", name="n", cpu=Cpu(), memory=Memory(size=1), run_dir="/nowhere"
    )
    recorder = Recorder(driver)
    await driver.define(machine)
    with pytest.raises(Failed, match="scripted"):
        await driver.start(machine.uid)
    assert (await driver.observe(machine.uid)).state is State.OFF
    await driver.start(machine.uid)
    await recorder.until(machine.uid, "agent", "connected")
    await driver.shutdown(machine.uid)
    assert (await until_state(driver, machine.uid, State.OFF)).reason is StopReason.SHUTDOWN
    await driver.start(machine.uid)
    driver.crash(machine.uid)
    assert (await driver.observe(machine.uid)).state is State.CRASHED
    driver.change_out_of_band(machine.uid)
    assert (await driver.observe(machine.uid)).fingerprint == ""
    recorder.close()


# -- faults of the real thing -----------------------------------------------------------------------------------------


@pytest.mark.guest
async def test_killing_libvirtd_disturbs_no_machine(real: Site) -> None:
    assert real.host is not None
    machine = await running(real)
    pid = (await real.driver.observe(machine.uid)).pid
    recorder = Recorder(real.driver)
    await real.host.kill_libvirtd()
    await recorder.until("", "lost")
    os.kill(pid, 0)
    await real.host.start_libvirtd()
    await recorder.until("", "lost", "again")
    seen = await real.driver.observe(machine.uid)
    assert (seen.state, seen.pid) == (State.RUNNING, pid)
    assert seen.fingerprint
    await real.driver.pause(machine.uid)
    await recorder.until(machine.uid, "lifecycle", "suspended")
    await real.driver.stop(machine.uid)
    recorder.close()


@pytest.mark.guest
async def test_a_killed_machine_is_seen_as_crashed_and_a_hung_one_stops(real: Site) -> None:
    recorder = Recorder(real.driver)
    machine = await running(real)
    os.kill((await real.driver.observe(machine.uid)).pid, signal.SIGKILL)
    await recorder.until(machine.uid, "lifecycle", "stopped: crashed")
    seen = await real.driver.observe(machine.uid)
    assert (seen.state, seen.reason, seen.pid) == (State.CRASHED, StopReason.CRASHED, 0)

    await real.driver.start(machine.uid)
    pid = (await real.driver.observe(machine.uid)).pid
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(SECONDS):
        await real.driver.stop(machine.uid)
    assert not Path(f"/proc/{pid}").exists()
    assert (await real.driver.observe(machine.uid)).pid == 0
    recorder.close()


@pytest.mark.guest
async def test_changes_by_virsh_are_noticed_and_foreign_domains_left_alone(real: Site) -> None:
    assert real.host is not None
    foreign = real.folder / "foreign.xml"
    foreign.write_text(
        f"<domain type='qemu'><name>theirs</name><uuid>{(theirs := uuid.uuid4())}</uuid>"
        "<memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>"
    )
    await real.host.virsh("define", str(foreign))
    assert await real.driver.list() == []
    for operation in (real.driver.start, real.driver.observe, real.driver.describe):
        with pytest.raises(NotFound):
            await operation(str(theirs))
    await real.driver.stop(str(theirs))
    await real.driver.undefine(str(theirs))
    assert "theirs" in await real.host.virsh("list", "--all", "--name")

    recorder = Recorder(real.driver)
    machine = real.machine()
    await real.driver.define(machine)
    assert "default_vm" in await real.host.virsh("list", "--all", "--name")
    before = await real.driver.observe(machine.uid)
    await real.host.virsh("autostart", "default_vm")
    assert (await real.driver.observe(machine.uid)).fingerprint == before.fingerprint
    edited = real.folder / "edited.xml"
    edited.write_text((await real.driver.describe(machine.uid)).replace("<on_crash>destroy", "<on_crash>restart"))
    await real.host.virsh("define", str(edited))
    await recorder.until(machine.uid, "changed")
    assert (await real.driver.observe(machine.uid)).fingerprint == ""
    await real.driver.define(machine)
    await real.host.virsh("memtune", "default_vm", "--hard-limit", "500000", "--config")  # makes no event
    assert (await real.driver.observe(machine.uid)).fingerprint == ""
    await real.driver.define(machine)
    assert (await real.driver.observe(machine.uid)).fingerprint == before.fingerprint

    await real.host.virsh("start", "default_vm")
    await recorder.until(machine.uid, "lifecycle", "started")
    await real.host.virsh("destroy", "default_vm")
    await recorder.until(machine.uid, "lifecycle", "stopped: destroyed")
    await real.host.virsh("undefine", "default_vm")
    await recorder.until(machine.uid, "changed", "undefined")
    with pytest.raises(NotFound):
        await real.driver.observe(machine.uid)
    recorder.close()


@pytest.mark.guest
async def test_steads_on_one_libvirt_do_not_see_each_others_machines(real: Site) -> None:
    """Each has the same machine by name; one neither lists, names in events, stops nor undefines the other's."""
    assert real.host is not None
    one, two = (LibvirtHypervisor(real.host.uri, instance=name) for name in ("stead", "two"))
    await one.open()
    await two.open()
    first, second = real.machine(), real.machine(metadata={"instance": "two"})
    recorder = Recorder(two)
    try:
        await one.define(first)  # without a word whose it is: the usual instance's
        await two.define(second)
        await one.start(first.uid)
        await two.start(second.uid)
        assert {"default_vm", "two_default_vm"} <= set((await real.host.virsh("list", "--name")).split())
        assert [seen.uid for seen in await one.list()] == [first.uid]
        assert [seen.uid for seen in await two.list()] == [second.uid]
        for operation in (two.observe, two.reset, two.pause, two.describe):
            with pytest.raises(NotFound):
                await operation(first.uid)
        await two.stop(first.uid)
        await two.undefine(first.uid)
        with pytest.raises(Failed, match="not ours"):
            await two.define(msgspec.structs.replace(first, metadata={"instance": "two"}))
        assert (await one.observe(first.uid)).state is State.RUNNING
        await one.stop(first.uid)
        await two.stop(second.uid)
        await recorder.until(second.uid, "lifecycle", "stopped")
        assert {event.uid for event in recorder.events} <= {second.uid, ""}
        await one.undefine(first.uid)
        await two.undefine(second.uid)
    finally:
        recorder.close()
        await one.close()
        await two.close()


@pytest.mark.guest
async def test_a_start_that_fails_leaves_nothing(real: Site) -> None:
    missing = Disk(name="gone", path=str(real.folder / "no-such.img"))
    machine = real.machine(disks=(missing,))
    await real.driver.define(machine)
    with pytest.raises(Failed, match=r"no-such\.img"):
        await real.driver.start(machine.uid)
    assert (await real.driver.observe(machine.uid)).state is State.OFF
    assert os.listdir(machine.run_dir) == []
    with pytest.raises(Unsupported) as refused:
        await real.driver.define(msgspec.structs.replace(machine, uid=str(uuid.uuid4()), architecture="s390x"))
    assert refused.value.field == "architecture"


@pytest.mark.guest
async def test_uefi_variables_belong_to_the_machine(real: Site) -> None:
    nvram = real.folder / "nvram.fd"
    machine = await running(real, firmware=Firmware(kind="efi", nvram=str(nvram)))
    assert (nvram.stat().st_uid, nvram.stat().st_mode & 0o777) == (UID, 0o600)
    await real.driver.stop(machine.uid)
    await real.driver.undefine(machine.uid)
    assert nvram.exists()


@pytest.mark.guest
async def test_hardware_changes_in_place(real: Site) -> None:
    machine = await running(
        real, cpu=Cpu(sockets=1, max_sockets=2), memory=Memory(size=128 << 20, maximum=256 << 20), pci_placeholders=2
    )
    more = real.folder / "more.img"
    more.touch(0o600)
    os.truncate(more, 1 << 20)
    os.chown(more, UID, UID)
    wanted = msgspec.structs.replace(
        machine,
        cpu=msgspec.structs.replace(machine.cpu, sockets=2),
        memory=msgspec.structs.replace(machine.memory, size=192 << 20),
        disks=(*machine.disks, Disk(name="more", path=str(more), bus="scsi", serial="more")),
    )
    assert await real.driver.apply(msgspec.structs.replace(machine, rng=True)) == ["rng"]
    without_scsi = msgspec.structs.replace(wanted, disks=(*machine.disks, Disk(name="more", path=str(more))))
    assert await real.driver.apply(without_scsi) == []
    assert "block.more.rd_bytes" in await real.driver.statistics(machine.uid)
    described = await real.driver.describe(machine.uid)
    assert "current='2'" in described or "<vcpu placement='static'>2</vcpu>" in described
    await real.driver.stop(machine.uid)


# -- isolation --------------------------------------------------------------------------------------------------------


@pytest.mark.guest
async def test_one_machine_cannot_reach_into_another(real: Site) -> None:
    one, two = await running(real, name="one", owner=UID), await running(real, name="two", owner=UID + 1)
    pids = [(await real.driver.observe(machine.uid)).pid for machine in (one, two)]
    for pid, owner in zip(pids, (UID, UID + 1), strict=True):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert status["Uid"].split() == [str(owner)] * 4
        assert status["Seccomp"] == "2"
        assert status["CapEff"].strip("0") == ""
        assert status["NoNewPrivs"] == "1"
    for path, kind in ((two.disks[0].path, "-f"), (two.serial_socket, "-S"), (f"/proc/{pids[1]}/mem", "-f")):
        assert _as_user(UID + 1, "test", kind, path) or kind == "-S", "the control: its owner sees it"
        assert not _as_user(UID, "dd", f"if={path}", "of=/dev/null", "bs=1", "count=1"), f"{path} was opened"
    assert not _as_user(UID, "kill", "-0", str(pids[1])), "one machine can signal the other"
    assert _as_user(UID, "dd", f"if={one.disks[0].path}", "of=/dev/null", "bs=1", "count=1"), "the control"
    for path in (one.serial_socket, one.graphics.vnc_socket if one.graphics else ""):
        assert Path(path).stat().st_mode & 0o777 == 0o600
    async with asyncio.timeout(SECONDS):
        while _limits(pids[0]) != {"memory": str(512 << 20), "pids": "200"}:
            await asyncio.sleep(0.05)
    for machine in (one, two):
        await real.driver.stop(machine.uid)


def _as_user(uid: int, *command: str) -> bool:
    """Whether a command succeeds as that user."""
    done = subprocess.run(
        ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command], capture_output=True, check=False
    )
    return done.returncode == 0


def _limits(pid: int) -> dict[str, str]:
    """Memory and task limits of the process's cgroups, of either version."""
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller, file in (("memory", "memory.limit_in_bytes"), ("pids", "pids.max")):
            if controller in controllers.split(","):
                found[controller] = Path("/sys/fs/cgroup", controller, path.lstrip("/"), file).read_text().strip()
        if not controllers:
            for folder in [Path(path), *Path(path).parents]:
                for controller, file in (("memory", "memory.max"), ("pids", "pids.max")):
                    limit = Path("/sys/fs/cgroup", str(folder).lstrip("/"), file)
                    if controller not in found and limit.exists() and limit.read_text().strip() != "max":
                        found[controller] = limit.read_text().strip()
    return found
