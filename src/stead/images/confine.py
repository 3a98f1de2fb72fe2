"""What a child does to itself before it touches bytes from outside: another uid, limits, no new privileges, seccomp.

`confine` is called by the import worker once its modules are loaded; run as a program (`python -m
stead.images.confine`) this module confines itself and then becomes the program named, which is how `qemu-img` runs.
Linux on x86-64 gets the system call filter; elsewhere the other measures stand alone. Sources: prctl(2), seccomp(2),
linux/audit.h, the x86-64 system call table.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys

import msgspec

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_BIT = 0x40000000
_ALLOW, _EPERM, _KILL = 0x7FFF0000, 0x00050001, 0x80000000

#: x86-64 numbers of calls that no transfer needs, answered with EPERM
_DENIED = {
    "ptrace": 101, "syslog": 103, "setuid": 105, "setgid": 106, "setgroups": 116, "mknod": 133, "uselib": 134,
    "personality": 135, "pivot_root": 155, "adjtimex": 159, "chroot": 161, "acct": 163, "settimeofday": 164,
    "mount": 165,
    "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "init_module": 175,
    "delete_module": 176, "quotactl": 179, "clock_settime": 227, "kexec_load": 246, "add_key": 248, "request_key": 249,
    "keyctl": 250, "mknodat": 259, "unshare": 272, "move_pages": 279, "perf_event_open": 298, "fanotify_init": 300,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
    "kcmp": 312, "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425,
    "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432,
    "pidfd_open": 434, "pidfd_getfd": 438, "mount_setattr": 442,
}  # fmt: skip
_EXEC = {"execve": 59, "execveat": 322}
_SOCKETS = {"socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "socketpair": 53, "accept4": 288}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """`uid` (also the gid) to become when root, 0 = stay; sizes in bytes. `network` and `programs` are what stays
    open.
    """

    uid: int = 0
    file_bytes: int = 0
    memory_bytes: int = 2 << 30
    network: bool = False
    programs: bool = False


def confine(limits: Limits) -> None:
    """Give up everything that is not needed, for good. Raises OSError when a measure cannot be taken."""
    os.umask(0o077)
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CPU, 6 * 3600),
        (resource.RLIMIT_FSIZE, limits.file_bytes or resource.RLIM_INFINITY),
    ):
        resource.setrlimit(kind, (value, value))
    # exceeding RLIMIT_FSIZE shall be an error (EFBIG) that is reported, not a death
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if limits.uid and os.geteuid() == 0:
        resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))
        os.setgroups([])
        os.setresgid(limits.uid, limits.uid, limits.uid)
        os.setresuid(limits.uid, limits.uid, limits.uid)
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, _PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    if platform.machine() == "x86_64":
        denied = list(_DENIED.values())
        if not limits.network:
            denied += _SOCKETS.values()
        if not limits.programs:
            denied += _EXEC.values()
        _install_filter(libc, denied)


def _prctl(libc: ctypes.CDLL, option: int, value: int, pointer: int = 0) -> None:
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(pointer), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def filter_program(denied: list[int]) -> bytes:
    """The BPF program: foreign architectures and the x32 table die, listed calls get EPERM, all else goes through."""

    def statement(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, true, false, value)

    load_word, equal, greater_equal, answer = 0x20, 0x15, 0x35, 0x06
    numbers = sorted(set(denied))
    if len(numbers) > 250:
        raise ValueError("a jump of this filter spans at most 255 statements")
    program = [
        statement(load_word, 4),
        statement(equal, _AUDIT_ARCH_X86_64, 1, 0),
        statement(answer, _KILL),
        statement(load_word, 0),
        statement(greater_equal, _X32_BIT, 0, 1),
        statement(answer, _KILL),
    ]
    program += [statement(equal, number, len(numbers) - index, 0) for index, number in enumerate(numbers)]
    program += [statement(answer, _ALLOW), statement(answer, _EPERM)]
    return b"".join(program)


def _install_filter(libc: ctypes.CDLL, denied: list[int]) -> None:
    code = filter_program(denied)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    holder = ctypes.create_string_buffer(header, len(header))
    _prctl(libc, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(holder))


def main(arguments: list[str]) -> None:
    """`LIMITS-AS-JSON PROGRAM ARGUMENT…`: confine, then become the program."""
    limits = msgspec.json.decode(arguments[0], type=Limits)
    confine(limits)
    os.execvp(arguments[1], arguments[1:])  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
