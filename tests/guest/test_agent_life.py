"""A real guest's life under the agent: boot, console, pause, reboot, restarts of agent and libvirtd, graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.agent_host import Site, agent_host, condition

from stead.client.contract import Object

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with agent_host(tmp_path) as site:
        yield site


def is_paused(vmi: Object) -> bool:
    return condition(vmi, "Paused") is not None


async def test_boot_console_calls_restarts_and_a_graceful_end(site: Site) -> None:
    await site.create()
    vmi = await site.running()
    pid = site.pid(vmi)
    console = await site.console()
    await console.until("stead-guest: hostname web")
    await console.until("stead-guest: address 10.0.2.2")

    await site.until(lambda v: condition(v, "AgentConnected") is not None)
    vmi = await site.until(lambda v: (v["status"].get("guestOSInfo") or {}).get("id") == "steadguest")
    interface = vmi["status"]["interfaces"][0]
    assert interface["ipAddress"].startswith("10.128.0.")
    assert interface["infoSource"] == "domain, guest-agent"
    assert condition(vmi, "Ready")["status"] == "True"
    status, info = await site.call("guestosinfo", "get")
    assert (status, info["hostname"]) == (200, "web")

    # a port of the guest, through the agent
    assert site.session is not None
    async with site.session.ws_connect(f"{site.base('web')}/portforward/7/tcp") as ws:
        await ws.send_bytes(b"echo me\n")
        assert (await asyncio.wait_for(ws.receive(), 20)).data == b"echo me\n"

    # the newest console takes over, the one before is told
    newer = await site.console()
    assert "newer" in await console.closed()
    assert "Linux" in await newer.shell("uname -s")

    # a pause stops the guest's clock
    assert (await site.call("pause"))[0] == 200
    await site.until(is_paused)
    await asyncio.sleep(0.5)
    length = len(newer.text)
    await asyncio.sleep(3)
    assert "tick" not in newer.text[length:]
    assert (await site.call("unpause"))[0] == 200
    await newer.until("tick", 20, start=length)

    # a soft reboot keeps process and instance
    length = len(newer.text)
    assert (await site.call("softreboot"))[0] == 200
    await newer.until("stead-guest: ready", start=length)
    assert site.pid(await site.get()) == pid

    # a new agent adopts, a killed libvirtd comes back: same process, true status
    await site.restart_agent()
    await site.until(lambda v: v["metadata"]["uid"] in site.agent.machines and site.pid(v) == pid, seconds=20)
    await site.host.kill_libvirtd()
    await asyncio.sleep(1)
    await site.host.start_libvirtd()
    assert (await site.get())["status"]["phase"] == "Running"
    newest = await site.console()
    await newest.until("tick", 30)
    await site.until(lambda v: condition(v, "AgentConnected") is not None, seconds=60)
    assert site.pid(await site.get()) == pid
    assert (await site.call("pause"))[0] == 200
    await site.until(is_paused, seconds=5)
    assert (await site.call("unpause"))[0] == 200

    # a graceful end: the guest hears the power button, nothing is left
    await site.delete()
    await newest.until("stead-guest: poweroff", 30)
    await site.gone()
    assert not Path(f"/proc/{pid}").exists()
    assert (await site.host.virsh("list", "--all", "--name")).strip() == ""
    assert await site.network.list() == set()
    assert list((site.folder / "machines").iterdir()) == []
    site.client.assert_untouched()


async def test_ends_pauses_and_faults_of_real_guests(site: Site) -> None:
    """Guests in a row on one host: paused start, power-off, crash, destruction by hand, a hung process, a bad field."""
    # a paused start shows nothing until it is unpaused; the guest's own power-off is a success
    await site.create("quiet", startStrategy="Paused")
    await site.until(is_paused, "quiet")
    console = await site.console("quiet")
    await asyncio.sleep(1)
    assert console.text == ""
    assert (await site.call("unpause", name="quiet"))[0] == 200
    await console.until("stead-guest: hostname")
    await console.ws.send_bytes(b"\npoweroff -f\n")
    vmi = await site.until(lambda v: v["status"]["phase"] in ("Succeeded", "Failed"), "quiet")
    assert vmi["status"]["phase"] == "Succeeded"
    await site.delete("quiet")
    await site.gone("quiet")

    # QEMU dies: the instance has failed, and says so
    vmi = await site.create("crashing")
    await site.running("crashing")
    os.kill(site.pid(vmi), signal.SIGKILL)
    vmi = await site.until(lambda v: v["status"]["phase"] == "Failed", "crashing", seconds=10)
    ready = condition(vmi, "Ready")
    assert ready is not None
    assert ready["reason"] == "GuestNotRunning"

    # `virsh start` on an ended instance is undone with an event; `virsh destroy` is a failure with an event
    vmi = await site.create("taken", devices={"interfaces": []}, networks=[])
    await site.running("taken")
    domain = f"{site.instance}_ns_taken"
    await site.host.virsh("destroy", domain)
    vmi = await site.until(lambda v: v["status"]["phase"] == "Failed", "taken", seconds=10)
    assert vmi["status"]["reason"] == "StoppedOutOfBand"
    with contextlib.suppress(AssertionError):  # it may be stopped before virsh has seen it start
        await site.host.virsh("start", domain)
    async with asyncio.timeout(20):
        while "running" in await site.host.virsh("domstate", domain):
            await asyncio.sleep(0.2)
    async with asyncio.timeout(10):
        while not any(e["reason"] == "StartedOutOfBand" for e in site.client.of("events")):
            await asyncio.sleep(0.1)

    # a process that cannot react does not hold up a deletion
    vmi = await site.create("hung", terminationGracePeriodSeconds=2)
    await site.running("hung")
    pid = site.pid(vmi)
    os.kill(pid, signal.SIGSTOP)
    await site.delete("hung")
    await site.gone("hung", seconds=7)
    assert not Path(f"/proc/{pid}").exists()

    for name in ("crashing", "taken"):
        await site.delete(name)
        await site.gone(name)
    assert (await site.host.virsh("list", "--all", "--name")).strip() == ""
    assert list((site.folder / "machines").iterdir()) == []


async def test_a_full_disk_halts_the_guest_until_space_returns(tmp_path: Path) -> None:
    async with agent_host(tmp_path, pool_bytes=160 << 20) as site:
        path = await site.add_claim("data", 256 << 20)
        filler = site.pool.path / "filler"
        filler.write_bytes(bytes(120 << 20))
        disks = [{"name": "root", "disk": {"bus": "virtio"}}, {"name": "data", "disk": {"bus": "virtio"}}]
        volumes = [
            {"name": "root", "containerDisk": {"image": "registry.test/guest:1"}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        ]
        await site.create(devices={"disks": disks}, volumes=volumes)
        await site.running()
        assert path.stat().st_uid >= 400_000
        console = await site.console()
        await console.until("stead-guest: hostname")
        await console.ws.send_bytes(b"\ndd if=/dev/zero of=/dev/vdb bs=1M count=60; sync; echo written''all\n")
        vmi = await site.until(is_paused)
        paused = condition(vmi, "Paused")
        assert paused is not None
        assert paused["reason"] == "PausedIOError"
        filler.unlink()
        await site.until(lambda v: not is_paused(v), seconds=20)
        await console.until("writtenall", 60)
        await site.delete()
        await site.gone()
        assert path.stat().st_uid == 0
