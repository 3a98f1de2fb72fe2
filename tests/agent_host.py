"""A whole agent for tests with real guests: private libvirtd, own network, own folders; the API is the fake client.

`async with agent_host(tmp_path) as site:` gives a `Site`; `site.create(...)` makes a scheduled VMI of the tiny guest,
`site.console(name)` speaks on its serial line through the agent's own WebSocket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
from tests import guest_image
from tests.fake_client import FakeClient
from tests.libvirt_host import LibvirtHost, libvirt_host
from tests.outer_network import WORLD_ADDRESS, outer_network, run

from stead.agent.agent import Agent, AgentDeps
from stead.agent.materials import File, RegistryAccess
from stead.agent.stock import Stock
from stead.agent.workshop import AgentSettings
from stead.client.contract import Object
from stead.hypervisor.libvirt.driver import LibvirtHypervisor
from stead.images.containerdisks import ContainerDisks
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.network.podnetwork import NetworkConfig, PodNetwork
from stead.storage.pools import Pool, VolumeSpec

VMI = register.VIRTUAL_MACHINE_INSTANCE
BOOT_SECONDS = 150.0


class GuestStock(Stock):
    """Real pools, overlays and ISO images; the one container image is the tiny guest's disk."""

    async def container_disk(self, image: str, pull_policy: str, access: RegistryAccess, path: str) -> File:
        found = self._container_disks.root / "guest.qcow2"
        return File(path=str(found), format="qcow2", virtual_bytes=64 << 20, digest="sha256:" + "0a" * 32)


class Console:
    """A serial console through the agent: everything read so far, and lines typed."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.text = ""
        self.close_reason: str | None = None
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            message = await self.ws.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                self.text += message.data.decode(errors="replace")
            elif message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
                self.close_reason = str(message.extra or "")
                return

    async def until(self, wanted: str, seconds: float = BOOT_SECONDS, start: int = 0) -> None:
        try:
            async with asyncio.timeout(seconds):
                while wanted not in self.text[start:]:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"no {wanted!r} on the console, which says: {self.text[-1500:]}") from None

    async def shell(self, command: str) -> str:
        """Output of a command in the guest's shell."""
        mark = uuid.uuid4().hex[:8]
        await self.ws.send_bytes(f"\n{command}; echo {mark[:4]}''{mark[4:]}\n".encode())
        await self.until(mark, 60)
        return self.text.rpartition(mark)[0].rpartition(f"echo {mark[:4]}''{mark[4:]}")[2]

    async def closed(self) -> str:
        await asyncio.wait_for(self._task, 10)
        return self.close_reason or ""


