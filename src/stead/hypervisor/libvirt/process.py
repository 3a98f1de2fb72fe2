"""The QEMU process of a domain: its pid, its sockets' modes, its limit of tasks, and its end if libvirt cannot.

libvirt offers no call for the pid, so its pid file is read first and `/proc` searched else; either way the process must
carry the machine's uuid on its command line. Blocking; called in pool threads. A pid is used through a pidfd opened
before the check, so that a recycled pid is never signalled.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path

from stead.hypervisor.contract import Machine

PID_DIRECTORY = Path("/run/libvirt/qemu")
_SOCKET_MODE = 0o600


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
    """What libvirt does not do after a start: sockets for their owner only, and a limit of tasks.

    The limit is RLIMIT_NPROC, which counts the tasks of a uid: each machine has a uid of its own, so it bounds the
    machine. Set on the process from outside, it cannot be raised again by it.
    """
    sockets = [machine.serial_socket, machine.graphics.vnc_socket if machine.graphics else ""]
    for path in filter(None, sockets):
        with contextlib.suppress(FileNotFoundError):
            os.chmod(path, _SOCKET_MODE)
    limit = machine.isolation.pids_limit
    if limit and pid and machine.isolation.uid:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NPROC, (limit, limit))


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
