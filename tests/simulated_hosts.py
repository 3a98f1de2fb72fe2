"""Several hosts of one Stead as real processes: `stead up` with a plane, and others that joined it. No guests run.

`async with simulated_hosts(names) as cluster:` enters a private network, starts the first host with plane and
agent, lets the others join as users do (`stead token create`, `stead join`, `stead up`), each with folders, ports,
bridge and range of its own, and ends all of them. Their driver is the simulated one: what is tested is everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.outer_network import outer_network

import stead
from stead import installation
from stead.client.direct import DirectClient
from stead.client.kubeconfig import KubeconfigError
from stead.client.kubeconfig import load as load_kubeconfig
from stead.config import Settings, load
from stead.kinds import register
from stead_host import TROUBLE, condition, free_port

Object = dict[str, Any]


class Host:
    """One host: its settings file and its `stead up`."""

    def __init__(self, folder: Path, number: int, name: str, **more: Any) -> None:
        self.name, self.folder = name, folder
        self.config, self.log = folder / f"{name}.toml", folder / f"{name}.log"
        ours: dict[str, Any] = {
            "instance": f"s{os.getpid() % 10000}{number}", "state_dir": str(folder / f"{name}-s"),
            "run_dir": str(folder / f"{name}-r"), "user": "nobody", "agent_port": free_port(),
            "hypervisor": "simulated", "pod_bridge": f"sb{number}", "pod_cidr": f"10.{140 + number}.0.0/20",
            "uid_base": 1_700_000_000 + number * 65536,
        }  # fmt: skip
        lines = [f"{key} = {json.dumps(value)}" for key, value in {**ours, **more}.items()]
        self.config.write_text("\n".join(lines) + "\n")
        self._up: asyncio.subprocess.Process | None = None

    @property
    def settings(self) -> Settings:
        return load(self.config, {})

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("STEAD_", "KUBECONFIG"))}
        return {**kept, "PYTHONPATH": str(Path(stead.__file__).resolve().parent.parent), "PYTHONUNBUFFERED": "1"}

    def words(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "stead.cli.main", "--config", str(self.config), *words]

    async def stead(self, *words: str, check: bool = True, **more: str) -> tuple[int, str]:
        """A command on this host: exit code and what it printed."""
        process = await asyncio.create_subprocess_exec(
            *self.words(*words), env={**self.environment, **more}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode is not None
        assert not check or process.returncode == 0, f"stead {' '.join(words)}: {output.decode()}"
        return process.returncode, output.decode()

    async def up(self) -> None:
        with self.log.open("ab") as output:
            self._up = await asyncio.create_subprocess_exec(
                *self.words("up"), env=self.environment, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def pids(self) -> list[int]:
        """Of `stead up` and what it supervises."""
        found = [installation.running_pid(self.settings, name) for name in ("up", "plane", "agent")]
        return [pid for pid in found if pid]

    def signal(self, number: signal.Signals) -> None:
        """The same signal to all of them: a host that freezes, goes on or loses its power."""
        for pid in self.pids():
            os.kill(pid, number)

    async def down(self) -> None:
        if self._up is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._up.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._up.wait(), 20)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._up.wait()
        self._up = None

    def end_network(self) -> None:
        """End the host's DHCP server, which outlives Stead as machines do."""
        for file in (self.settings.run_dir / "network").glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2500:] if self.log.exists() else ""


class Cluster:
    """All hosts, the first with the plane. `client` is an administrator's."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        self.first = hosts[0]
        self._client: DirectClient | None = None

    @property
    def client(self) -> DirectClient:
        if self._client is None:
            self._client = DirectClient(load_kubeconfig(installation.Files.of(self.first.settings).admin_kubeconfig))
        return self._client

    async def close_client(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def until(self, wanted: Callable[[], Awaitable[Any]], what: str, seconds: float = 60.0) -> Any:
        """Wait for a true answer, which is returned."""
        trouble: object = ""
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline:
            try:
                if found := await wanted():
                    return found
            except (*TROUBLE, KubeconfigError) as error:
                trouble = error
            await asyncio.sleep(0.1)
        logs = "\n".join(f"--- {host.name}: {host.tail()}" for host in self.hosts)
        raise AssertionError(f"waited in vain until {what} {trouble}\n{logs}")

    async def until_ready(self, name: str, status: str = "True", seconds: float = 60.0) -> Object:
        async def is_so() -> Object | None:
            node = await self.client.get(register.NODE, None, name)
            return node if (condition(node, "Ready") or {}).get("status") == status else None

        found: Object = await self.until(is_so, f"host {name} is Ready={status}", seconds)
        return found

    async def machine(self, name: str, **spec: Any) -> None:
        """A machine of a few fields, without network or disks, that always runs."""
        domain = {"memory": {"guest": "64Mi"}, "devices": {"autoattachPodInterface": False}}
        template = {"spec": {"domain": domain, "networks": [], "terminationGracePeriodSeconds": 0, **spec}}
        await self.client.create(register.VIRTUAL_MACHINE, {
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"runStrategy": "Always", "template": template},
        })  # fmt: skip

    async def host_of(self, name: str, phase: str = "Running", seconds: float = 60.0) -> str:
        """Where a machine is, once its instance is in that phase."""
        seen: list[Object] = []

        async def is_there() -> str:
            vmi = await self.client.get(register.VIRTUAL_MACHINE_INSTANCE, "default", name)
            seen[:] = [vmi]
            status = vmi.get("status", {})
            return str(status.get("nodeName", "")) if status.get("phase") == phase else ""

        try:
            return str(await self.until(is_there, f"{name} is {phase}", seconds))
        except AssertionError as error:
            raise AssertionError(f"{seen[-1:]}\n{error}") from None


@contextlib.asynccontextmanager
async def simulated_hosts(names: tuple[str, ...], **more: Any) -> AsyncIterator[Cluster]:
    """See the module. `more`: settings of the first host."""
    with outer_network(), tempfile.TemporaryDirectory(prefix="stead-sim-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o711)  # the plane runs as `nobody`
        first = Host(folder, 0, names[0], host_name=names[0], listen_port=free_port(), **more)
        others = [Host(folder, number, name) for number, name in enumerate(names[1:], 1)]
        cluster = Cluster([first, *others])
        try:
            await first.up()
            await cluster.until_ready(first.name)
            for host in others:
                _, line = await first.stead("token", "create", "-o", "name")
                url = f"https://127.0.0.1:{first.settings.listen_port}"
                await host.stead("join", url, "--token", line.strip(), "--name", host.name, "--no-start")
                await host.up()
            for host in others:
                await cluster.until_ready(host.name)
            yield cluster
        finally:
            await cluster.close_client()
            for host in reversed(cluster.hosts):
                host.signal(signal.SIGCONT)
                await host.down()
                host.end_network()
