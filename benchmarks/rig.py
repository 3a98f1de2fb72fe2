"""A Stead of the benchmark's own, with a libvirtd of its own; or the plane alone; or one that runs already.

Everything is a real process as users run it: `stead up` with `STEAD_*` settings, `libvirtd`, `virtlogd`. All of it
lies below one folder and is ended by `close`. With `--kubeconfig` nothing is started and nothing is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from stead import installation
from stead.client.direct import DirectClient
from stead.client.kubeconfig import load
from stead.config import Settings
from stead.hypervisor.libvirt.emulation import probe
from stead.kinds import register
from stead.kube.errors import ApiError

from . import isolation
from .processes import run, until

START_SECONDS = 30.0
#: what a benchmark's importers may reach: the benchmark's own server on loopback
ALLOWED_NETWORKS = "127.0.0.0/8"


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        return int(probe_socket.getsockname()[1])


class Libvirt:
    """A libvirtd and a virtlogd inside the benchmark's namespaces."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "sock" / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self._daemons: list[asyncio.subprocess.Process] = []

    async def open(self) -> None:
        """Start both and wait until libvirtd answers."""
        self.socket.parent.mkdir()
        Path("/etc/libvirt/libvirtd.conf").write_text(
            f'unix_sock_dir = "{self.socket.parent}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'host_uuid = "{uuid.uuid4()}"\nlog_outputs = "3:file:{self.root}/libvirtd.log"\n'
        )
        for name in ("virtlogd", "qemu"):
            Path(f"/etc/libvirt/{name}.conf").write_text("")
        for daemon, listens in (("virtlogd", Path("/run/libvirt/virtlogd-sock")), ("libvirtd", self.socket)):
            with (self.root / f"{daemon}.out").open("wb") as output:
                self._daemons.append(
                    await asyncio.create_subprocess_exec(
                        daemon, "-p", f"/run/libvirt/{daemon}.pid", stdin=asyncio.subprocess.DEVNULL, stdout=output,
                        stderr=output,
                    )
                )  # fmt: skip
            await until(_exists(listens), f"{daemon} listens", START_SECONDS)
        for question in ("capabilities", "domcapabilities"):  # a libvirtd that has run before has asked QEMU all this
            await run("virsh", "-c", self.uri, question)

    async def close(self) -> None:
        """End both; guests die with the namespaces."""
        for daemon in reversed(self._daemons):
            await _end(daemon)


def _exists(path: Path):  # type: ignore[no-untyped-def]  # a nullary predicate
    async def exists() -> bool:
        return path.exists()

    return exists


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), 20)
    except TimeoutError:
        process.kill()
        await process.wait()


