"""A whole Stead for tests: `stead up` as users run it, with a network, a libvirtd, folders and settings of its own.

`async with stead_host(tmp_path) as stead:` enters a private network (the calling thread lives in it until the block
ends, so the test's sockets reach Stead's ports), starts a private libvirtd and `stead up` inside its namespaces, with
the plane under the account `nobody`, and hands out a `SteadHost`. All that Stead wrote or started ends with the block.
Guests are the tiny guest; `vm(...)` makes a machine of it, from a container disk in the registry that `registry` runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from tests import guest_image, image_server
from tests.agent_host import Console
from tests.libvirt_host import LibvirtHost, libvirt_host
from tests.outer_network import WORLD_ADDRESS, OuterNetwork, outer_network

import stead
from stead import installation
from stead.client.contract import Object, Selection
from stead.client.direct import DirectClient
from stead.client.kubeconfig import load
from stead.config import Pool, Settings
from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

VM, VMI = register.VIRTUAL_MACHINE, register.VIRTUAL_MACHINE_INSTANCE
SUBRESOURCES = "/apis/subresources.kubevirt.io/v1"
BOOT_SECONDS = 150.0
#: what a test may see while a process of Stead is being started again
TROUBLE = (ApiError, OSError, TimeoutError, aiohttp.ClientError)


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class SteadHost:
    """One host with its Stead. `client` is an administrator's; `namespace` the one that methods use."""

    def __init__(self, host: LibvirtHost, outer: OuterNetwork, settings: Settings) -> None:
        self.host = host
        self.outer = outer
        self.settings = settings
        self.namespace = "default"
        self.registry: image_server.Registry | None = None
        self.kubeconfig = installation.Files.of(settings).admin_kubeconfig
        self.log = host.root / f"{settings.instance}.log"
        self._config = host.root / f"{settings.instance}.toml"
        self._client: DirectClient | None = None
        self._up: asyncio.subprocess.Process | None = None
        #: a folder with a `sitecustomize.py` that changes Stead's processes (a broken or a later release)
        self.altered_by: Path | None = None
        self._streams = contextlib.AsyncExitStack()

    # Stead itself ------------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """What Stead's processes get: the settings as a file, and nothing of the caller's own Stead."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("STEAD_")}
        source = str(Path(stead.__file__).resolve().parent.parent)
        if self.altered_by is not None:
            source = f"{self.altered_by}{os.pathsep}{source}"
        return {**kept, "STEAD_CONFIG": str(self._config), "PYTHONPATH": source, "PYTHONUNBUFFERED": "1"}

    async def up(self, wait: bool = True) -> float:
        """Start `stead up` and wait until its host is ready; returns the seconds that took."""
        self._config.write_text(_toml(self.settings))
        begun = time.monotonic()
        with self.log.open("ab") as output:
            self._up = await asyncio.create_subprocess_exec(
                *self.host.inside(sys.executable, "-P", "-m", "stead.cli.main", "up"),
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if wait:
            await self.until(self.is_ready, "Stead is ready", 60)
        return time.monotonic() - begun

    async def is_ready(self) -> bool:
        """The API answers and this host's agent reports it ready, in a beat since the agent's present start."""
        assert self._up is None or self._up.returncode is None, f"stead up ended: {self.tail()}"
        if not self.kubeconfig.exists() or not self.pid("agent"):
            return False
        node = await self.client.get(register.NODE, None, self.settings.host)
        ready = condition(node, "Ready")
        return bool(ready and ready["status"] == "True")

    async def down(self) -> None:
        """Stop Stead as systemd would; machines go on."""
        if self._client is not None:
            await self._client.close()
            self._client = None
        if self._up is not None:
            with contextlib.suppress(ProcessLookupError):
                self._up.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._up.wait(), 25)
            except TimeoutError:
                self._up.kill()
                await self._up.wait()
            self._up = None

    def pid(self, what: str) -> int:
        """Pid of `up`, `plane`, `agent` or `libvirtd`; 0 = not running."""
        if what == "libvirtd":
            return self.host.libvirtd_pid
        found = installation.running_pid(self.settings, what)
        return self.host.pid_here(found) if found else 0

    async def kill(self, what: str) -> int:
        """`kill -9` one of `plane`, `agent`, `libvirtd` (which is started again, as systemd would); its pid."""
        pid = self.pid(what)
        assert pid, f"{what} does not run"
        if what == "libvirtd":
            await self.host.kill_libvirtd()
            await self.host.start_libvirtd()
            return pid
        os.kill(pid, signal.SIGKILL)
        return pid

    async def killed(self, what: str) -> float:
        """Kill it and wait until another of its kind serves; returns the seconds that took."""
        begun = time.monotonic()
        old = await self.kill(what)

        async def is_back() -> bool:
            return self.pid(what) not in (0, old) and await self.is_ready()

        await self.until(is_back, f"{what} is back", 60)
        return time.monotonic() - begun

    def tail(self, size: int = 3000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-size:] if self.log.exists() else ""

    @property
    def client(self) -> DirectClient:
        if self._client is None:
            self._client = DirectClient(load(self.kubeconfig))
        return self._client

    async def stead(self, *words: str, check: bool = True) -> str:
        """Run the command line tool on this host; its output (with what it said on standard error when it failed)."""
        process = await asyncio.create_subprocess_exec(
            *self.host.inside(sys.executable, "-P", "-m", "stead.cli.main", *words),
            env={**self.environment, "KUBECONFIG": str(self.kubeconfig)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), 200)
        if check:
            assert process.returncode == 0, f"stead {' '.join(words)}: {errors.decode()}"
            return output.decode()
        return output.decode() + errors.decode()

    # objects -----------------------------------------------------------------------------------------------------

    async def get(self, resource: Resource, name: str) -> Object | None:
        """The object, or None."""
        try:
            return await self.client.get(resource, self.namespace if resource.namespaced else None, name)
        except ApiError as error:
            if error.reason != "NotFound":
                raise
            return None

    async def vmi(self, name: str) -> Object | None:
        return await self.get(VMI, name)

    async def events(self, name: str) -> list[Object]:
        """Events about objects of that name, oldest first."""
        found = (await self.client.list(register.EVENT, Selection(self.namespace))).items
        mine = [e for e in found if (e.get("involvedObject") or e.get("regarding") or {}).get("name") == name]
        return sorted(mine, key=lambda e: str(e["metadata"].get("creationTimestamp")))

    async def reasons(self, name: str) -> set[str]:
        """Reasons of the events about that name."""
        return {str(event.get("reason")) for event in await self.events(name)}

    async def create(self, resource: Resource, item: Object) -> Object:
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **item}
        if resource.namespaced:
            body["metadata"] = {"namespace": self.namespace, **body["metadata"]}
        return await self.client.create(resource, body)

    async def vm(self, name: str, **more: Any) -> Object:
        """Make a VirtualMachine of the tiny guest; see `machine_of`."""
        return await self.create(VM, self.machine_of(name, **more))

    def machine_of(
        self,
        name: str,
        *,
        run: str = "Always",
        volumes: list[Object] | None = None,
        disks: list[Object] | None = None,
        domain: Object | None = None,
        vm: Object | None = None,
        **spec: Any,
    ) -> Object:
        """The manifest: 192Mi, masquerade, container disk `root`; the kernel comes from the same image, which saves the
        emulated BIOS and boot loader seconds (`firmware: {}` in `domain` boots from the disk). `volumes` add to the
        first, `domain` and `spec` replace fields of the instance's, `vm` of the machine's spec.
        """
        assert self.registry is not None
        image = f"{self.registry.host}/tiny:1"
        named = {disk["name"] for disk in disks or []}
        listed = ["root", *(volume["name"] for volume in volumes or [])]
        # virtio, since the tiny guest's kernel has no driver for KubeVirt's default bus
        more = [{"name": found, "disk": {"bus": "virtio"}} for found in listed if found not in named]
        kernel = {"image": image, "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"}
        guest = {
            "domain": {
                "memory": {"guest": "192Mi"},
                "firmware": {"kernelBoot": {"container": kernel, "kernelArgs": guest_image.CMDLINE}},
                "devices": {"disks": [*more, *(disks or [])], "interfaces": [{"name": "default", "masquerade": {}}]},
            }
            | (domain or {}),
            "terminationGracePeriodSeconds": 30,
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [
                {"name": "root", "containerDisk": {"image": image}},
                *(volumes or []),
            ],
        } | spec
        return {"metadata": {"name": name}, "spec": {"runStrategy": run, "template": {"spec": guest}} | (vm or {})}

    async def patch_vm(self, name: str, patch: Object) -> Object:
        return await self.client.patch(VM, self.namespace, name, patch)

    async def gates(self, *names: str) -> None:
        """Switch feature gates on, as an administrator does."""
        spec = {"spec": {"configuration": {"developerConfiguration": {"featureGates": list(names)}}}}
        await self.client.patch(register.KUBEVIRT, "kubevirt", "kubevirt", spec)

    async def call(self, name: str, verb: str, body: Object | None = None) -> None:
        """A subresource call: `start`, `stop`, `restart` go to the machine, the rest to the instance."""
        plural = "virtualmachines" if verb in ("start", "stop", "restart") else "virtualmachineinstances"
        path = f"{SUBRESOURCES}/namespaces/{self.namespace}/{plural}/{name}/{verb}"
        await self.client.request_text("PUT", path, body=body or {})

    async def ask(self, name: str, question: str) -> Any:
        """A GET subresource of the instance."""
        path = f"{SUBRESOURCES}/namespaces/{self.namespace}/virtualmachineinstances/{name}/{question}"
        return msgspec.json.decode(await self.client.request_bytes("GET", path))

    async def delete(self, name: str, *, resource: Resource = VM, seconds: float = 60.0) -> None:
        """Delete and wait until it is gone (and, for a machine, its instance)."""
        with contextlib.suppress(ApiError):
            await self.client.delete(resource, self.namespace if resource.namespaced else None, name)

        async def is_gone() -> bool:
            return await self.get(resource, name) is None and (resource is not VM or await self.vmi(name) is None)

        await self.until(is_gone, f"{resource.singular} {name} is gone", seconds)

    # waiting -----------------------------------------------------------------------------------------------------

    async def until(self, wanted: Callable[[], Awaitable[Any]], what: str, seconds: float = BOOT_SECONDS) -> Any:
        """Wait for a true answer, which is returned; refused and broken calls are asked again."""
        trouble: object = ""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            try:
                found = await wanted()
                if found:
                    return found
                trouble = ""
            except TROUBLE as error:
                trouble = error
            await asyncio.sleep(0.1)
        raise AssertionError(f"waited {seconds:.0f} s in vain until {what} {trouble}; the log ends: {self.tail()}")

    async def until_vm(self, name: str, wanted: Callable[[Object], Any], seconds: float = BOOT_SECONDS) -> Object:
        """The machine, as soon as its status is as wanted."""
        return await self._until_object(VM, name, wanted, seconds)

    async def until_vmi(self, name: str, wanted: Callable[[Object], Any], seconds: float = BOOT_SECONDS) -> Object:
        return await self._until_object(VMI, name, wanted, seconds)

    async def _until_object(
        self, resource: Resource, name: str, wanted: Callable[[Object], Any], seconds: float
    ) -> Object:
        last: Object | None = None

        async def matches() -> Object | None:
            nonlocal last
            last = await self.get(resource, name)
            return last if last is not None and wanted(last) else None

        try:
            found: Object = await self.until(matches, f"{resource.singular} {name} is as wanted", seconds)
            return found
        except AssertionError as error:
            told = json.dumps((last or {}).get("status"), indent=1)
            raise AssertionError(f"{error}\nstatus of {resource.singular} {name}: {told}") from None

    async def printable(self, name: str, *wanted: str, seconds: float = BOOT_SECONDS) -> Object:
        """The machine, as soon as its printableStatus is one of those."""
        return await self.until_vm(name, lambda vm: vm.get("status", {}).get("printableStatus") in wanted, seconds)

    async def wait_machine(self, name: str, state: str, seconds: float = BOOT_SECONDS) -> Object:
        """The instance (for `stopped` the machine), as soon as it is `running`, has its `agent`, or is `stopped`."""
        if state == "stopped":
            return await self.printable(name, "Stopped", seconds=seconds)
        if state == "running":
            return await self.until_vmi(name, lambda v: phase(v) == "Running", seconds)
        return await self.until_vmi(name, lambda v: has(v, "AgentConnected"), seconds)

    async def console(self, name: str) -> Console:
        """The serial line, through API and agent, as virtctl has it; open until the host is closed."""
        path = f"{SUBRESOURCES}/namespaces/{self.namespace}/virtualmachineinstances/{name}/console"

        async def opened() -> Any:
            return await self._streams.enter_async_context(self.client.websocket(path, "plain.kubevirt.io"))

        return Console(await self.until(opened, f"the console of {name} opens", 60))

    async def booted(self, name: str, *, seconds: float = BOOT_SECONDS) -> Console:
        """Wait until the machine runs and its guest has its address; its console."""
        await self.wait_machine(name, "running", seconds)
        console = await self.console(name)
        await console.until("stead-guest: address", seconds)
        return console

    @contextlib.asynccontextmanager
    async def following(self, resource: Resource, name: str) -> AsyncIterator[list[Object]]:
        """Every version of the object that a watch shows while inside, in order."""
        seen: list[Object] = []

        async def follow() -> None:
            selection = Selection(self.namespace, fields=f"metadata.name={name}")
            async for event in self.client.watch(resource, selection):
                if event.type != "BOOKMARK":
                    seen.append(event.object)

        task = asyncio.create_task(follow())
        try:
            yield seen
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # the hypervisor's side ---------------------------------------------------------------------------------------

    async def qemu_pid(self, name: str) -> int:
        """Pid of the machine's QEMU; 0 = none. Fails when there are two."""
        found = [pid for pid in self.host.machine_pids() if f"guest={self.domain(name)}," in _command_line(pid)]
        assert len(found) <= 1, f"{name} runs {len(found)} times"
        return found[0] if found else 0

    def domain(self, name: str) -> str:
        """What libvirt calls a machine of ours."""
        return f"{self.settings.instance}_{self.namespace}_{name}"

    async def domains(self) -> set[str]:
        return set((await self.host.virsh("list", "--all", "--name")).split())

    async def close(self) -> None:
        await self._streams.aclose()
        await self.down()
        for pid in (self.pid("plane"), self.pid("agent")):
            if pid:
                os.kill(pid, signal.SIGKILL)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def condition(obj: Object, kind: str) -> Object | None:
    """A condition of an object."""
    return next((c for c in obj.get("status", {}).get("conditions") or [] if c["type"] == kind), None)


