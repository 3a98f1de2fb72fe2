"""Namespaces of a benchmark's own: network, mounts, processes, so that nothing of it meets, or stays behind on, the
host.

`enter` runs a command as the only child of a tiny init in new namespaces and returns its exit code; when it ends,
the kernel ends whatever is left inside (guests, daemons) and the bridges, taps and rules vanish with the namespace.
`furnish` is called inside: loopback up, folders of libvirt and of named namespaces private, an unusable KVM hidden.
Needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .processes import run

#: the environment's name of the folder that everything inside is to use
ROOT = "STEAD_BENCH_ROOT"
#: daemons' folders that get an empty directory of the benchmark's each
PRIVATE = ("/run/libvirt", "/var/lib/libvirt", "/etc/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/run/netns")


def enter(arguments: Sequence[str]) -> int:
    """Run a command in namespaces of its own and wait for it."""
    command = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc",
               "--propagation", "private", *arguments]  # fmt: skip
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that whoever ends us ends all of it
    with scratch() as root, subprocess.Popen(command, env={**os.environ, ROOT: str(root)}) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            return 130


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new folder, removed afterwards. On a disk, since disks are what is measured; its path short, for sockets."""
    root = Path(tempfile.mkdtemp(prefix="sb-", dir=os.environ.get("STEAD_BENCH_DIR", "/var/tmp")))
    root.chmod(0o755)
    try:
        yield root
    finally:
        if os.environ.get("STEAD_BENCH_KEEP"):
            print(f"kept: {root}", file=sys.stderr)
        else:
            shutil.rmtree(root, ignore_errors=True)


def become_init() -> None:
    """Called first inside: the caller goes on in a child; this process reaps orphans and ends with its code."""
    child = os.fork()
    if child == 0:
        return
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has it from the terminal too
    while True:
        try:
            pid, status = os.wait()
        except InterruptedError:
            continue
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


async def furnish(root: Path, *, hide_kvm: bool) -> None:
    """Make the namespaces habitable. `root` holds what the private folders get to hold."""
    await run("ip", "link", "set", "lo", "up")
    await run("hostname", "bench")
    for folder in PRIVATE:
        private = root / folder.lstrip("/")
        await asyncio.to_thread(_make_folders, folder, private)
        await run("mount", "--bind", private, folder)
    await run("mount", "--make-shared", "/run/netns")
    hosts = root / "hosts"  # libvirt asks for the host's own name on each start
    hosts.write_text("127.0.0.1 localhost bench\n")
    await run("mount", "--bind", hosts, "/etc/hosts")
    if hide_kvm and Path("/dev/kvm").exists():
        await _hide_kvm(root / "dev")


def _make_folders(folder: str, private: Path) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    private.mkdir(parents=True, exist_ok=True)


async def _hide_kvm(private: Path) -> None:
    """A /dev without kvm: libvirt else probes QEMU anew on each start where KVM exists and does not work."""
    private.mkdir()
    await run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", private)
    nodes = [str(path) for path in sorted(Path("/dev").iterdir()) if path.name != "kvm" and not path.is_dir()]
    await run("cp", "-a", *nodes, private)
    (private / "net").mkdir()  # with a node of its own: libvirt replaces it, which must not meet the host's
    await run("mknod", "-m", "666", private / "net" / "tun", "c", "10", "200")
    for folder in ("pts", "shm"):
        if Path("/dev", folder).is_dir():
            (private / folder).mkdir()
            await run("mount", "--bind", f"/dev/{folder}", private / folder)
    await _unmount_below_dev()
    await run("mount", "--rbind", private, "/dev")


async def _unmount_below_dev() -> None:
    """What the new /dev will hide: libvirt moves each mount below /dev that it reads of, and fails on hidden ones."""
    listed = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for path in reversed(listed):
        if path.startswith("/dev/"):
            await run("umount", "--lazy", path)