class Rig:
    """What benchmarks use: `client`, `kubeconfig`, `libvirt_uri`, `pool` (the directory of the default pool)."""

    def __init__(self, root: Path, settings: Settings | None, libvirt: Libvirt | None) -> None:
        self.root = root
        self.settings = settings
        self.libvirt = libvirt
        self.libvirt_uri = libvirt.uri if libvirt else ""
        self.kubeconfig = installation.Files.of(settings).admin_kubeconfig if settings else Path()
        self.pool = settings.all_pools[0].path if settings else Path()
        self._client: DirectClient | None = None
        self._process: asyncio.subprocess.Process | None = None
        #: further settings, by name
        self.given: dict[str, str] = {}
        #: what Python runs as Stead
        self.program: tuple[str, ...] = ("-m", "stead.cli.main")

    @property
    def client(self) -> DirectClient:
        """A client with all rights."""
        if self._client is None:
            self._client = DirectClient(load(self.kubeconfig))
        return self._client

    def pids(self) -> dict[str, int]:
        """Pids of `up`, `plane` and `agent`; 0 = not running."""
        assert self.settings is not None
        return {name: installation.running_pid(self.settings, name) for name in ("up", "plane", "agent")}

    async def up(self, *command: str) -> float:
        """Start Stead (`up`, or the given command) and wait until it is ready; returns the seconds that took."""
        assert self.settings is not None
        log = self.root / "stead.log"
        (self.root / "stead.toml").touch()  # so that the host's own settings are not read
        begun = time.monotonic()
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", *self.program, *(command or ("up",)), env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        try:
            await until(self._is_ready if not command else self._answers, "Stead is ready", START_SECONDS)
        except TimeoutError as error:
            words = log.read_text(encoding="utf-8", errors="replace")[-1500:]
            raise TimeoutError(f"{error}; its log ends: {words}") from error
        return time.monotonic() - begun

    def _environment(self) -> dict[str, str]:
        settings = self.settings
        assert settings is not None
        kept = {key: value for key, value in os.environ.items() if not key.startswith("STEAD_")}
        source = str(Path(installation.__file__).resolve().parent.parent)
        given = {
            "instance": settings.instance, "state_dir": settings.state_dir, "run_dir": settings.run_dir,
            "user": settings.user, "listen_port": settings.listen_port, "agent_port": settings.agent_port,
            "host_name": settings.host_name, "libvirt_uri": settings.libvirt_uri,
            "importer_allowed_networks": ALLOWED_NETWORKS, "log_format": "text", "config": self.root / "stead.toml",
            **self.given,
        }  # fmt: skip
        paths = [source, *(path for path in kept.get("PYTHONPATH", "").split(os.pathsep) if path)]
        named = {f"STEAD_{key.upper()}": str(value) for key, value in given.items()}
        return {**kept, **named, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}

    async def _answers(self) -> bool:
        if not self.kubeconfig.exists() or (self._process is not None and self._process.returncode is not None):
            return False
        try:
            async with asyncio.timeout(5):
                await self.client.request_text("GET", "/readyz")
            return True
        except (ApiError, OSError, TimeoutError, aiohttp.ClientError):
            await self._forget()
            return False

    async def _is_ready(self) -> bool:
        assert self.settings is not None
        if not await self._answers():
            return False
        try:
            node = await self.client.get(register.NODE, None, self.settings.host)
        except ApiError:
            return False
        conditions = node.get("status", {}).get("conditions") or []
        return any(found["type"] == "Ready" and found["status"] == "True" for found in conditions)

    async def _forget(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def down(self) -> None:
        """Stop Stead; machines go on."""
        await self._forget()
        if self._process is not None:
            await _end(self._process)
            self._process = None

    async def kill(self) -> None:
        """`kill -9` of what `up` started."""
        await self._forget()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                self._process.kill()
            await self._process.wait()
            self._process = None

    async def close(self) -> None:
        """End all of ours."""
        await self.down()
        if self.libvirt is not None:
            await self.libvirt.close()


def _account() -> str:
    """Whom the plane runs as: the usual account where it exists."""
    if os.geteuid() != 0:
        return ""
    for name in ("stead", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return ""


def settings_below(root: Path, libvirt_uri: str) -> Settings:
    """Settings of an installation that shares nothing with others."""
    return Settings(
        instance="bench", state_dir=root / "state", run_dir=root / "run", user=_account(), listen_port=free_port(),
        agent_port=free_port(), host_name="bench", libvirt_uri=libvirt_uri,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def folder() -> AsyncIterator[Path]:
    """A folder for everything, removed afterwards (what is mounted inside namespaces: by who made them)."""
    if isolation.ROOT in os.environ:
        yield Path(os.environ[isolation.ROOT])
        return
    with isolation.scratch() as root:
        yield root


@contextlib.asynccontextmanager
async def host() -> AsyncIterator[Rig]:
    """Inside the namespaces: libvirtd runs; Stead is not started yet (`await rig.up()`)."""
    async with folder() as root:
        found = await probe(shutil.which("qemu-system-x86_64") or "qemu-system-x86_64")
        await isolation.furnish(root, hide_kvm=found.software_emulation)
        libvirt = Libvirt(root)
        await libvirt.open()
        rig = Rig(root, settings_below(root, libvirt.uri), libvirt)
        try:
            yield rig
        finally:
            await rig.close()


@contextlib.asynccontextmanager
async def plane(*program: str) -> AsyncIterator[Rig]:
    """A plane alone, ready; no root needed. `program`: what Python runs instead of `stead`."""
    async with folder() as root:
        settings = settings_below(root, "")
        await asyncio.to_thread(installation.prepare, settings)
        rig = Rig(root, settings, None)
        rig.program = program or rig.program
        if settings.user:
            owner = pwd.getpwnam(settings.user)
            for path in (settings.state_dir / "log",):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        await rig.up("plane")
        try:
            yield rig
        finally:
            await rig.close()


@contextlib.asynccontextmanager
async def running(kubeconfig: Path, libvirt_uri: str, pool: Path | None) -> AsyncIterator[Rig]:
    """A Stead that runs already. Its own process is left alone."""
    async with folder() as root:
        rig = Rig(root, None, None)
        rig.kubeconfig, rig.libvirt_uri, rig.pool = kubeconfig, libvirt_uri, pool or Path()
        try:
            yield rig
        finally:
            await rig.close()
