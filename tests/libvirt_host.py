"""A private libvirtd for tests: own mount and UTS namespaces, own folders and host uuid, reached through a unix socket.

Used by every test that needs real libvirt: `async with libvirt_host(tmp_path) as host:` gives `host.uri`. The daemons
inherit the network namespace of the calling thread, so a test that entered an own one keeps all its traffic there.
A holder process owns the namespaces; each daemon is started into them and ended by its pid. Machines survive
`kill_libvirtd()`, as in real life, and are ended by the teardown through libvirt's own pid files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

PRIVATE_FOLDERS = ("/run/libvirt", "/var/lib/libvirt", "/etc/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
START_SECONDS = 60.0
# libvirt probes QEMU for seconds; what it found is handed to the next host, and libvirt itself judges its validity.
CAPABILITIES = Path(os.environ.get("STEAD_TEST_CACHE", "/var/cache/stead-tests")) / "libvirt-capabilities"


class LibvirtHost:
    """One emulated host. `root` lies outside the private folders, so both sides see the same paths below it."""

    def __init__(self, root: Path, hostname: str) -> None:
        self.root = root
        self.hostname = hostname
        self.host_uuid = str(uuid.uuid4())
        #: further lines of qemu.conf
        self.qemu_conf = ""
        self._holder: asyncio.subprocess.Process | None = None
        self._daemons: dict[str, asyncio.subprocess.Process] = {}

    @property
    def socket(self) -> Path:
        return self.root / "sock" / "libvirt-sock"

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.socket}"

    @property
    def libvirtd_pid(self) -> int:
        return self._daemons["libvirtd"].pid

    def private(self, path: str) -> Path:
        """Where a path of one of the private folders lies as seen from the test."""
        return self.root / path.lstrip("/")

    async def open(self) -> None:
        for folder in PRIVATE_FOLDERS:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.private(folder).mkdir(parents=True)
        (self.root / "sock").mkdir()
        self._write_configuration()
        if CAPABILITIES.is_dir():
            shutil.copytree(CAPABILITIES, self.private("/var/cache/libvirt"), dirs_exist_ok=True)
        await self._hold()
        await self.run("mount", "--make-rprivate", "/")
        for folder in PRIVATE_FOLDERS:
            await self.run("mount", "--bind", str(self.private(folder)), folder)
        await self._hide_kvm()
        await self.run("hostname", self.hostname)
        # libvirt resolves its own name on each start of a machine: without this, by DNS, for seconds.
        (self.root / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.hostname}\n")
        await self.run("mount", "--bind", str(self.root / "hosts"), "/etc/hosts")
        await self._start("virtlogd")
        await _until(self.private("/run/libvirt/virtlogd-sock").exists, "virtlogd listens")
        await self.start_libvirtd()

    async def _hold(self) -> None:
        """Start the process that owns the namespaces."""
        self._holder = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "--uts", "--propagation", "slave", "sleep", "infinity"
        )
        await _until(self._has_namespaces, "the holder process has its namespaces")

    async def _hide_kvm(self) -> None:
        """Where a /dev/kvm exists that cannot run guests, libvirt probes QEMU anew on each start (4 s): tests are
        emulated anyway, and see a /dev of their own without it. (A cover mounted on the node breaks libvirt's own.)
        """
        if not Path("/dev/kvm").exists():
            return
        private = self.root / "dev"
        private.mkdir()
        await self.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(private))
        nodes = [str(path) for path in sorted(Path("/dev").iterdir()) if path.name != "kvm" and not path.is_dir()]
        await self.run("cp", "-a", *nodes, str(private))
        # Its own: libvirt removes and makes /dev/net/tun in what is mounted there.
        await self.run("mkdir", str(private / "net"))
        await self.run("mknod", "-m", "666", str(private / "net/tun"), "c", "10", "200")
        for folder in ("pts", "shm"):
            if Path("/dev", folder).is_dir():
                await self.run("mkdir", str(private / folder))
                await self.run("mount", "--rbind", f"/dev/{folder}", str(private / folder))
        # Mounts that lie hidden below would be moved by libvirt in vain when it gives a machine its own /dev.
        hidden = "for m in /dev/pts /dev/shm; do while mountpoint -q $m; do umount -l $m; done; done"
        await self.run("sh", "-c", hidden)
        await self.run("mount", "--rbind", str(private), "/dev")

    def _write_configuration(self) -> None:
        libvirtd = (
            f'unix_sock_dir = "{self.root}/sock"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'host_uuid = "{self.host_uuid}"\nlog_outputs = "3:file:{self.root}/libvirtd.log"\n'
        )
        self.private("/etc/libvirt/libvirtd.conf").write_text(libvirtd)
        self.private("/etc/libvirt/virtlogd.conf").write_text("")
        self.private("/etc/libvirt/qemu.conf").write_text(self.qemu_conf)

    def _has_namespaces(self) -> bool:
        assert self._holder is not None
        return os.readlink(f"/proc/{self._holder.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")

    def inside(self, *command: str) -> list[str]:
        """The command line that runs `command` as a process of this host."""
        assert self._holder is not None
        return ["nsenter", "-t", str(self._holder.pid), "-m", "-u", *command]

    def pid_here(self, pid: int) -> int:
        """The test's number of a process that this host knows by `pid`; 0 when it has ended."""
        return pid

    async def run(self, *command: str) -> str:
        """Run one command inside the host and return its output; raises AssertionError when it fails."""
        process = await asyncio.create_subprocess_exec(
            *self.inside(*command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await asyncio.wait_for(process.communicate(), START_SECONDS)
        assert process.returncode == 0, f"{command} ended with {process.returncode}: {output.decode()}"
        return output.decode()

    async def virsh(self, *arguments: str) -> str:
        return await self.run("virsh", "-c", self.uri, *arguments)

    async def _start(self, daemon: str) -> None:
        pid_file = f"/run/libvirt/{daemon}.pid"
        self.private(pid_file).unlink(missing_ok=True)
        with (self.root / f"{daemon}.out").open("ab") as output:
            self._daemons[daemon] = await asyncio.create_subprocess_exec(
                *self.inside(daemon, "-p", pid_file),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    async def start_libvirtd(self) -> None:
        """Start libvirtd (again) and wait until it answers."""
        self.socket.unlink(missing_ok=True)
        await self._start("libvirtd")
        await _until(self.socket.exists, "libvirtd listens")
        await self.virsh("list")

    async def kill_libvirtd(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End libvirtd alone; its machines go on."""
        await _end(self._daemons.pop("libvirtd"), number)

    async def restart_libvirtd(self) -> None:
        await self.kill_libvirtd(signal.SIGTERM)
        await self.start_libvirtd()

    def machine_pids(self) -> list[int]:
        """The QEMU processes of this host, by libvirt's pid files."""
        pids = []
        for pid_file in self.private("/run/libvirt/qemu").glob("*.pid"):
            if pid_file.stem == "driver":  # libvirtd's own
                continue
            with contextlib.suppress(ValueError, OSError):
                pids.append(self.pid_here(int(pid_file.read_text())))
        return [pid for pid in pids if pid]

    def _helper_pids(self) -> list[int]:
        """Processes that libvirt left in this host's mount namespace (swtpm, passt)."""
        assert self._holder is not None
        ours = os.readlink(f"/proc/{self._holder.pid}/ns/mnt")
        known = {self._holder.pid, *(daemon.pid for daemon in self._daemons.values())}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in known:
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "ns/mnt") == ours:
                        found.append(int(entry.name))
        return found

    async def close(self) -> None:
        if self._holder is None or self._holder.returncode is not None:
            return
        if "libvirtd" in self._daemons:
            await self.kill_libvirtd()
        for pid in [*self.machine_pids(), *self._helper_pids()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self._daemons.values():
            await _end(daemon, signal.SIGTERM)
        await _end(self._holder, signal.SIGKILL)
        self._keep_capabilities()
        shutil.rmtree(self.root, ignore_errors=True)

    def _keep_capabilities(self) -> None:
        found = self.private("/var/cache/libvirt")
        if not CAPABILITIES.is_dir() and any(found.glob("qemu/capabilities/*")):
            CAPABILITIES.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=CAPABILITIES.parent))
            shutil.copytree(found, draft, dirs_exist_ok=True)
            with contextlib.suppress(OSError):  # another test was first
                draft.rename(CAPABILITIES)
            shutil.rmtree(draft, ignore_errors=True)


async def _until(condition, what: str) -> None:  # type: ignore[no-untyped-def]  # any nullary predicate
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited {START_SECONDS:.0f} s in vain until {what}"
        await asyncio.sleep(0.01)


async def _end(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
    try:
        await asyncio.wait_for(process.wait(), 10)
    except TimeoutError:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def libvirt_host(tmp_path: Path, hostname: str = "host-a") -> AsyncIterator[LibvirtHost]:
    """A running private libvirtd. Its folders are short paths of their own (a socket path has 107 bytes at most);
    what failed is kept as `libvirtd.log` below `tmp_path`.
    """
    root = Path(tempfile.mkdtemp(prefix="lv-"))
    root.chmod(0o755)
    host = LibvirtHost(root, hostname)
    try:
        await host.open()
        yield host
    finally:
        with contextlib.suppress(OSError):
            shutil.copy(root / "libvirtd.log", tmp_path / f"{hostname}-libvirtd.log")
        await host.close()
