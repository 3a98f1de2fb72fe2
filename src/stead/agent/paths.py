"""Opening files as root below roots of ours, with no symlink followed on the way.

A machine's process may own files that the agent opens later; whatever it puts in their place, the agent must not be
led elsewhere. Every component is opened relative to the one before with O_NOFOLLOW, and what is found must be of the
expected type. Blocking but short: callers on the event loop use a thread. No state.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
from pathlib import Path, PurePosixPath

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_beneath(root: Path, relative: str, flags: int, mode: int = 0o600) -> int:
    """A descriptor of `root/relative`. OSError (ELOOP, ENOTDIR) when a component is a symlink, ValueError for `..`."""
    parts = PurePosixPath(relative).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise ValueError(f"{relative!r} is not a path below {root}")
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        return os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory)
    finally:
        os.close(directory)


def below(path: str | os.PathLike[str], roots: tuple[Path, ...]) -> tuple[Path, str] | None:
    """(root, relative part) of the first root that `path` lies under; None if there is none. Purely textual."""
    for root in roots:
        with contextlib.suppress(ValueError):
            relative = PurePosixPath(path).relative_to(root)
            if relative.parts and ".." not in relative.parts:
                return root, str(relative)
    return None


class Facts:
    """What `inspect` found out about a disk file."""

    __slots__ = ("block", "direct_io", "preallocated", "size")

    def __init__(self, *, block: bool, size: int, direct_io: bool, preallocated: bool) -> None:
        self.block = block
        self.size = size
        self.direct_io = direct_io
        self.preallocated = preallocated


def inspect(root: Path, relative: str) -> Facts:
    """Type, size, O_DIRECT and allocation of a disk. OSError(EINVAL) when it is neither a file nor a block device."""
    descriptor = open_beneath(root, relative, os.O_RDONLY)
    try:
        found = os.fstat(descriptor)
        block = stat.S_ISBLK(found.st_mode)
        if not block and not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "neither a regular file nor a block device", f"{root}/{relative}")
        size = os.lseek(descriptor, 0, os.SEEK_END) if block else found.st_size
        full = block or (found.st_size > 0 and found.st_blocks * 512 >= found.st_size)
    finally:
        os.close(descriptor)
    return Facts(block=block, size=size, direct_io=_takes_direct_io(root, relative), preallocated=full)


def _takes_direct_io(root: Path, relative: str) -> bool:
    try:
        os.close(open_beneath(root, relative, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def give(root: Path, relative: str, uid: int, gid: int, mode: int = 0o600) -> None:
    """Make a file (or device) belong to `uid:gid` with `mode`."""
    descriptor = open_beneath(root, relative, os.O_RDONLY)
    try:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


_ACL_USER_OBJ, _ACL_USER, _ACL_GROUP_OBJ, _ACL_MASK, _ACL_OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NO_ID = 0xFFFFFFFF


def allow_reading(root: Path, relative: str, uid: int) -> None:
    """Let one more user read a file by a POSIX ACL, nobody else (linux/posix_acl_xattr.h, version 2).

    The ACL replaces an earlier one: a base is opened by its readers when they start, and stays open for them.
    """
    descriptor = open_beneath(root, relative, os.O_RDONLY)
    try:
        owner = (os.fstat(descriptor).st_mode >> 6) & 7
        entries = [
            (_ACL_USER_OBJ, owner, _NO_ID),
            (_ACL_USER, 4, uid),
            (_ACL_GROUP_OBJ, 0, _NO_ID),
            (_ACL_MASK, 4, _NO_ID),
            (_ACL_OTHER, 0, _NO_ID),
        ]
        value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
        os.setxattr(descriptor, "system.posix_acl_access", value)
    finally:
        os.close(descriptor)


def make_directory(root: Path, name: str, *, uid: int = 0, gid: int = 0, mode: int = 0o711) -> Path:
    """`root/name` as a directory with that owner and mode; kept if it is there already. Symlinks are refused."""
    root.mkdir(parents=True, exist_ok=True)
    parent = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        directory = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            os.fchown(directory, uid, gid)
            os.fchmod(directory, mode)
        finally:
            os.close(directory)
    finally:
        os.close(parent)
    return root / name


def write_file(
    root: Path, relative: str, content: bytes, *, uid: int = 0, gid: int = 0, mode: int = 0o600, durable: bool = True
) -> None:
    """Write a small file whole; readers see the old or the new one. `durable`: it survives a loss of power."""
    temporary = f"{relative}.new"
    descriptor = open_beneath(root, temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchown(stream.fileno(), uid, gid)
        os.fchmod(stream.fileno(), mode)
        stream.write(content)
        stream.flush()
        if durable:
            os.fsync(stream.fileno())
    os.replace(root / temporary, root / relative)


def remove_tree(root: Path, name: str) -> None:
    """Remove `root/name` and all below; nothing if it is not there. Never leaves `root` (rmtree by descriptors)."""
    if not name or "/" in name or name in (".", ".."):
        raise ValueError(f"{name!r} is not one name below {root}")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        shutil.rmtree(root / name)
