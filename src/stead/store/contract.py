"""The contract of a store: an etcd-shaped, revisioned map from key to bytes, with compare-and-swap and watch.

Called by `server.registry` only. One global revision counts every committed write. A write that was acknowledged
survives power loss. Events are published after commit, in revision order, each exactly once; those of one commit come
in one batch, and may share its revision. One contract suite
(`tests/contract/test_store.py`) runs on every implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol

import msgspec

#: Writes that one commit may hold (etcd takes 128 operations a transaction), and bytes of values of several writes
#: (etcd takes 1.5 MiB a request unless it is told otherwise).
MAX_WRITES = 100
MAX_BYTES = 512 * 1024


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


def in_parts(writes: Sequence[Put]) -> Iterator[list[Put]]:
    """The writes, in order, in as few commits as any store takes."""
    part: list[Put] = []
    size = 0
    for write in writes:
        if part and (len(part) == MAX_WRITES or size + len(write.value) > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append(write)
        size += len(write.value)
    if part:
        yield part


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


class Unavailable(StoreFailure):
    """The store cannot be reached, or too few of its members run. Nothing of the write took effect."""


class Unanswered(StoreFailure):
    """A write was sent and no answer came: it may have taken effect, or may do so yet."""


class TooLarge(StoreFailure):
    """One write, or all of a commit, has more bytes than the store takes. Nothing took effect."""


class Store(Protocol):
    """See the module's prose. All methods may raise `StoreFailure`."""

    @property
    def revision(self) -> int:
        """Revision of the last commit that this process knows of."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be used at the moment, or None."""
        ...

    async def latest(self) -> int:
        """Revision of the last commit of whomever: all that was acknowledged before the call is at or below it."""
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
        """Apply all writes (`MAX_WRITES` at most) or none, durably; the new revision. Raises `Conflict`."""
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
