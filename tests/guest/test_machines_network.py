"""Networks of machines end to end: what a guest reaches, what reaches it, names, bridges of the host, and silence.

One Stead serves the module, in a network of its own that leads to a second namespace, "the world".
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.outer_network import WORLD_ADDRESS, run
from tests.stead_host import SteadHost, condition, phase, stead_host, uid

from stead.client.contract import Object
from stead.kinds import register

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

#: counts what leaves this host, but for what the guests of the test send
COUNTER = """
table inet watch {
  counter strangers { }
  chain out { type filter hook output priority 0; oifname "uplink" ip protocol { tcp, udp } counter name strangers; }
}
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stead(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SteadHost]:
    async with stead_host(tmp_path_factory.mktemp("stead")) as host:
        rules = host.host.root / "watch.nft"
        rules.write_text(COUNTER)
        run("nft", "-f", str(rules))
        yield host


async def open_ports(stead: SteadHost, pid: int) -> list[str]:
    """TCP and UDP sockets that a process listens on, in its own network namespace."""
    lines = (await stead.host.run("ss", "-Hlntup")).splitlines()
    return [line for line in lines if f"pid={pid}," in line]


async def reaches(address: str, port: int, seconds: float = 3.0) -> bool:
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def test_masquerade_ports_names_the_world_and_nothing_else(stead: SteadHost) -> None:
    """Two machines reach each other; `ports` restrict; DNS and the world work; addresses stay over a restart; QEMU
    listens on no port, and Stead itself connects to nobody outside.
    """
    dns = f"--no-daemon --no-resolv --no-hosts --listen-address={WORLD_ADDRESS} --bind-interfaces --port=53"
    stead.outer.in_world("dnsmasq", *dns.split(), f"--address=/answer.test/{WORLD_ADDRESS}", "--pid-file=")
    site = stead.host.root / "www"
    site.mkdir()
    serve = ("-m", "http.server", "8080", "--bind", WORLD_ADDRESS, "--directory", str(site))
    stead.outer.in_world("python3", *serve)
    await stead.vm("left")
    limited = {"name": "default", "masquerade": {}, "ports": [{"port": 80}]}
    base = stead.machine_of("x")["spec"]["template"]["spec"]["domain"]
    await stead.vm("right", domain={**base, "devices": {"disks": [], "interfaces": [limited]}})
    left, right = await asyncio.gather(stead.booted("left"), stead.booted("right"))
    addresses = {}
    for name in ("left", "right"):
        vmi = await stead.wait_machine(name, "agent")
        addresses[name] = vmi["status"]["interfaces"][0]["ipAddress"]
    assert addresses["left"] != addresses["right"]

    # as KubeVirt: the guest sees 10.0.2.2, whatever its address in the cluster
    assert "stead-guest: address 10.0.2.2" in left.text
    assert "stead-guest" in await left.shell(f"wget -q -O - http://{addresses['right']}/")
    assert await reaches(addresses["left"], 7)
    assert await reaches(addresses["left"], 80)
    assert await reaches(addresses["right"], 80)
    assert not await reaches(addresses["right"], 7), "a port that is not listed is reachable"
    assert "closed" in await left.shell(f"nc -w 3 {addresses['right']} 7 </dev/null >/dev/null 2>&1 || echo closed")

    # names, and the world
    assert WORLD_ADDRESS in await right.shell("nslookup answer.test")
    assert "fetched" in await right.shell("wget -q -O /dev/null http://answer.test:8080/ && echo fetch''ed")

    # no TCP or UDP port of QEMU; sockets of consoles are its machine's alone
    for name in ("left", "right"):
        pid = await stead.qemu_pid(name)
        assert await open_ports(stead, pid) == []
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        assert re.search(r"-vnc vnc=unix:", command)
        assert "0.0.0.0" not in command
    sockets = [path for path in stead.settings.run_dir.rglob("*.sock") if "machines" in path.parts]
    assert sockets
    for path in sockets:
        assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0, f"{path} is open to others"

    # a restart keeps the address
    before = uid(await stead.wait_machine("right", "running"))
    await stead.call("right", "restart", {"gracePeriodSeconds": 0})
    vmi = await stead.until_vmi("right", lambda v: uid(v) != before and phase(v) == "Running")
    assert vmi["status"]["interfaces"][0]["ipAddress"] == addresses["right"]
    await stead.booted("right")
    assert await reaches(addresses["right"], 80)

    # what Stead sent out of this host itself: the guests' questions for names to the host's resolver, and no more
    counters = json.loads(run("nft", "-j", "list", "counter", "inet", "watch", "strangers"))
    packets = next(entry["counter"]["packets"] for entry in counters["nftables"] if "counter" in entry)
    assert packets <= 20, f"{packets} packets left this host that no guest sent"
    for name in ("left", "right"):
        await stead.delete(name)

    async def is_clean() -> bool:
        links = await stead.host.run("ip", "-o", "link", "show", "master", stead.settings.pod_bridge)
        claims = (await stead.client.list(register.ADDRESS_CLAIM)).items
        return not links.strip() and not claims and not (await stead.host.run("ls", "/run/netns")).strip()

    await stead.until(is_clean, "nothing of the machines' networks is left", 30)


