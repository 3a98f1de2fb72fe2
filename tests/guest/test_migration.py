"""Live migration between two hosts: what a guest notices, what is left where, and what a failure leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.cluster import Cluster, cluster
from tests.segment import Host
from tests.stead_host import BOOT_SECONDS, has, ticks

from stead.client.contract import Object
from stead.kinds import register

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

#: an address of the cluster range that no machine of a test gets
CLIENT_ADDRESS = "10.128.255.250"
_ECHO = """
import socket, sys
line = socket.create_connection((sys.argv[1], 7), 30)
line.settimeout(120)
file = line.makefile("rwb")
for text in sys.stdin:
    file.write(text.encode()); file.flush()
    print(file.readline().decode().strip(), flush=True)
"""


class Talker:
    """One TCP connection to a guest's echo service, from a neighbour of its on a host's pod network."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says_back(self, text: str) -> bool:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{text}\n".encode())
        await self._process.stdin.drain()
        return (await asyncio.wait_for(self._process.stdout.readline(), BOOT_SECONDS)).decode().strip() == text


@contextlib.asynccontextmanager
async def talker(host: Host, bridge: str, address: str) -> AsyncIterator[Talker]:
    for words in (
        "netns add client", "link add client type veth peer name eth0 netns client",
        f"link set client master {bridge} up", f"-n client address add {CLIENT_ADDRESS}/16 dev eth0",
        "-n client link set eth0 mtu 1400 up",
    ):  # fmt: skip
        await host.run("ip", *words.split())
    command = host.inside("ip", "netns", "exec", "client", sys.executable, "-I", "-c", _ECHO, address)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield Talker(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # its end: what was started through `nsenter` outlives that
        await asyncio.wait_for(process.wait(), BOOT_SECONDS)


async def over(found: Cluster, name: str) -> Object:
    """The migration, as soon as it has ended."""

    async def is_over() -> Object | None:
        migration = await found.stead.get(register.MIGRATION, name)
        return migration if migration and migration.get("status", {}).get("phase") in ("Succeeded", "Failed") else None

    done: Object = await found.stead.until(is_over, f"migration {name} is over", BOOT_SECONDS)
    return done


async def start(found: Cluster, name: str, vmi: str) -> str:
    """Ask for a migration; its uid."""
    made = await found.stead.create(register.MIGRATION, {"metadata": {"name": name}, "spec": {"vmiName": vmi}})
    return str(made["metadata"]["uid"])


async def start_and_wait_for_memory(found: Cluster, name: str, vmi: str, home: str) -> str:
    """As `start`, until memory is on its way."""
    uid = await start(found, name, vmi)

    async def is_sending() -> bool:
        told = await found.hosts[home].virsh("domjobinfo", found.stead.domain(vmi))
        return "Memory processed" in told

    def is_begun(obj: Object) -> bool:
        state = obj["status"].get("migrationState") or {}
        return state.get("migrationUid") == uid and bool(state.get("startTimestamp"))

    await found.stead.until_vmi(vmi, is_begun)
    await found.stead.until(is_sending, "memory is on its way", BOOT_SECONDS)
    return uid


async def test_a_machine_moves_and_its_guest_goes_on(tmp_path: Path) -> None:
    """Memory, disk, address, an open connection and the clock survive; one that is cancelled leaves nothing behind."""
    async with cluster(tmp_path, 2) as found:
        stead = found.stead
        await stead.vm("web", volumes=[{"name": "scratch", "emptyDisk": {"capacity": "8Mi"}}])
        console = await stead.booted("web")
        before = await stead.until_vmi("web", lambda v: has(v, "LiveMigratable"))
        source = before["status"]["nodeName"]
        target = next(name for name in found.hosts if name != source)
        await console.shell("head -c 1048576 /dev/urandom > /tmp/data; dd if=/tmp/data of=/dev/vdb bs=1M conv=fsync")
        found_digest = re.search("[0-9a-f]{32}", await console.shell("md5sum /tmp/data"))
        assert found_digest is not None
        digest = found_digest.group()
        address = before["status"]["interfaces"][0]["ipAddress"]
        async with talker(found.hosts["host-a"], stead.settings.pod_bridge, address) as line:
            assert await line.says_back("before")
            last = ticks(console.text)[-1]
            await start(found, "first", "web")
            migration = await over(found, "first")
            assert migration["status"]["phase"] == "Succeeded", migration["status"]
            after = await stead.until_vmi("web", lambda v: v["status"]["nodeName"] == target and has(v, "Ready"))
            assert await line.says_back("after")
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert after["status"]["interfaces"][0]["ipAddress"] == address
        assert found.running_on("web") == [target]
        console = await stead.console("web")
        assert digest in await console.shell("head -c 1048576 /dev/vdb | md5sum")
        assert digest in await console.shell("md5sum /tmp/data")
        assert ticks(console.text)[0] > last, "the guest began anew"

        await stays_when_the_way_back_is_cancelled(found, "web", home=target)
        if target == "host-b":  # the agent that is killed is the one that `stead up` keeps running
            await stays_when_the_targets_agent_dies(found, "web", home=target)


async def stays_when_the_way_back_is_cancelled(found: Cluster, name: str, home: str) -> None:
    """A second migration, ended in the middle: the machine goes on where it is, and nothing of it is at the target."""
    stead = found.stead
    other = next(host for host in found.hosts if host != home)
    slow = {"spec": {"configuration": {"migrations": {"bandwidthPerMigration": "1Mi"}}}}
    await stead.client.patch(register.KUBEVIRT, "kubevirt", "kubevirt", slow)
    uid = await start_and_wait_for_memory(found, "second", name, home)
    await stead.client.delete(register.MIGRATION, stead.namespace, "second")

    async def is_gone() -> bool:
        return await stead.get(register.MIGRATION, "second") is None

    await stead.until(is_gone, "the cancelled migration is gone")
    vmi = await stead.until_vmi(name, lambda v: v["status"]["migrationState"].get("failed"))
    assert vmi["status"]["migrationState"]["migrationUid"] == uid
    assert vmi["status"]["nodeName"] == home
    assert vmi["status"]["migrationState"]["abortStatus"] == "Succeeded"
    assert found.running_on(name) == [home]

    async def is_clear() -> bool:
        listed = await found.hosts[other].virsh("list", "--all", "--name")
        taps = await found.hosts[other].run("ip", "netns", "list")
        return name not in listed and vmi["metadata"]["uid"] not in taps

    await stead.until(is_clear, f"nothing of {name} is left on {other}", 60)
    assert (await stead.vmi(name) or {})["status"]["phase"] == "Running"


async def stays_when_the_targets_agent_dies(found: Cluster, name: str, home: str) -> None:
    """The agent that joins the two hypervisors is killed in the middle; once it is back, another try succeeds."""
    stead = found.stead
    await start_and_wait_for_memory(found, "third", name, home)
    await stead.kill("agent")
    migration = await over(found, "third")
    assert migration["status"]["phase"] == "Failed", migration["status"]
    assert found.running_on(name) == [home]
    await stead.until(stead.is_ready, "the agent is back", 60)
    fast = {"spec": {"configuration": {"migrations": {"bandwidthPerMigration": None}}}}
    await stead.client.patch(register.KUBEVIRT, "kubevirt", "kubevirt", fast)
    await start(found, "fourth", name)
    migration = await over(found, "fourth")
    assert migration["status"]["phase"] == "Succeeded", migration["status"]
    assert found.running_on(name) == [host for host in found.hosts if host != home]