class Site:
    """One agent with its host."""

    def __init__(self, host: LibvirtHost, folder: Path, pool: Path) -> None:
        self.host = host
        self.folder = folder
        self.client = FakeClient()
        self.instance = f"t{uuid.uuid4().hex[:6]}"
        self.network = PodNetwork(
            NetworkConfig(instance=self.instance, run_dir=str(folder / "network"), upstream=(WORLD_ADDRESS,))
        )
        self.pool = Pool(pool)
        disks = ContainerDisks(folder / "images")
        shutil.copy(guest_image.disk_image("qcow2"), folder / "images" / "guest.qcow2")
        (folder / "images" / "guest.qcow2").chmod(0o444)
        self.stock = GuestStock([self.pool], disks)
        self.session: aiohttp.ClientSession | None = None
        self.agent = self.new_agent()
        self._addresses = iter(range(5, 250))

    def new_agent(self) -> Agent:
        folder = self.folder
        settings = AgentSettings(
            instance=self.instance,
            host_name="h1",
            machines_dir=folder / "machines",
            run_dir=folder / "run",
            state_dir=folder / "state",
            agent_port=0,
            uid_base=400_000,
        )
        return Agent(
            AgentDeps(
                client=self.client,
                hypervisor=LibvirtHypervisor(self.host.uri),
                materials=self.stock,
                settings=settings,
                pod_networks=self.network,
            )
        )

    async def restart_agent(self) -> None:
        await self.agent.close()
        self.agent = self.new_agent()
        await self.agent.open()

    def base(self, name: str) -> str:
        return f"http://127.0.0.1:{self.agent.port}/v1/namespaces/ns/machines/{name}"

    async def create(self, name: str = "web", devices: Object | None = None, **spec: Any) -> Object:
        """A VMI as the controllers leave it: scheduled on this host, its address claimed."""
        address = {"default": {"ipv4": f"10.128.0.{next(self._addresses)}", "mac": f"02:00:00:00:01:{len(name):02x}"}}
        given = {
            "disks": [{"name": "root", "disk": {"bus": "virtio"}}, {"name": "seed", "disk": {"bus": "virtio"}}],
            "interfaces": [{"name": "default", "masquerade": {}}],
        } | (devices or {})
        body: Object = {
            "domain": {"memory": {"guest": "192Mi"}, "devices": given},
            "volumes": [
                {"name": "root", "containerDisk": {"image": "registry.test/guest:1"}},
                {"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config\n"}},
            ],
            "networks": [{"name": "default", "pod": {}}],
            "terminationGracePeriodSeconds": 40,
        }
        metadata = {
            "name": name,
            "namespace": "ns",
            "labels": {"kubevirt.io/nodeName": "h1"},
            "finalizers": ["kubevirt.io/foregroundDeleteVirtualMachine"],
            "annotations": {"stead.io/addresses": json.dumps(address)},
        }
        vmi = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": metadata}
        return await self.client.create(VMI, vmi | {"spec": body | spec, "status": {"phase": "Scheduled"}})

    async def add_claim(self, name: str, size: int) -> Path:
        """A bound claim with its volume in the pool, as the volume controllers leave it."""
        uid = str(uuid.uuid4())
        volume = await asyncio.to_thread(self.pool.create, VolumeSpec(uid=uid, size_bytes=size))
        await self.client.create(
            register.PERSISTENT_VOLUME,
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"pv-{name}"},
                "spec": {"csi": {"driver": "stead.io", "volumeHandle": self.pool.handle(uid)}},
            },
        )
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": "ns"},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": f"pv-{name}"},
        }
        await self.client.create(register.PERSISTENT_VOLUME_CLAIM, claim)
        status = {"status": {"phase": "Bound", "capacity": {"storage": str(size)}}}
        await self.client.patch(register.PERSISTENT_VOLUME_CLAIM, "ns", name, status, subresource="status")
        return volume.path

    async def get(self, name: str = "web") -> Object:
        return await self.client.get(VMI, "ns", name)

    async def until(self, wanted: Callable[[Object], bool], name: str = "web", seconds: float = BOOT_SECONDS) -> Object:
        vmi: Object = {}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    vmi = await self.get(name)
                    if wanted(vmi):
                        return vmi
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"waited in vain; the status is {json.dumps(vmi.get('status'), indent=1)}") from None

    async def running(self, name: str = "web") -> Object:
        return await self.until(lambda vmi: vmi["status"]["phase"] == "Running", name)

    async def delete(self, name: str = "web") -> None:
        await self.client.delete(VMI, "ns", name)

    async def gone(self, name: str = "web", seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(ApiError):
                    await self.get(name)
                    await asyncio.sleep(0.05)
                    continue
                return

    async def console(self, name: str = "web") -> Console:
        assert self.session is not None
        return Console(await self.session.ws_connect(f"{self.base(name)}/console", protocols=("plain.kubevirt.io",)))

    async def call(self, verb: str, method: str = "put", name: str = "web") -> tuple[int, Any]:
        assert self.session is not None
        async with self.session.request(method, f"{self.base(name)}/{verb}") as answer:
            is_json = answer.content_type == "application/json"
            return answer.status, await answer.json() if is_json else await answer.read()

    def pid(self, vmi: Object) -> int:
        seen = self.agent.machines[vmi["metadata"]["uid"]].observed
        return seen.pid if seen else 0


def condition(vmi: Object, kind: str) -> Object | None:
    """A condition of an instance."""
    return next((c for c in vmi["status"].get("conditions") or [] if c["type"] == kind), None)


@contextlib.contextmanager
def _pool_folder(size: int) -> Iterator[Path]:
    """A folder for the pool; with a size, a small file system of its own (so that it can run full)."""
    folder = Path(tempfile.mkdtemp(prefix="pool-"))
    folder.chmod(0o711)
    if size:
        run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "stead-test-pool", str(folder))
    try:
        yield folder
    finally:
        if size:
            run("umount", "--lazy", str(folder))
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def agent_host(tmp_path: Path, pool_bytes: int = 0) -> AsyncIterator[Site]:
    """See the module's prose."""
    with _pool_folder(pool_bytes) as pool, outer_network():
        async with libvirt_host(tmp_path) as host:
            site = Site(host, host.root, pool)
            await site.network.open()
            await site.agent.open()
            site.session = aiohttp.ClientSession()
            try:
                yield site
            finally:
                await site.session.close()
                await site.agent.close()
                for pid in host.machine_pids():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await site.network.remove()
                await site.network.close()