def has(obj: Object, kind: str, status: str = "True") -> bool:
    """Whether the object has that condition in that state."""
    found = condition(obj, kind)
    return found is not None and found["status"] == status


def phase(vmi: Object) -> str:
    return str(vmi.get("status", {}).get("phase", ""))


def uid(obj: Object) -> str:
    return str(obj["metadata"]["uid"])


def printables(seen: list[Object]) -> list[str]:
    """The printableStatus values that a machine went through, each once in a row."""
    told = [str(vm.get("status", {}).get("printableStatus") or "") for vm in seen]
    return [word for n, word in enumerate(told) if word and (n == 0 or told[n - 1] != word)]


def ticks(text: str) -> list[int]:
    """Numbers that the guest's clock printed on the console, in order."""
    words = [line.split() for line in text.replace("\r", "").split("\n")]
    return [int(line[1]) for line in words if len(line) == 2 and line[0] == "tick" and line[1].isdigit()]


@functools.cache
def _layer() -> bytes:
    """The tiny guest as a container disk that also holds its kernel."""
    files: dict[str, bytes | Path] = {
        "disk/guest.qcow2": guest_image.disk_image("qcow2"),
        "boot/vmlinuz": guest_image.kernel_path(),
        "boot/initrd": guest_image.initrd_path(),
    }
    return image_server.layer(files)


