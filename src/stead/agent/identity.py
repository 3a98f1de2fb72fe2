"""One numeric user id a machine, so that an escaped hypervisor process cannot open another machine's disk.

Ids come from a pool of 65,536 above a base and are recorded in one file, so that a machine keeps its id over restarts
of the agent and a freed id is used again last. Writing syncs to disk, so callers on the event loop use a thread; a
lock keeps calls apart. The file is a few kilobytes, written whole and renamed.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec

POOL_SIZE = 65536
#: first of our vsock addresses: 0 to 2 are reserved, the low ones are what others take
VSOCK_CIDS = 0x10000


class _Book(msgspec.Struct):
    """What the file holds: owner (a machine's uid) → offset in the pool, and where to look for a free one next."""

    owners: dict[str, int] = {}
    next: int = 0


class Identities:
    """The book of ids. `base` + offset is both user and group id."""

    def __init__(self, file: Path, base: int) -> None:
        self._file = file
        self._base = base
        self._lock = threading.Lock()
        self._book = self._read()
        self._changed = False

    def _read(self) -> _Book:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Book)
        except FileNotFoundError:
            return _Book()

    def vsock_cid(self, number: int) -> int:
        """Address of the vsock device of the machine with that id: unique on a host, since ids are."""
        return VSOCK_CIDS + number - self._base

    def owner_ids(self) -> dict[str, int]:
        """All owners with their ids."""
        return {owner: self._base + offset for owner, offset in self._book.owners.items()}

    def take(self, owner: str) -> int:
        """The id of `owner`: the one it has, else a free one. RuntimeError when all are taken."""
        with self._lock:
            number = self._base + self._take(owner)
        self.keep()
        return number

    def reserve(self, owner: str) -> int:
        """As `take`, without touching the disk: `keep` must be through before anything runs under the id."""
        with self._lock:
            return self._base + self._take(owner)

    def keep(self) -> None:
        """Write the book, if it changed since it was last written. Blocking."""
        with self._lock:
            if self._changed:
                self._write()
                self._changed = False

    def _take(self, owner: str) -> int:
        if owner in self._book.owners:
            return self._book.owners[owner]
        taken = set(self._book.owners.values())
        if len(taken) >= POOL_SIZE:
            raise RuntimeError(f"all {POOL_SIZE} user ids for machines are taken")
        offset = self._book.next % POOL_SIZE
        while offset in taken:
            offset = (offset + 1) % POOL_SIZE
        self._book.owners[owner] = offset
        self._book.next = (offset + 1) % POOL_SIZE
        self._changed = True
        return offset

    def free(self, owner: str) -> None:
        """Give the id back. No-op for a stranger."""
        with self._lock:
            if self._book.owners.pop(owner, None) is not None:
                self._changed = True
        self.keep()

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.encode(self._book))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self._file)
