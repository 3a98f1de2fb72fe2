"""The pod network with real guests: addresses, DHCP, NAT, ports, DNS, restarts of the agent, and a host left clean."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import guest_image
from tests.libvirt_host import LibvirtHost, libvirt_host
from tests.outer_network import HOST_ADDRESS, WORLD_ADDRESS, OuterNetwork, outer_network, run

from stead.hypervisor.contract import Cpu, Firmware, Isolation, Machine, Memory, Nic
from stead.hypervisor.libvirt.driver import LibvirtHypervisor
from stead.network import namespaces, nftables
from stead.network.podnetwork import Attachment, NetworkConfig, NetworkError, PodNetwork

pytestmark = pytest.mark.guest
BOOT_SECONDS = 120.0
UID_BASE = 300000


@dataclass
class Site:
    """A host of the test: its network, its hypervisor and what it takes to boot guests on them."""

    outer: OuterNetwork
    host: LibvirtHost
    hypervisor: LibvirtHypervisor
    network: PodNetwork
    config: NetworkConfig


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    with outer_network() as outer:
        async with libvirt_host(tmp_path) as host:
            name = f"t{uuid.uuid4().hex[:8]}"
            config = NetworkConfig(
                instance=name, bridge="stead0", run_dir=str(host.root / "network"), upstream=(WORLD_ADDRESS,)
            )
            network = PodNetwork(config)
            hypervisor = LibvirtHypervisor(host.uri)
            await network.open()
            await hypervisor.open()
            try:
                place = Site(outer, host, hypervisor, network, config)
                yield place
            finally:
                for observed in await hypervisor.list():
                    await hypervisor.stop(observed.uid)
                await place.network.remove()
                await place.network.close()
                await hypervisor.close()


class Guest:
    """One booted machine: its serial line as text, and a shell on it."""

    def __init__(self, site: Site, request: Attachment) -> None:
        self.site, self.request = site, request
        self.uid = request.machine_uid
        self.text = ""
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    async def boot(self) -> None:
        attached = await self.site.network.attach(self.request)
        owner = UID_BASE + int(self.request.ipv4.rpartition(".")[2])
        run_dir = self.site.host.root / self.uid[:8]
        run_dir.mkdir(mode=0o700, exist_ok=True)
        os.chown(run_dir, owner, owner)
        machine = Machine(
            uid=self.uid,
            namespace="default",
            name=self.request.hostname,
            cpu=Cpu(),
            memory=Memory(size=192 << 20),
            run_dir=str(run_dir),
            serial_socket=str(run_dir / "serial.sock"),
            firmware=Firmware(
                kernel=str(guest_image.kernel_path()),
                initrd=str(guest_image.initrd_path()),
                cmdline="console=ttyS0 quiet loglevel=3 panic=-1 net.ifnames=0",
            ),
            nics=(Nic(name="default", mac=attached.mac, backend="tap", target=attached.target, mtu=attached.mtu),),
            isolation=Isolation(uid=owner, gid=owner),
            software_emulation=True,
        )
        await self.site.hypervisor.define(machine)
        await self.site.hypervisor.start(self.uid)
        await self.site.network.settle(self.uid)
        reader, self._writer = await asyncio.open_unix_connection(machine.serial_socket)
        self._task = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(4096):
            self.text += data.decode(errors="replace")

    async def wait_for(self, text: str, start: int = 0) -> None:
        async with asyncio.timeout(BOOT_SECONDS):
            while text not in self.text[start:]:
                assert self._task is not None
                assert not self._task.done(), f"the guest ended: {self.text[-2000:]}"
                await asyncio.sleep(0.05)

    async def shell(self, command: str) -> str:
        """The output of a command on the guest's serial shell."""
        start, token = len(self.text), uuid.uuid4().hex[:8]
        assert self._writer is not None
        self._writer.write(f"{command}; echo done-$((1+1))-{token}\n".encode())
        await self.wait_for(f"done-2-{token}", start)
        return self.text[start:].replace("\r", "")

    async def ready(self) -> None:
        await self.wait_for("stead-guest: address")
        await self.shell("touch /run/quiet")

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()