def _toml(settings: Settings) -> str:
    """Settings as TOML: strings and numbers as JSON writes them, which TOML reads."""
    lines, tables = [], []
    for key, value in msgspec.to_builtins(settings, enc_hook=str).items():
        if key == "pools":
            tables = [f'[[pools]]\nname = "{pool["name"]}"\npath = "{pool["path"]}"' for pool in value]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def settings_on(host: LibvirtHost, **more: Any) -> Settings:
    """Settings that share nothing with any other Stead."""
    instance = f"t{uuid.uuid4().hex[:6]}"
    given: dict[str, Any] = {
        "instance": instance,
        "state_dir": host.root / f"{instance}-s",
        "run_dir": host.root / f"{instance}-r",
        "user": "nobody",
        "listen_port": free_port(),
        "agent_port": free_port(),
        "host_name": host.hostname,
        "libvirt_uri": host.uri,
        "importer_allowed_networks": ("127.0.0.0/8",),
        "log_level": "debug" if os.environ.get("STEAD_TEST_DEBUG") else "info",
    }
    return Settings(**(given | more))


async def furnish(host: LibvirtHost) -> None:
    """Give the host a folder of network namespaces of its own, so that Stead's vanish with it, and a resolver."""
    resolver = host.root / "resolv.conf"
    resolver.write_text(f"nameserver {WORLD_ADDRESS}\n")
    await host.run("mount", "--bind", str(resolver), os.path.realpath("/etc/resolv.conf"))
    await host.run("mkdir", "-p", "/run/netns")
    private = host.private("/run/netns")
    private.mkdir(parents=True, exist_ok=True)
    await host.run("mount", "--bind", str(private), "/run/netns")
    await host.run("mount", "--make-shared", "/run/netns")


