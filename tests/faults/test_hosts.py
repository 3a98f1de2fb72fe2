"""What happens to a host: it restarts, its disk runs full, two Steads share it, Stead is upgraded under its guests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from tests import image_server
from tests.outer_network import run
from tests.stead_host import (
    VM,
    SteadHost,
    condition,
    has,
    phase,
    running_stead,
    settings_on,
    stead_host,
    ticks,
    uid,
)

from stead.client.contract import Object
from stead.kinds import register
from stead.store.migrations import FORMAT

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

#: seconds in which Always machines must be back after a restart of the host, and how much slower this machine may be
BACK_SECONDS, SLOWER = 60.0, 2.0
MIB = 1 << 20


def links() -> list[str]:
    """Interfaces of the test's network that the host did not have before."""
    names = [line.split(": ")[1].partition("@")[0] for line in run("ip", "-o", "link").splitlines()]
    return [name for name in names if name not in ("lo", "uplink")]


async def power_cut(stead: SteadHost) -> None:
    """Everything that a restart of the host takes away: processes, the run directories, interfaces and rules."""
    up, others = stead.pid("up"), [stead.pid("plane"), stead.pid("agent")]
    for pid in (up, *others, *stead.host.machine_pids()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await stead.down()
    await stead.host.kill_libvirtd()
    await stead.host.run("sh", "-c", "for n in /run/netns/*; do umount $n; rm -f $n; done; rm -rf /run/libvirt/qemu")
    await stead.host.run("sh", "-c", f"find {stead.settings.run_dir} -type f -delete; rm -rf {stead.settings.run_dir}")
    run("ip", "link", "delete", stead.settings.pod_bridge)
    run("nft", "flush", "ruleset")
    for name in links():
        with contextlib.suppress(AssertionError):  # it went with its peer
            run("ip", "link", "delete", name)
    # dnsmasq and the like
    for pid in stead.host._helper_pids():
        with contextlib.suppress(OSError, ProcessLookupError):
            if b"dnsmasq" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


async def test_a_restart_of_the_host(tmp_path: Path) -> None:
    """Always machines come back by themselves with their address and disk; the others stay as they were."""
    async with stead_host(tmp_path) as stead:
        await stead.vm("always")
        await stead.vm("manual", run="Manual")
        await stead.call("manual", "start")
        await stead.vm("halted", run="Halted")
        await asyncio.gather(stead.booted("always"), stead.booted("manual"))
        before = await stead.wait_machine("always", "agent")
        revision = int((await stead.get(VM, "halted") or {})["metadata"]["resourceVersion"])
        await power_cut(stead)
        await stead.host.start_libvirtd()
        begun = time.monotonic()
        await stead.up()
        vmi = await stead.until_vmi("always", lambda v: uid(v) != uid(before) and phase(v) == "Running")
        assert time.monotonic() - begun < BACK_SECONDS * SLOWER
        await stead.booted("always")
        assert vmi["status"]["interfaces"][0]["ipAddress"] == before["status"]["interfaces"][0]["ipAddress"]
        await stead.printable("manual", "Stopped")
        await stead.printable("halted", "Stopped")
        assert int((await stead.get(VM, "always") or {})["metadata"]["resourceVersion"]) > revision
        assert await stead.qemu_pid("manual") == 0
        assert len(stead.host.machine_pids()) == 1
        sockets = {path.parent.name for path in stead.settings.run_dir.rglob("serial*.sock")}
        assert len(sockets) <= 1, f"sockets of machines that are gone: {sockets}"
        await stead.delete("manual")
        assert len(links()) == 2, f"the bridge, and one port: {links()}"


async def test_a_full_disk(tmp_path: Path) -> None:
    """A pool without space: an import fails clearly and is tried again; a guest is halted, told, and goes on."""
    async with stead_host(tmp_path, pool_bytes=120 * MIB) as stead:
        pool = stead.settings.pools[0].path

        async def grow(size: int) -> None:
            await stead.host.run("mount", "-o", f"remount,size={size}", str(pool))

        storage: Object = {"resources": {"requests": {"storage": "200Mi"}}}
        blank = {"metadata": {"name": "data"}, "spec": {"source": {"blank": {}}, "storage": storage}}
        await stead.create(register.DATA_VOLUME, blank)
        await stead.vm("writer", volumes=[{"name": "data", "dataVolume": {"name": "data"}}])
        console = await stead.booted("writer")
        pid = await stead.qemu_pid("writer")
        assert pid

        with image_server.web_server() as web:
            web.files["big.raw"] = os.urandom(MIB) * 150
            spec = {"source": {"http": {"url": web.url("big.raw")}}, "storage": storage}
            await stead.create(register.DATA_VOLUME, {"metadata": {"name": "big"}, "spec": spec})

            async def told() -> bool:
                volume = await stead.get(register.DATA_VOLUME, "big") or {}
                events = [str(e.get("message")) for e in await stead.events("big")]
                words = (json.dumps(volume.get("status", {})) + " ".join(events)).lower()
                return "space" in words and volume["status"]["phase"] != "Succeeded"

            await stead.until(told, "the import says that there is no space", 60)
            assert stead.pid("agent")
            assert stead.pid("plane")
            await grow(400 * MIB)

            async def done() -> bool:
                volume = await stead.get(register.DATA_VOLUME, "big") or {}
                return volume.get("status", {}).get("phase") == "Succeeded"

            await stead.until(done, "the import is tried again and succeeds", 120)
        await stead.delete("big", resource=register.DATA_VOLUME)

        async def is_removed() -> bool:
            return (await stead.host.run("du", "-sm", str(pool))).split()[0] in ("0", "1", "2")

        await stead.until(is_removed, "the removed volume's space is given back", 30)

        async def is_small() -> bool:
            try:
                await grow(40 * MIB)
            except AssertionError:  # the kernel still holds what was removed
                return False
            return True

        await stead.until(is_small, "the pool can be made small", 30)
        disk = "$(for s in /sys/block/vd*; do [ $(cat $s/size) = 409600 ] && echo /dev/${s##*/}; done)"
        await console.ws.send_bytes(f"\ndd if=/dev/zero of={disk} bs=1M count=80; sync; echo written''all\n".encode())
        vmi = await stead.until_vmi("writer", lambda v: has(v, "Paused"), 60)
        assert (condition(vmi, "Paused") or {})["reason"] == "PausedIOError"
        await stead.printable("writer", "Paused")
        await grow(200 * MIB)
        await stead.until_vmi("writer", lambda v: not has(v, "Paused"), 40)
        await stead.printable("writer", "Running")
        await console.until("writtenall", 60)
        assert await stead.qemu_pid("writer") == pid
        await stead.delete("writer")


async def test_two_steads_on_one_host(tmp_path: Path) -> None:
    """They share the host and its libvirt, and nothing else; each leaves the other's machines alone."""
    async with stead_host(tmp_path) as one:
        second = settings_on(
            one.host,
            pod_bridge="stead1",
            pod_cidr="10.129.0.0/16",
            uid_base=1_700_000_000,
            insecure_registries=one.settings.insecure_registries,
        )
        async with running_stead(one.host, one.outer, second) as two:
            two.registry = one.registry
            await one.vm("web")
            await two.vm("web")
            await asyncio.gather(one.booted("web"), two.booted("web"))
            addresses = []
            for host in (one, two):
                vmi = await host.wait_machine("web", "agent")
                addresses.append(vmi["status"]["interfaces"][0]["ipAddress"])
            assert addresses[0].startswith("10.128.")
            assert addresses[1].startswith("10.129.")
            pids = [await one.qemu_pid("web"), await two.qemu_pid("web")]
            assert all(pids)
            await one.killed("agent")
            await asyncio.sleep(3)
            assert [await one.qemu_pid("web"), await two.qemu_pid("web")] == pids
            assert await one.domains() == {one.domain("web"), two.domain("web")}
            await one.delete("web")
            assert await two.qemu_pid("web") == pids[1]
            await two.delete("web")
            assert await one.domains() == set()


LATER = '''
"""A stand-in for the next release: one more step of the store's format{failing}."""
import stead.store.migrations as migrations


def index(connection):
    connection.execute("CREATE INDEX by_key ON log (key)")
    if {fails}:
        raise RuntimeError("this step fails half-way")


migrations.STEPS = (*migrations.STEPS, index)
migrations.FORMAT = len(migrations.STEPS)
migrations.migrate.__defaults__ = (migrations.STEPS,)
'''


async def test_an_upgrade_under_running_guests(tmp_path: Path) -> None:
    """The store goes forward with a copy kept, guests notice nothing; a failed step changes nothing; an older release
    refuses the newer store in one sentence, and takes the copy back.
    """
    async with stead_host(tmp_path) as stead:
        await stead.vm("web")
        console = await stead.booted("web")
        pid, first = await stead.qemu_pid("web"), uid(await stead.wait_machine("web", "agent"))
        assert pid
        stead.altered_by = stead.host.root / "later"
        stead.altered_by.mkdir()
        release = stead.altered_by / "sitecustomize.py"
        store = stead.settings.plane_dir / "store.db"
        last = ticks(console.text)[-1]

        def format_of() -> int:
            with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
                return int(connection.execute("PRAGMA user_version").fetchone()[0])

        async def unchanged() -> None:
            vmi = await stead.wait_machine("web", "agent")
            assert (await stead.qemu_pid("web"), uid(vmi)) == (pid, first)

        # a step that fails: the plane says so and the store is as it was
        await stead.down()
        release.write_text(LATER.format(failing=", which fails", fails=True))
        await stead.up(wait=False)

        async def complains() -> bool:
            return "half-way" in stead.tail(20000)

        await stead.until(complains, "the plane says that the upgrade failed", 30)
        await stead.down()
        assert format_of() == FORMAT
        # the release before goes on with it
        release.write_text("")
        await stead.up()
        await unchanged()

        await stead.down()
        release.write_text(LATER.format(failing="", fails=False))
        await stead.up()
        await unchanged()
        assert format_of() == FORMAT + 1
        copy = store.with_name(f"store.db.format-{FORMAT}")
        assert copy.stat().st_mode & 0o077 == 0

        async def is_asked_to_pause() -> bool:
            await stead.call("web", "pause")
            return True

        await stead.until(is_asked_to_pause, "the agent takes calls", 20)
        await stead.printable("web", "Paused")
        await stead.call("web", "unpause")

        # back: the older release refuses, then runs on the copy
        await stead.down()
        release.write_text("")
        await stead.up(wait=False)

        async def refuses() -> bool:
            return f"has format {FORMAT + 1}, this release knows formats up to {FORMAT}" in stead.tail(20000)

        await stead.until(refuses, "the older release refuses the newer store", 30)
        await stead.down()
        for rest in ("-wal", "-shm"):
            store.with_name(store.name + rest).unlink(missing_ok=True)
        copy.replace(store)
        await stead.up()
        await unchanged()

        # no tick of the guest is missing over all of it
        again = await stead.console("web")
        await again.until("tick")
        assert ticks(again.text)[0] > last
        uptime = float((await again.shell("cut -d' ' -f1 /proc/uptime")).split()[-1])
        assert ticks(again.text)[-1] <= uptime
        assert ticks(again.text)[-1] > 0.5 * uptime
        await stead.delete("web")


async def test_two_steads_with_one_state_directory_refuse(tmp_path: Path) -> None:
    """A second `stead up` of the same installation says that it runs already, with its pid."""
    async with stead_host(tmp_path, with_registry=False) as stead:
        assert f"pid {stead.pid('up')}" in await stead.stead("up", check=False)
        assert "ready" in (await stead.stead("status")).lower()
