"""Directories of the host that an administrator has registered: the only places where a path may name a disk or an
image.

Used by the command line (`path=` of `stead create`) and the agent (which opens such paths). The list is a JSON file in
the configuration folder; every look-up opens component by component and follows no symbolic link.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path, PurePosixPath

import msgspec


class NotRegistered(Exception):
    """The path lies below no registered directory, or cannot be reached without following a link."""


class Directory(msgspec.Struct, frozen=True):
    """A registered directory under a short name."""

    name: str
    path: str


def load(file: Path) -> tuple[Directory, ...]:
    """The registered directories; none when the file is absent."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=tuple[Directory, ...])
    except FileNotFoundError:
        return ()


def register(file: Path, directory: Directory) -> None:
    """Add or replace one by name. ValueError when the path is not an absolute path of a real directory."""
    path = Path(directory.path)
    if not path.is_absolute() or path.is_symlink() or not path.is_dir():
        raise ValueError(f"{directory.path} is not an absolute path of a directory")
    kept = tuple(d for d in load(file) if d.name != directory.name)
    _save(file, (*kept, directory))


def unregister(file: Path, name: str) -> bool:
    """Take one off the list; False when it was not on it. Files in it stay."""
    known = load(file)
    kept = tuple(d for d in known if d.name != name)
    if kept == known:
        return False
    _save(file, kept)
    return True


def _save(file: Path, directories: tuple[Directory, ...]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(directories)) + b"\n")
    os.chmod(temporary, 0o640)
    temporary.replace(file)


def directory_of(path: str, directories: tuple[Directory, ...]) -> Directory:
    """The registered directory that a path lies below (the longest). NotRegistered says what to type."""
    wanted = PurePosixPath(path)
    if not wanted.is_absolute() or ".." in wanted.parts:
        raise NotRegistered(f"{path} is not an absolute path without '..'")
    fitting = [d for d in directories if wanted.is_relative_to(d.path) and wanted != PurePosixPath(d.path)]
    if not fitting:
        raise NotRegistered(f"{path} lies below no registered directory; an administrator can register one with: "
                            f"stead pool register NAME {wanted.parent}")  # fmt: skip
    return max(fitting, key=lambda d: len(d.path))


def open_below(path: str, directories: tuple[Directory, ...], flags: int = os.O_RDONLY) -> int:
    """Open a regular file below a registered directory, following no link; the caller closes the descriptor."""
    root = directory_of(path, directories)
    parts = PurePosixPath(path).relative_to(root.path).parts
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, folder)
            for part in parts[:-1]:
                folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                stack.callback(os.close, folder)
            fd = os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError as error:
            raise NotRegistered(f"{path} cannot be opened below {root.path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotRegistered(f"{path} is not a regular file")
    return fd