@contextlib.asynccontextmanager
async def running_stead(host: LibvirtHost, outer: OuterNetwork, settings: Settings) -> AsyncIterator[SteadHost]:
    """`stead up` on a host that is there already."""
    found = SteadHost(host, outer, settings)
    try:
        await found.up()
        yield found
    finally:
        await found.close()


@contextlib.asynccontextmanager
async def stead_host(
    tmp_path: Path, pool_bytes: int = 0, xfs_pool_bytes: int = 0, with_registry: bool = True, **more: Any
) -> AsyncIterator[SteadHost]:
    """See the module. `pool_bytes` makes the default pool a small file system, `xfs_pool_bytes` one that shares blocks.
    Further arguments are settings.
    """
    # Its packages come from outside the private network. (No executor here: its threads would stay outside.)
    guest_image.disk_image("qcow2")
    with outer_network() as outer, contextlib.ExitStack() as undo:
        registry = undo.enter_context(image_server.registry()) if with_registry else None
        if registry is not None:
            registry.push("tiny", "1", [_layer()])
            more["insecure_registries"] = (registry.host,)
        async with libvirt_host(tmp_path) as host:
            await furnish(host)
            if pool_bytes:
                pool = host.root / "pool"
                pool.mkdir()
                size = f"size={pool_bytes},mode=0711"
                await host.run("mount", "-t", "tmpfs", "-o", size, "stead-test-pool", str(pool))
                more["pools"] = (Pool(name="default", path=pool),)
            if xfs_pool_bytes:
                pool, image = host.root / "pool", tmp_path / "pool.xfs"
                pool.mkdir()
                with image.open("wb") as file:
                    file.truncate(xfs_pool_bytes)
                await host.run("mkfs.xfs", "-q", "-m", "reflink=1", str(image))
                await host.run("mount", "-o", "loop", str(image), str(pool))
                await host.run("chmod", "0711", str(pool))
                more["pools"] = (Pool(name="default", path=pool),)
            found = SteadHost(host, outer, settings_on(host, **more))
            found.registry = registry
            try:
                await found.up()
                yield found
            finally:
                await found.close()
                with contextlib.suppress(OSError):
                    shutil.copy(found.log, tmp_path / "stead.log")


def run_in(pid: int, *command: str) -> str:
    """Run a command in the network namespace of a process."""
    inside = ["nsenter", "-t", str(pid), "-n", *command]
    done = subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