async def test_stead_at_rest_connects_to_nobody(stead: SteadHost) -> None:
    """Without machines no packet leaves, but for what was counted before."""
    command = ("nft", "reset", "counter", "inet", "watch", "strangers")
    run(*command)
    await asyncio.sleep(5)
    assert "packets 0 " in run("nft", "list", "counter", "inet", "watch", "strangers")
    # the control: a counter that counts nothing would prove nothing
    assert await reaches(WORLD_ADDRESS, 8080)
    assert "packets 0 " not in run("nft", "list", "counter", "inet", "watch", "strangers")


async def test_a_bridge_of_the_host(stead: SteadHost) -> None:
    """The bridge binding: one sentence while the bridge is missing; the guest is in its network when it is there."""
    config = json.dumps({"cniVersion": "0.3.1", "type": "bridge", "bridge": "br-lab"})
    await stead.create(
        register.NETWORK_ATTACHMENT_DEFINITION, {"metadata": {"name": "lab"}, "spec": {"config": config}}
    )
    base = stead.machine_of("x")["spec"]["template"]["spec"]["domain"]
    devices: Object = {"disks": [], "interfaces": [{"name": "lab", "bridge": {}, "macAddress": "02:00:00:aa:bb:cc"}]}
    networks = [{"name": "lab", "multus": {"networkName": "lab"}}]
    await stead.vm("onbridge", domain={**base, "devices": devices}, networks=networks)
    vm = await stead.until_vm("onbridge", lambda v: "br-lab" in str(condition(v, "Synchronized")))
    assert "ip link add br-lab type bridge" in str(condition(vm, "Synchronized"))
    run("ip", "link", "add", "br-lab", "type", "bridge")
    run("ip", "address", "add", "172.30.0.1/24", "dev", "br-lab")
    run("ip", "link", "set", "br-lab", "up")
    words = (
        "--no-daemon --port=0 --interface=br-lab --bind-interfaces --leasefile-ro --dhcp-range=172.30.0.9,172.30.0.9"
    )
    dhcp = await asyncio.create_subprocess_exec("dnsmasq", *words.split(), "--pid-file=")
    try:
        await stead.wait_machine("onbridge", "running")
        console = await stead.console("onbridge")
        await console.until("stead-guest: address 172.30.0.9")
        assert "02:00:00:aa:bb:cc" in await console.shell("cat /sys/class/net/eth0/address")
        assert await reaches("172.30.0.9", 80)
        await stead.until_vmi("onbridge", lambda v: v["status"]["interfaces"][0].get("ipAddress") == "172.30.0.9", 60)
        await stead.delete("onbridge")
    finally:
        dhcp.terminate()
        await dhcp.wait()
    assert "br-lab" in run("ip", "-br", "link"), "Stead removed a bridge that it did not make"