def request_for(address: str, name: str, **more: object) -> Attachment:
    last = int(address.rpartition(".")[2])
    values = {
        "machine_uid": str(uuid.uuid4()),
        "interface": "default",
        "ipv4": address,
        "mac": f"02:00:00:00:01:{last:02x}",
        "hostname": name,
        "search_domains": ("default.svc.cluster.local",),
        **more,
    }
    return Attachment(**values)  # type: ignore[arg-type]  # values by name


async def fetch(address: str, port: int = 80, seconds: float = 10.0) -> str:
    """What a web server answers, from the host."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        return text


async def refuses(address: str, port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        async with asyncio.timeout(10):
            _, writer = await asyncio.open_connection(address, port)
        writer.close()
        return False
    return True


async def test_two_guests_have_their_addresses_and_reach_all_they_should(site: Site) -> None:
    """One boot of two guests shows DHCP's answers, NAT both ways, `ports`, DNS, and an agent's restart."""
    one = Guest(site, request_for("10.128.0.5", "one"))
    two = Guest(site, request_for("10.128.0.6", "two", ports=(("tcp", 80),)))
    site.outer.in_world(
        "dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", f"--listen-address={WORLD_ADDRESS}",
        "--bind-interfaces", "--address=/example.test/198.51.100.7", "--pid-file", "--conf-file=/dev/null",
    )  # fmt: skip
    (site.host.root / "www").mkdir()
    (site.host.root / "www" / "hello").write_text("hello from the world")
    site.outer.in_world(
        sys.executable, "-m", "http.server", "-b", WORLD_ADDRESS, "-d", str(site.host.root / "www"), "8080"
    )
    await asyncio.gather(one.boot(), two.boot())
    try:
        await asyncio.gather(one.ready(), two.ready())
        seen = await one.shell("ip -4 addr show eth0; ip route; cat /etc/resolv.conf; ip link show eth0; hostname")
        assert "inet 10.0.2.2/24" in seen
        assert "default via 10.0.2.1" in seen
        assert "10.128.0.1" in seen
        assert f"mtu {(await site.network.attach(one.request)).mtu}" in seen

        assert "stead-guest" in await fetch("10.128.0.5"), "the host reaches the guest by its cluster address"
        assert "stead-guest" in await fetch("10.128.0.6"), "a listed port is reachable"
        assert not await refuses("10.128.0.5", 7), "without `ports`, all are reachable"
        assert await refuses("10.128.0.6", 7), "with `ports`, others are not"
        assert "stead-guest" in await one.shell("wget -q -O - http://10.128.0.6/"), "machine to machine"
        assert "stead-guest" not in await one.shell("echo x | nc -w 3 10.128.0.6 7")
        assert "198.51.100.7" in await one.shell("nslookup example.test 10.128.0.1"), "DNS by the gateway"
        seen = await two.shell(f"wget -q -O - http://{WORLD_ADDRESS}:8080/hello")
        assert "hello from the world" in seen, "outbound"
        assert "0% packet loss" in await one.shell("ping -c 2 -w 5 10.128.0.6"), "an open machine answers"

        statistics = await site.network.statistics(one.uid)
        assert statistics["network.default.receive_bytes"] > 0
        assert statistics["network.default.transmit_bytes"] > 0

        again = PodNetwork(site.config)  # a restarted agent
        stream = await asyncio.open_connection("10.128.0.5", 7)
        await again.open()
        assert await again.list() == {one.uid, two.uid}
        stream[1].write(b"still here\n")
        async with asyncio.timeout(10):
            assert await stream[0].readline() == b"still here\n", "a connection outlives the agent's restart"
        stream[1].close()
        await again.close()

        await site.hypervisor.stop(one.uid)
        one.close()
        one.text = ""
        await one.boot()
        await one.ready()
        assert "stead-guest" in await fetch("10.128.0.5"), "the address is kept over a restart of the machine"
    finally:
        one.close()
        two.close()


@contextlib.asynccontextmanager
async def opened(config: NetworkConfig) -> AsyncIterator[PodNetwork]:
    """An open network, whose traces are removed also when the test fails."""
    network = PodNetwork(config)
    try:
        await network.open()
        yield network
    finally:
        last = PodNetwork(config)
        await network.close()
        await last.remove()
        await last.close()


async def test_removal_leaves_the_host_as_it_was(tmp_path: Path) -> None:
    with outer_network():
        run(
            "nft",
            "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
        )
        before = _picture()
        config = NetworkConfig(instance=f"t{uuid.uuid4().hex[:8]}", run_dir=str(tmp_path / "network"))
        async with opened(config) as network:
            assert config.table in run("nft", "list", "chain", "ip", "filter", "FORWARD"), "Docker's drop lets us pass"
            await network.open()
            request = request_for("10.128.0.9", "nine")
            first = await network.attach(request)
            assert await network.attach(request) == first
            assert await network.list() == {request.machine_uid}
            assert _picture() != before
            await network.remove()
            assert _picture() == before
            assert {name for name in os.listdir("/run/netns") if name.startswith(config.instance)} == set()
            assert not (tmp_path / "network").exists()


async def test_what_cannot_be_attached_leaves_nothing(tmp_path: Path) -> None:
    with outer_network():
        config = NetworkConfig(instance=f"t{uuid.uuid4().hex[:8]}", run_dir=str(tmp_path / "network"))
        async with opened(config) as network:
            before = _picture()
            for refused in (
                request_for("10.200.0.9", "far"),
                request_for("10.128.0.9", "port", ports=(("tcp", 99999),)),
                request_for("10.128.0.9", "binding", binding="slirp"),
                request_for("10.128.0.9", "mtu", mtu=7),
            ):
                with pytest.raises(NetworkError):
                    await network.attach(refused)
            assert await network.list() == set()
            assert _picture() == before
            with pytest.raises(NetworkError, match="not attached"):
                await network.settle(str(uuid.uuid4()))
            await network.detach(str(uuid.uuid4()))


async def test_half_made_leftovers_are_removed_and_others_kept(tmp_path: Path) -> None:
    with outer_network():
        config = NetworkConfig(instance=f"t{uuid.uuid4().hex[:8]}", run_dir=str(tmp_path / "network"))
        kept, broken = request_for("10.128.0.9", "kept"), request_for("10.128.0.10", "broken")
        async with opened(config) as network:
            await network.attach(kept)
            await network.attach(broken)
            await network.close()
            (tmp_path / "network" / broken.machine_uid / "attachment.json").unlink()
            stale = config.tap(str(uuid.uuid4()))
            run("ip", "tuntap", "add", stale, "mode", "tap")
            run("ip", "tuntap", "add", "foreign0", "mode", "tap")
            async with opened(config) as again:
                assert await again.list() == {kept.machine_uid}
                names = run("ip", "-o", "link")
                assert stale not in names
                assert config.tap(broken.machine_uid) not in names
                assert "foreign0" in names


async def test_a_running_guest_whose_network_was_half_made_gets_the_rest(site: Site) -> None:
    """The agent was killed between the start of the hypervisor and the rules: the guest must not stay cut off."""
    guest = Guest(site, request_for("10.128.0.11", "cutoff"))
    try:
        attached = await site.network.attach(guest.request)
        folder = Path(site.config.run_dir) / guest.uid
        await guest.boot()
        await site.network.close()
        (folder / "attachment.json").rename(folder / "wanted.json")
        with namespaces.inside(site.config.namespace(guest.uid)):
            nftables.load("flush ruleset\n", "the test")
        site.network = PodNetwork(site.config)
        await site.network.open()
        assert await site.network.list() == {guest.uid}
        assert attached.target in run("ip", "-n", site.config.namespace(guest.uid), "link")
        assert "snat ip to 10.128.0.11" in run(
            "ip", "netns", "exec", site.config.namespace(guest.uid), "nft", "list", "ruleset"
        )
    finally:
        guest.close()


async def test_a_range_the_host_lives_in_is_refused(tmp_path: Path) -> None:
    with outer_network():
        network = PodNetwork(NetworkConfig(pod_cidr="192.0.2.0/24", run_dir=str(tmp_path / "network")))
        with pytest.raises(NetworkError, match=HOST_ADDRESS):
            await network.open()
        await network.close()


def _picture() -> str:
    """All that a host's network consists of, as text, without counters."""
    links = "\n".join(sorted(line.split(":")[1].strip() for line in run("ip", "-o", "link").splitlines()))
    forward = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    return "\n".join([links, run("ip", "-4", "-o", "addr"), run("ip", "route"), run("nft", "list", "ruleset"), forward])
