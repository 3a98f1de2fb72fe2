"""A store whose Secrets are sealed: what lies on disk is ciphertext, what callers see is plain.

Wraps any `store.contract.Store`; made by the composition root. Values below `PREFIXES` are sealed on the way in and
opened on the way out; everything else passes through untouched. Opening the store opens every sealed value once, so
that a missing key stops the plane before it serves anything, and seals anew what is plain or sealed with an older key:
that is how a store of an earlier release comes forward and how a new key takes over. No state but the keyring;
concurrency is the inner store's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from stead.store.contract import Conflict, Delete, Entry, Event, Put, Range, Store, StoreFailure, in_parts
from stead.store.keyring import Keyring, KeyringError

#: collections whose values are sealed
PREFIXES = ("/registry/core/secrets/",)
#: how often sealing anew starts over because another plane wrote meanwhile
TRIES = 20


class SealedStore:
    """See the module's prose. Create it with `await SealedStore.open(store, keyring)`."""

    def __init__(self, store: Store, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring
        #: values that `open` sealed anew
        self.resealed = 0

    @classmethod
    async def open(cls, store: Store, keyring: Keyring) -> SealedStore:
        """Check that every value can be opened, then seal anew what is due. Raises StoreFailure; nothing is lost."""
        sealed = cls(store, keyring)
        for prefix in PREFIXES:
            for tries in range(TRIES):
                try:
                    await sealed._seal_anew(prefix)
                    break
                except Conflict:  # another plane writes
                    if tries == TRIES - 1:
                        raise StoreFailure("Secrets change too fast to be sealed anew: start again") from None
        return sealed

    async def _seal_anew(self, prefix: str) -> None:
        stored, keyring = (await self._store.range(prefix)).entries, self._keyring
        opened = [(entry, self._plain(entry.key, entry.value)) for entry in stored]
        due = [(entry, plain) for entry, plain in opened if not keyring.is_current(entry.value)]
        for part in in_parts([Put(at.key, keyring.seal(at.key, plain), at.mod_revision) for at, plain in due]):
            await self._store.commit(part)
            self.resealed += len(part)

    @property
    def revision(self) -> int:
        return self._store.revision

    @property
    def trouble(self) -> str | None:
        return self._store.trouble

    async def latest(self) -> int:
        return await self._store.latest()

    @property
    def is_shared(self) -> bool:
        return self._store.is_shared

    async def get(self, key: str) -> Entry | None:
        entry = await self._store.get(key)
        return self._opened(entry) if entry is not None else None

    async def range(self, prefix: str, *, limit: int = 0, start_after: str = "") -> Range:
        found = await self._store.range(prefix, limit=limit, start_after=start_after)
        return msgspec.structs.replace(found, entries=tuple(self._opened(entry) for entry in found.entries))

    async def commit(self, writes: Sequence[Put | Delete]) -> int:
        return await self._store.commit([self._closed(write) for write in writes])

    async def watch(self, after: int) -> AsyncIterator[Sequence[Event]]:
        async for batch in self._store.watch(after):
            yield [self._told(event) for event in batch]

    async def history(self, after: int) -> Sequence[Event]:
        return [self._told(event) for event in await self._store.history(after)]

    async def compact(self, revision: int) -> None:
        await self._store.compact(revision)

    async def close(self) -> None:
        await self._store.close()

    def _plain(self, key: str, value: bytes) -> bytes:
        try:
            return self._keyring.open(key, value)
        except KeyringError as error:
            raise StoreFailure(f"{error}; nothing was changed: give the plane the key that this store needs") from error

    def _opened(self, entry: Entry) -> Entry:
        if not entry.key.startswith(PREFIXES):
            return entry
        return msgspec.structs.replace(entry, value=self._plain(entry.key, entry.value))

    def _closed(self, write: Put | Delete) -> Put | Delete:
        if isinstance(write, Delete) or not write.key.startswith(PREFIXES):
            return write
        return Put(write.key, self._keyring.seal(write.key, write.value), write.expected)

    def _told(self, event: Event) -> Event:
        if not event.key.startswith(PREFIXES):
            return event
        value, previous = event.value, event.previous
        return Event(
            event.revision,
            event.key,
            None if value is None else self._plain(event.key, value),
            None if previous is None else self._plain(event.key, previous),
        )
