"""The QEMU process of a domain: its pid, its sockets' modes, its limit of tasks, and its end if libvirt cannot.

libvirt offers no call for the pid, so its pid file is read first and `/proc` searched else; either way the process must
carry the machine's uuid on its command line. Blocking; called in pool threads. A pid is used through a pidfd opened
before the check, so that a recycled pid is never signalled.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
from pathlib import Path

from stead.hypervisor.contract import Machine

PID_DIRECTORY = Path("/run/libvirt/qemu")
_SOCKET_MODE = 0o600
_PIDS_V1 = Path("/sys/fs/cgroup/pids")
_PIDS_PARENT = "stead"
_MACHINE_CGROUP = re.compile(r"^0::(/.*/[^/]*qemu[^/]*)(?:/(?:libvirt|emulator|vcpu).*)?$", re.MULTILINE)


def find_pid(uid: str, domain: str, known: int = 0) -> int:
    """Pid of the machine's QEMU, or 0. `known` is an earlier answer, checked again first."""
    if known and _is_machine(known, uid):
        return known
    with contextlib.suppress(OSError, ValueError):
        pid = int((PID_DIRECTORY / f"{domain}.pid").read_text())
        if _is_machine(pid, uid):
            return pid
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _is_machine(int(entry), uid):
            return int(entry)
    return 0


def _is_machine(pid: int, uid: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    # `-uuid` and the value stand side by side; other tools' command lines may name the uuid, too.
    return any(words[at] == b"-uuid" and words[at + 1] == uid.encode() for at in range(len(words) - 1))


def confine(machine: Machine, pid: int) -> None:
    """What libvirt does not do after a start: sockets for their owner only, and a limit of tasks."""
    sockets = [machine.serial_socket, machine.graphics.vnc_socket if machine.graphics else ""]
    for path in filter(None, sockets):
        with contextlib.suppress(FileNotFoundError):
            os.chmod(path, _SOCKET_MODE)
    if machine.isolation.pids_limit and pid:
        limit_tasks(machine.uid, machine.isolation.pids_limit, pid)


def limit_tasks(uid: str, limit: int, pid: int) -> str:
    """Bound the tasks of a machine; returns what holds the bound, or an empty string when nothing could.

    By the pids controller: that of the machine's own cgroup (version 2), or a cgroup made for it (version 1, where
    libvirt makes none). Else by RLIMIT_NPROC, which counts the tasks of a uid, and a machine has a uid of its own.
    """
    path = _unified_limit(pid)
    if path is None and (_PIDS_V1 / "cgroup.procs").exists():
        folder = _PIDS_V1 / _PIDS_PARENT / uid
        path = folder / "pids.max"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    if path is not None:
        with contextlib.suppress(OSError):
            path.write_text(str(limit))
            if _PIDS_V1 in path.parents:
                (path.parent / "cgroup.procs").write_text(str(pid))
            return str(path)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        resource.prlimit(pid, resource.RLIMIT_NPROC, (limit, limit))
        return "RLIMIT_NPROC"
    return ""


def _unified_limit(pid: int) -> Path | None:
    """`pids.max` of the machine's scope under cgroup version 2: the ancestor that libvirt named after the machine."""
    with contextlib.suppress(OSError):
        found = _MACHINE_CGROUP.search(Path(f"/proc/{pid}/cgroup").read_text())
        if found is not None:
            path = Path("/sys/fs/cgroup") / found.group(1).lstrip("/") / "pids.max"
            return path if path.exists() else None
    return None


def release_limit(uid: str) -> None:
    """Remove the cgroup that `limit_tasks` made; nothing when there is none or a process is still in it."""
    with contextlib.suppress(OSError):
        (_PIDS_V1 / _PIDS_PARENT / uid).rmdir()


def forget_limits() -> None:
    """Remove the folder of those cgroups, with the last of them; part of the removal of Stead."""
    with contextlib.suppress(OSError):
        (_PIDS_V1 / _PIDS_PARENT).rmdir()


def prepare_nvram(machine: Machine, template: str) -> None:
    """The machine's UEFI variables, from the firmware's template, owned by the machine; kept when there are some.

    libvirt would make the file for its default user, which is not the machine's. The name is created exclusively, so
    that nothing planted there is followed.
    """
    path = machine.firmware.nvram
    if not template or os.path.lexists(path):
        return
    content = Path(template).read_bytes()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        if machine.isolation.uid:
            os.fchown(stream.fileno(), machine.isolation.uid, machine.isolation.gid or machine.isolation.uid)


def remove_sockets(machine: Machine) -> None:
    """Sockets of a machine that did not start."""
    for path in filter(None, [machine.serial_socket, machine.graphics.vnc_socket if machine.graphics else ""]):
        with contextlib.suppress(OSError):
            os.unlink(path)


def is_stopped(pid: int) -> bool:
    """Whether the process is suspended by a signal (SIGSTOP or a debugger): it cannot act on SIGTERM."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def kill(uid: str, domain: str, known: int = 0) -> bool:
    """SIGKILL the machine's QEMU. Returns whether there was one."""
    pid = find_pid(uid, domain, known)
    if not pid:
        return False
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not _is_machine(pid, uid):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    finally:
        os.close(handle)
