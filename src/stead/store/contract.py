"""The contract of a store: an etcd-shaped, revisioned map from key to bytes, with compare-and-swap and watch.

Called by `server.registry` only. One global revision counts every committed write. A write that was acknowledged
survives power loss. Events are published after commit, in revision order, each exactly once. One contract suite
(`tests/contract/test_store.py`) runs on every implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """A stored value. Revisions are those of the commits that created and last changed the key."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int


class Event(msgspec.Struct, frozen=True):
    """One committed change. `value` is None on deletion; `previous` is the value before, None on creation."""

    revision: int
    key: str
    value: bytes | None
    previous: bytes | None


class Put(msgspec.Struct, frozen=True):
    """Write `value`. `expected` is the key's required mod_revision: 0 = must be absent, None = unconditional."""

    key: str
    value: bytes
    expected: int | None


class Delete(msgspec.Struct, frozen=True):
    """Remove the key; `expected` as in `Put`."""

    key: str
    expected: int | None


class Range(msgspec.Struct, frozen=True):
    """Answer of a range read: entries in key order, the revision it is consistent at, and whether more follow."""

    entries: tuple[Entry, ...]
    revision: int
    more: bool


class Conflict(Exception):
    """A compare-and-swap lost: `key` was at `actual` (0 = absent), as whoever has read up to `revision` sees."""

    def __init__(self, key: str, actual: int, revision: int = 0) -> None:
        super().__init__(f"{key} is at revision {actual}")
        self.key = key
        self.actual = actual
        self.revision = max(actual, revision)


class Compacted(Exception):
    """The revision asked for is older than the retained history, which starts at `oldest`."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"compacted up to revision {oldest}")
        self.oldest = oldest


class StoreFailure(Exception):
    """The store could not commit or read (disk full, I/O error). Nothing of the write took effect."""


class Store(Protocol):
    """See the module's prose. All methods may raise `StoreFailure`."""

    @property
    def revision(self) -> int:
        """Revision of the last commit."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether other processes write to the store too, so that what this one holds back binds nobody else."""
        ...

    async def get(self, key: str) -> Entry | None:
        """The current entry, or None."""
        ...

    async def range(self, prefix: str, *, limit: int = 0, start_after: str = "") -> Range:
        """Current entries below `prefix` in key order; `limit` 0 = all; `start_after` is an exclusive lower bound."""
        ...

    async def commit(self, writes: Sequence[Put | Delete]) -> int:
        """Apply all writes or none, durably, and return the new revision. Raises `Conflict`."""
        ...

    def watch(self, after: int) -> AsyncIterator[Sequence[Event]]:
        """Batches of events with revision > `after`, in order, without end. Raises `Compacted`."""
        ...

    async def history(self, after: int) -> Sequence[Event]:
        """The next events with revision > `after`, some at a time, none at the end. Raises `Compacted`."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget history up to `revision`; current values stay."""
        ...

    async def close(self) -> None:
        """Finish commits in hand, then close."""
        ...
