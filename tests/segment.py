"""Several hosts on this machine, joined by one segment: each with namespaces, address, libvirtd and uuid of its own.

`async with segment(tmp_path, 2) as (outer, hosts):` enters a private network (as `outer_network`), puts a bridge into
it and starts one `Host` after another behind it, at 10.99.0.11, .12 and so on; the test itself is 10.99.0.1. A host's
processes live in a pid namespace, so one kill ends them all, with or without the test's help: the holder's pipe closes
when the test's process ends, however it does. Facts: libvirt moves machines between such hosts as between real ones,
since uuid and host name differ; a domain's cgroup is named by number and name, so two hosts must not share any.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.libvirt_host import LibvirtHost
from tests.outer_network import OuterNetwork, outer_network, run

TEST_ADDRESS = "10.99.0.1"
_BRIDGE = "segment"
_QEMU_CONF = 'migrate_tls_x509_cert_dir = "{folder}"\nmigrate_tls_force = 1\ncgroup_controllers = []\n'
#: a shell as the first process of the pid namespace, since it takes in the orphans; ended when its pipe closes
_HOLD = """
unshare --mount --uts --net --pid --fork --kill-child --mount-proc --propagation slave \
    sh -c 'sleep infinity & while :; do wait; done' &
unshare=$!
read -r _
kill -9 $unshare
wait $unshare
rm -rf "$0"
"""


class Host(LibvirtHost):
    """One host of the segment, reached at `address`."""

    def __init__(self, root: Path, hostname: str, number: int) -> None:
        super().__init__(root, hostname)
        self.address = f"10.99.0.{10 + number}"
        self.certificates = root / "migration"
        self.qemu_conf = _QEMU_CONF.format(folder=self.certificates)
        self.link = f"seg{number}"
        self._first = 0

    async def open(self) -> None:
        self.certificates.mkdir(mode=0o755)  # libvirtd wants the folder at its start, QEMU the files when it migrates
        await super().open()

    async def _hold(self) -> None:
        self._holder = await asyncio.create_subprocess_exec(
            "sh", "-c", _HOLD, str(self.root), stdin=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(30):
            while not self._first:
                self._first = _first_process(self._holder.pid)
                await asyncio.sleep(0.01)

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self._first), "-m", "-u", "-n", "-p", *command]

    def pid_here(self, pid: int) -> int:
        ours = os.readlink(f"/proc/{self._first}/ns/pid")
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, StopIteration):
                if not entry.name.isdigit() or os.readlink(entry / "ns/pid") != ours:
                    continue
                lines = (entry / "status").read_text().splitlines()
                if int(next(line for line in lines if line.startswith("NSpid:")).split()[-1]) == pid:
                    return int(entry.name)
        return 0

    async def join(self, names: dict[str, str]) -> None:
        """Put this host's `eth0` onto the segment, and its neighbours' names into its hosts file."""
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", str(self._first))
        run("ip", "link", "set", self.link, "master", _BRIDGE, "up")
        for words in (
            "link set lo up",
            f"address add {self.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {TEST_ADDRESS}",
        ):
            await self.run("ip", *words.split())
        with (self.root / "hosts").open("a") as file:
            file.write("".join(f"{address} {name}\n" for name, address in names.items()))

    def cut(self) -> None:
        """Take this host's link away from the segment."""
        run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        run("ip", "link", "set", self.link, "up")

    async def close(self) -> None:
        """End everything of the host at once: its first process takes all others with it."""
        if self._holder is None:
            return
        self._keep_capabilities()
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        await self._holder.wait()
        for daemon in self._daemons.values():
            await daemon.wait()


def _first_process(shell: int) -> int:
    """Pid of the first process in the namespace that `unshare`, the shell's child, has made; 0 = not yet."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        unshare = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0]
        first = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0]
        if b"sleep infinity" in Path(f"/proc/{first}/cmdline").read_bytes():  # /proc is mounted, all is made
            return int(first)
    return 0


@contextlib.asynccontextmanager
async def segment(tmp_path: Path, count: int = 2) -> AsyncIterator[tuple[OuterNetwork, list[Host]]]:
    """See the module. Needs root."""
    with outer_network() as outer:
        run("ip", "link", "add", _BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{TEST_ADDRESS}/24", "dev", _BRIDGE)
        run("ip", "link", "set", _BRIDGE, "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        async with contextlib.AsyncExitStack() as undo:
            hosts = []
            for number in range(1, count + 1):
                root = Path(tempfile.mkdtemp(prefix="lv-"))
                root.chmod(0o755)
                hosts.append(Host(root, f"host-{'abcdefgh'[number - 1]}", number))
                undo.push_async_callback(_close, hosts[-1], tmp_path)
            await asyncio.gather(*(host.open() for host in hosts))
            names = {host.hostname: host.address for host in hosts}
            for host in hosts:
                await host.join(names)
            yield outer, hosts


async def _close(host: Host, tmp_path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.copy(host.root / "libvirtd.log", tmp_path / f"{host.hostname}-libvirtd.log")
    await host.close()
