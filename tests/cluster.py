"""Several hosts with one Stead: a plane and an agent on the first, agents on the others, real libvirt and guests.

`async with cluster(tmp_path, 2) as found:` builds a `segment`, starts `stead up` on the first host (`found.stead`, a
`SteadHost`) and an agent on each other one, whose certificate the plane's authority has issued. Processes of a host
end with its namespace. Images come from a registry at the test's own address.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests import guest_image, image_server
from tests.segment import TEST_ADDRESS, Host, segment
from tests.stead_host import SteadHost, _layer, _toml, condition, furnish, settings_on

from stead import installation, pki
from stead.config import Settings
from stead.kinds import register

_AGENT = "import sys; from stead import config, run; run.main_agent(config.load())"
API_PORT, AGENT_PORT = 6443, 6444


class Member:
    """A host with an agent alone."""

    def __init__(self, stead: SteadHost, host: Host, settings: Settings) -> None:
        self.stead = stead
        self.host = host
        self.settings = settings
        self.log = host.root / "agent.log"
        self._process: asyncio.subprocess.Process | None = None

    def admit(self) -> None:
        """The host's certificate, signed by the plane's authority, and its folders."""
        plane = installation.Files.of(self.stead.settings)
        own = installation.Files.of(self.settings)
        for folder, mode in (
            (self.settings.state_dir, 0o755), (self.settings.run_dir, 0o755), (self.settings.agent_dir, 0o711),
            (self.settings.agent_dir / "pki", 0o700), (self.settings.state_dir / "pools", 0o711),
        ):  # fmt: skip
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            folder.chmod(mode)
        names = (self.settings.host, self.settings.agent_address)
        identity = pki.Identity(f"system:node:{self.settings.host}", ("system:nodes",), names)
        pki.ensure_certificate(plane.authority, own.agent, identity)
        own.ca.write_bytes(plane.ca.read_bytes())
        (self.settings.run_dir / "agent.pid").touch()

    async def up(self) -> None:
        """Start the agent and wait until the plane sees the host ready."""
        config = self.host.root / "agent.toml"
        config.write_text(_toml(self.settings))
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self.host.inside(sys.executable, "-P", "-c", _AGENT),
                env={**self.stead.environment, "STEAD_CONFIG": str(config)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        await self.stead.until(self._is_ready, f"{self.settings.host} is ready", 60)

    async def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, f"the agent ended: {self.tail()}"
        node = await self.stead.get(register.NODE, self.settings.host)
        ready = condition(node, "Ready") if node else None
        return bool(ready and ready["status"] == "True")

    def kill(self) -> None:
        """End the agent without a word."""
        assert self._process is not None
        pid = self.host.pid_here(installation.running_pid(self.settings, "agent"))
        if pid:
            import os
            import signal

            os.kill(pid, signal.SIGKILL)

    def tail(self, size: int = 3000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-size:] if self.log.exists() else ""


class Cluster:
    """The first host's Stead, and the others."""

    def __init__(self, stead: SteadHost, hosts: list[Host], members: list[Member]) -> None:
        self.stead = stead
        self.hosts = {host.hostname: host for host in hosts}
        self.members = {member.settings.host: member for member in members}

    def running_on(self, name: str) -> list[str]:
        """Hosts on which a process of that machine exists."""
        wanted = f"guest={self.stead.domain(name)},".encode()
        found = []
        for hostname, host in self.hosts.items():
            for pid in host.machine_pids():
                with contextlib.suppress(OSError):
                    if wanted in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found.append(hostname)
        return found


def _settings(host: Host, instance: str, **more: Any) -> Settings:
    given: dict[str, Any] = {
        "instance": instance,
        "state_dir": host.root / "s",
        "run_dir": host.root / "r",
        "listen_port": API_PORT,
        "agent_port": AGENT_PORT,
        "agent_address": host.address,
        "pod_overlay": host.address,
        "migration_tls_dir": str(host.certificates),
        "importer_allowed_networks": (f"{TEST_ADDRESS}/32",),
    }
    return settings_on(host, **(given | more))


@contextlib.asynccontextmanager
async def cluster(tmp_path: Path, count: int = 2, **more: Any) -> AsyncIterator[Cluster]:
    """See the module. Further arguments are settings of all hosts."""
    guest_image.disk_image("qcow2")  # its packages come from outside the private network
    async with segment(tmp_path, count) as (outer, hosts), contextlib.AsyncExitStack() as undo:
        registry = undo.enter_context(image_server.registry(address=TEST_ADDRESS))
        registry.push("tiny", "1", [_layer()])
        more["insecure_registries"] = (registry.host,)
        for host in hosts:
            await furnish(host)
        first, *others = hosts
        stead = SteadHost(first, outer, _settings(first, "lab", listen_address=first.address, **more))
        stead.registry = registry
        undo.push_async_callback(stead.close)
        await stead.up()
        url = f"https://{first.address}:{API_PORT}"
        members = [Member(stead, host, _settings(host, "lab", api_url=url, **more)) for host in others]
        for member in members:
            member.admit()
        await asyncio.gather(*(member.up() for member in members))
        try:
            yield Cluster(stead, hosts, members)
        finally:
            for member in members:
                (tmp_path / f"{member.settings.host}.log").write_text(member.tail(10**6))
            (tmp_path / "stead.log").write_text(stead.tail(10**6))
