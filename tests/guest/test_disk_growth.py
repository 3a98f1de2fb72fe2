"""A volume that grows under a running guest: the guest sees its new size, also when no agent ran meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.agent_host import Console, agent_host

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

MIB = 1 << 20


async def _sees(console: Console, sectors: int) -> None:
    text = ""
    for _ in range(40):
        text = await console.shell("cat /sys/block/vd*/size")
        if str(sectors) in text.split():
            return
        await asyncio.sleep(0.5)
    raise AssertionError(f"no disk of {sectors} sectors in the guest: {text}")


async def test_a_running_guest_sees_its_grown_disk(tmp_path: Path) -> None:
    async with agent_host(tmp_path) as site:
        path = await site.add_claim("data", 8 * MIB)
        await site.create(
            devices={"disks": [{"name": n, "disk": {"bus": "virtio"}} for n in ("root", "data")]},
            volumes=[
                {"name": "root", "containerDisk": {"image": "registry.test/guest:1"}},
                {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            ],
        )
        pid = site.pid(await site.running())
        console = await site.console()
        await console.until("stead-guest: ready")
        await _sees(console, 8 * MIB // 512)

        volume = await asyncio.to_thread(site.pool.resize, path.parent.name, 24 * MIB)
        site.agent.resized(str(volume.path), volume.size_bytes)
        await _sees(console, 24 * MIB // 512)
        info = next(v for v in (await site.get())["status"]["volumeStatus"] if v["name"] == "data")
        assert info["persistentVolumeClaimInfo"]["capacity"] == {"storage": "24Mi"}

        await site.agent.close()
        await asyncio.to_thread(site.pool.resize, path.parent.name, 40 * MIB)
        site.agent = site.new_agent()
        await site.agent.open()
        await site.until(lambda v: v["metadata"]["uid"] in site.agent.machines and site.pid(v) == pid, seconds=20)
        again = await site.console()
        await _sees(again, 40 * MIB // 512)
