"""Where a repository's objects lie: the contract, and the one in a directory (also on NFS).

Objects are written once, under names of their content, and never changed: two writers cannot harm each other, and a
crash leaves at most a file under `tmp/`. All calls block; callers use threads. No symbolic link is followed below the
directory, and nothing but plain files is read. A local cache of small objects is `Cached`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from stead.storage.backup.keys import BackupError

ROOT = "repository.json"
KINDS = ("packs", "indexes", "maps", "points", "writers")
_NAME = re.compile(r"(packs|indexes|maps|points|writers)/[0-9a-f]{64}")


def check_name(name: str) -> None:
    """BackupError Invalid unless it is a name of an object."""
    if name != ROOT and not _NAME.fullmatch(name):
        raise BackupError("Invalid", f"{name[:80]!r} is no name of an object of a backup repository")


def content_name(kind: str, data: bytes) -> str:
    """`kind/` and the SHA-256 of the object as it is stored: whoever reads it can prove it, without a key."""
    return f"{kind}/{hashlib.sha256(data).hexdigest()}"


class Store(Protocol):
    """Objects by name. Raises BackupError: NotFound, NoSpace or Failed."""

    def put(self, name: str, data: bytes) -> None:
        """Durable on return, and wholly there or not at all."""
        ...

    def get(self, name: str, limit: int) -> bytes:
        """The whole object; Damaged when it is longer than `limit`."""
        ...

    def get_part(self, name: str, offset: int, length: int) -> bytes:
        """So many bytes; fewer at the object's end."""
        ...

    def list(self, kind: str) -> Iterator[tuple[str, int]]:
        """(name, size) of all objects of a kind; what is no object of ours is passed over."""
        ...

    def delete(self, name: str) -> None:
        """No-op when it is not there."""
        ...

    def sweep(self, older_seconds: float) -> int:
        """Remove what broken-off writes have left; returns how many."""
        ...


class Directory:
    """A repository's folder, mode 0700. Packs and maps lie in 256 folders each by their first two digits."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _path(self, name: str) -> Path:
        check_name(name)
        kind, _, digits = name.partition("/")
        return self.path / kind if not digits else self.path / kind / digits[:2] / digits

    def put(self, name: str, data: bytes) -> None:
        target = self._path(name)
        draft = self.path / "tmp" / os.urandom(16).hex()
        with _told("write", self.path, name):
            self._make_folder(draft.parent)
            self._make_folder(target.parent)
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                self._write(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            self._rename(draft, target)
            _sync(target.parent)

    @staticmethod
    def _write(fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    @staticmethod
    def _rename(draft: Path, target: Path) -> None:
        draft.rename(target)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while folder != self.path.parent:
            _sync(folder)
            folder = folder.parent

    def get(self, name: str, limit: int) -> bytes:
        with _told("read", self.path, name), self._opened(name) as (fd, size):
            if size > limit:
                raise BackupError("Damaged", f"{name} has {size} bytes; more than {limit} are not read")
            return _read(fd, 0, size)

    def get_part(self, name: str, offset: int, length: int) -> bytes:
        with _told("read", self.path, name), self._opened(name) as (fd, size):
            return _read(fd, offset, max(min(length, size - offset), 0))

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[int, int]]:
        fd = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise BackupError("Damaged", f"{name} is not a plain file")
            yield fd, info.st_size
        finally:
            os.close(fd)

    def list(self, kind: str) -> Iterator[tuple[str, int]]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path / kind) as folders:
            for folder in sorted(folders, key=lambda entry: entry.name):
                if folder.is_dir(follow_symlinks=False):
                    yield from self._list_folder(kind, Path(folder.path))

    @staticmethod
    def _list_folder(kind: str, folder: Path) -> Iterator[tuple[str, int]]:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{kind}/{entry.name}"
                if _NAME.fullmatch(name) and entry.is_file(follow_symlinks=False):
                    yield name, entry.stat(follow_symlinks=False).st_size

    def delete(self, name: str) -> None:
        with _told("remove", self.path, name), contextlib.suppress(FileNotFoundError):
            self._unlink(self._path(name))

    @staticmethod
    def _unlink(path: Path) -> None:
        path.unlink()

    def sweep(self, older_seconds: float) -> int:
        before, removed = time.time() - older_seconds, 0
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path / "tmp") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime <= before:
                        Path(entry.path).unlink()
                        removed += 1
        return removed


class Cached:
    """A store whose indexes and maps are also kept in a local folder, so that they are fetched once.

    They are kept as they are stored, sealed, and proved by their names when they are taken from the folder.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, Directory(folder)

    def get(self, name: str, limit: int) -> bytes:
        kind = name.partition("/")[0]
        if kind not in ("indexes", "maps"):
            return self._store.get(name, limit)
        with contextlib.suppress(BackupError):
            data = self._folder.get(name, limit)
            if content_name(kind, data) == name:
                return data
        data = self._store.get(name, limit)
        with contextlib.suppress(BackupError):
            self._folder.put(name, data)
        return data

    def put(self, name: str, data: bytes) -> None:
        self._store.put(name, data)
        if name.startswith(("indexes/", "maps/")):
            with contextlib.suppress(BackupError):
                self._folder.put(name, data)

    def get_part(self, name: str, offset: int, length: int) -> bytes:
        return self._store.get_part(name, offset, length)

    def list(self, kind: str) -> Iterator[tuple[str, int]]:
        return self._store.list(kind)

    def delete(self, name: str) -> None:
        self._store.delete(name)
        self._folder.delete(name)

    def sweep(self, older_seconds: float) -> int:
        return self._store.sweep(older_seconds)


class Counted:
    """A store that counts the bytes that pass: what a figure is made of."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.read_bytes = self.written_bytes = 0

    def put(self, name: str, data: bytes) -> None:
        self.written_bytes += len(data)
        self._store.put(name, data)

    def get(self, name: str, limit: int) -> bytes:
        data = self._store.get(name, limit)
        self.read_bytes += len(data)
        return data

    def get_part(self, name: str, offset: int, length: int) -> bytes:
        data = self._store.get_part(name, offset, length)
        self.read_bytes += len(data)
        return data

    def list(self, kind: str) -> Iterator[tuple[str, int]]:
        return self._store.list(kind)

    def delete(self, name: str) -> None:
        self._store.delete(name)

    def sweep(self, older_seconds: float) -> int:
        return self._store.sweep(older_seconds)


def _read(fd: int, offset: int, length: int) -> bytes:
    parts = []
    while length > 0 and (part := os.pread(fd, length, offset)):
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _told(operation: str, place: Path, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{operation} of {name} in the repository {place}: {error.strerror or error}"
        if isinstance(error, FileNotFoundError):
            raise BackupError("NotFound", where) from error
        reason = "NoSpace" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Failed"
        raise BackupError(reason, where) from error
