"""A plane whose power can be cut: SQLite's file system, with a record of what was really made durable.

Run as a program (`python power.py FOLDER FULL|OFF plane`), it puts a stand-in before SQLite's own VFS that copies a
file into FOLDER whenever SQLite syncs it, then runs `stead plane`. `cut`, called when that process is dead, makes of
the store what a power loss may leave: of each file the last synced content, and of what was written since any pages
or none. OFF turns off synchronous writes in the store: the control, whose acknowledged writes must be found lost.

Only `xSync` is replaced, in a copy of the method table that SQLite's unix VFS gives to each file.
"""

from __future__ import annotations

import ctypes
import os
import random
import sqlite3
import sys
from pathlib import Path
from typing import Any

PAGE = 4096
_SYNC_SLOT = 5  # sqlite3_io_methods: iVersion, xClose, xRead, xWrite, xTruncate, xSync, …
_SLOTS = 19
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
# The name goes through as the very pointer: SQLite keeps it, and looks for parameters behind it.
_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("iVersion", ctypes.c_int), ("szOsFile", ctypes.c_int), ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p), ("zName", ctypes.c_char_p), ("pAppData", ctypes.c_void_p), ("xOpen", _OPEN),
        ("rest", ctypes.c_void_p * 15),
    ]  # fmt: skip


class _Recorder:
    """The stand-in; must live as long as the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[int, Path] = {}
        self._kept: list[Any] = []
        self._tables: dict[int, int] = {}

    def install(self) -> None:
        """Make it the VFS of every connection from now on. Raises OSError where SQLite cannot be reached."""
        library = ctypes.CDLL("libsqlite3.so.0")
        library.sqlite3_libversion.restype = ctypes.c_char_p
        if library.sqlite3_libversion().decode() != sqlite3.sqlite_version:
            raise OSError("Python does not use the system's SQLite: power loss cannot be simulated")
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
        original = library.sqlite3_vfs_find(None)
        copy = _Vfs.from_buffer_copy(original.contents)
        copy.zName = b"recorded"
        plain_open = original.contents.xOpen

        def opened(_vfs: int, name: int | None, file: int, flags: int, out: int | None) -> int:
            answer = int(plain_open(ctypes.addressof(original.contents), name, file, flags, out))
            if answer == 0 and name:
                self._paths[file] = Path(os.fsdecode(ctypes.string_at(name)))
                self._replace_sync(file)
            return answer

        copy.xOpen = _OPEN(opened)
        self._kept += [copy, copy.xOpen, original]
        library.sqlite3_vfs_register.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.sqlite3_vfs_register(ctypes.addressof(copy), 1)

    def _replace_sync(self, file: int) -> None:
        pointer = ctypes.c_void_p.from_address(file)
        table = pointer.value
        if not table:
            return
        if table not in self._tables:
            methods = (ctypes.c_void_p * _SLOTS).from_buffer_copy((ctypes.c_void_p * _SLOTS).from_address(table))
            plain = _SYNC(methods[_SYNC_SLOT] or 0)

            def synced(which: int, flags: int) -> int:
                answer = int(plain(which, flags))
                if answer == 0:
                    self._record(self._paths[which])
                return answer

            callback = _SYNC(synced)
            methods[_SYNC_SLOT] = ctypes.cast(callback, ctypes.c_void_p).value
            self._kept += [methods, callback, plain]
            self._tables[table] = ctypes.addressof(methods)
        pointer.value = self._tables[table]

    def _record(self, path: Path) -> None:
        """All that is in the file now is durable; whole or not at all, for this process may be killed here."""
        part = self._folder / f"{path.name}.part"
        try:
            part.write_bytes(path.read_bytes())
        except FileNotFoundError:
            return
        os.replace(part, self._folder / path.name)


def cut(store: Path, folder: Path, draw: random.Random) -> None:
    """The power fails: `store` and its log become what may be left. Raises OSError when nothing was recorded."""
    names = (store.name, f"{store.name}-wal")
    if not (folder / store.name).exists() and not (folder / names[1]).exists():
        raise OSError(f"nothing in {folder}: SQLite did not use the stand-in")
    for name in names:
        path, durable = store.with_name(name), folder / name
        before = durable.read_bytes() if durable.exists() else b""
        after = path.read_bytes() if path.exists() else b""
        left = _torn(before, after, draw)
        stat = store.stat()
        path.write_bytes(left)
        os.chown(path, stat.st_uid, stat.st_gid)
        path.chmod(stat.st_mode & 0o777)
    for name in (f"{store.name}-shm",):  # memory, not disk
        store.with_name(name).unlink(missing_ok=True)


def _torn(before: bytes, after: bytes, draw: random.Random) -> bytes:
    """`before`, with some of the pages in which `after` differs; now and then none or all but the last."""
    share = draw.choice((0.0, 0.0, 0.5, 0.9))
    size = max(len(before), len(after) if share else 0)
    result = bytearray(before.ljust(size, b"\0"))
    for start in range(0, size, PAGE):
        piece = after[start : start + PAGE]
        if piece and piece != before[start : start + PAGE] and draw.random() < share:
            result[start : start + len(piece)] = piece
    return bytes(result)


def main(folder: str, synchronous: str, *command: str) -> None:
    """See the module's prose."""
    _recorder.append(_Recorder(Path(folder)))
    _recorder[0].install()
    if synchronous == "OFF":
        from stead.store.sqlite import SqliteStore

        plain = SqliteStore._connect

        def connect(self: SqliteStore) -> sqlite3.Connection:
            connection = plain(self)
            connection.execute("PRAGMA synchronous=OFF")
            return connection

        SqliteStore._connect = connect  # type: ignore[method-assign]  # the control breaks the store on purpose
    from stead.cli.main import main as stead

    stead(list(command))


_recorder: list[_Recorder] = []

if __name__ == "__main__":
    main(*sys.argv[1:])
