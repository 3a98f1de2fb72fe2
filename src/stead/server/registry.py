"""Objects and the store: keys, stored bytes, resourceVersions, and reads from memory.

Called by `verbs`, `watching`, `authn`, `authz` and `reviews`. What is stored is the object's JSON without its
resourceVersion, with apiVersion, kind and metadata first; the resourceVersion is the revision of the last write and
is put into the bytes on the way out, so that nothing is parsed or encoded again for a read. A parsed object is shared
by all who ask for it: **never mutate one**. All reads are answered by the watch cache, on the event loop; one that must
see what other planes have acknowledged calls `catch_up` before.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError
from stead.store.contract import (
    Compacted,
    Delete,
    Entry,
    Event,
    Put,
    Store,
    StoreFailure,
    TooLarge,
    Unanswered,
    Unavailable,
)
from stead.store.watch import Cache, Subscription

Object = dict[str, Any]

#: parsed objects kept; enough for what controllers and RBAC touch again and again
_PARSED = 4096
_FIRST = ("apiVersion", "kind")
_METADATA = b'"metadata":{'

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


def stored_bytes(obj: Object) -> bytes:
    """The bytes kept for an object: its JSON without resourceVersion, identity first."""
    metadata = {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}
    ordered: Object = {key: obj[key] for key in _FIRST if key in obj}
    ordered["metadata"] = metadata
    for key, value in obj.items():
        if key not in ordered:
            ordered[key] = value
    return _encoder.encode(ordered)


def with_revision(value: bytes, revision: int) -> bytes:
    """Stored bytes with `metadata.resourceVersion` put in."""
    return value.replace(_METADATA, b'"metadata":{"resourceVersion":"%d",' % revision, 1)


def as_version(body: bytes, resource: Resource, version: str) -> bytes:
    """An object's bytes under another served version of its group."""
    if version == resource.version or not resource.group:
        return body
    old = f'"apiVersion":"{resource.group}/{resource.version}"'.encode()
    return body.replace(old, f'"apiVersion":"{resource.group}/{version}"'.encode(), 1)


class Record:
    """One state of one object: stored bytes, revision, and the parsed object once somebody needs it."""

    __slots__ = ("_body", "_obj", "frames", "key", "revision", "value")

    def __init__(self, key: str, revision: int, value: bytes) -> None:
        self.key = key
        self.revision = revision
        self.value = value
        self._obj: Object | None = None
        self._body: bytes | None = None
        #: projections already encoded, by the shape that was asked for; shared by all watchers
        self.frames: dict[Any, bytes] = {}

    @property
    def obj(self) -> Object:
        """The parsed object with its resourceVersion. Shared: never mutate."""
        if self._obj is None:
            obj: Object = _decoder.decode(self.value)
            if self.revision:
                obj["metadata"]["resourceVersion"] = str(self.revision)
            self._obj = obj
        return self._obj

    @property
    def body(self) -> bytes:
        """JSON with the resourceVersion; made once."""
        if self._body is None:
            # Revision 0 is that of a dry run's create: it has none.
            self._body = with_revision(self.value, self.revision) if self.revision else self.value
        return self._body


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What a store that other machines keep says of itself, as a client reads it."""
    try:
        yield
    except TooLarge as error:
        raise ApiError("RequestEntityTooLarge", f"the store refuses the object: {error}") from error
    except Unavailable as error:
        text = f"the store cannot be reached; nothing was changed: {error}"
        raise ApiError("ServiceUnavailable", text, {"retryAfterSeconds": 1}) from error
    except Unanswered as error:
        text = f"Timeout: the store did not answer, and the change may have taken effect or not: {error}"
        raise ApiError("Timeout", text) from error
    except StoreFailure as error:
        raise ApiError("InternalError", f"Internal error occurred: {error}") from error


class Registry:
    """See the module's prose."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self._store = store
        self.cache = cache
        self._records: OrderedDict[tuple[str, int], Record] = OrderedDict()
        self._lines: dict[Any, dict[tuple[int, str], bytes]] = {}
        self._stamps: dict[str, tuple[int, Subscription]] = {}

    @property
    def revision(self) -> int:
        """The revision that reads are answered at."""
        return self.cache.revision

    def prefix(self, resource: Resource, namespace: str = "") -> str:
        """Key prefix of a collection, or of one namespace of it."""
        stored = register.EVENT if resource.kind == "Event" and resource.builtin else resource
        base = f"/registry/{stored.group or 'core'}/{stored.plural}/"
        return f"{base}{namespace}/" if namespace and resource.namespaced else base

    def key(self, resource: Resource, namespace: str, name: str) -> str:
        """The key of an object."""
        return f"{self.prefix(resource, namespace)}{name}"

    def record(self, key: str, revision: int, value: bytes) -> Record:
        """The shared record of one state of an object."""
        at = (key, revision)
        found = self._records.get(at)
        if found is None:
            found = self._records[at] = Record(key, revision, value)
            if len(self._records) > _PARSED:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(at)
        return found

    def record_of(self, entry: Entry) -> Record:
        """The shared record of a current entry."""
        return self.record(entry.key, entry.mod_revision, entry.value)

    def lines_of(self, shape: Any) -> dict[tuple[int, str], bytes]:
        """Lines of the newest events by revision and key, as watchers of one shape get them; for those who want all."""
        return self._lines.setdefault(shape, {})

    def get(self, resource: Resource, namespace: str, name: str) -> Record | None:
        """The current state of an object."""
        entry = self.cache.get(self.key(resource, namespace, name))
        return self.record_of(entry) if entry is not None else None

    def peek(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The current object, shared."""
        record = self.get(resource, namespace, name)
        return record.obj if record is not None else None

    def peek_all(self, resource: Resource, namespace: str = "") -> list[Object]:
        """All current objects of a kind, shared, in key order."""
        entries, _ = self.cache.list(self.prefix(resource, namespace))
        return [self.record_of(entry).obj for entry in entries]

    def entries(self, resource: Resource, namespace: str = "") -> tuple[list[Entry], int]:
        """Current entries of a kind in key order and the revision they are true at."""
        return self.cache.list(self.prefix(resource, namespace))

    def stamp(self, resource: Resource) -> int:
        """A number that changes whenever an object of the kind does."""
        prefix = self.prefix(resource)
        number, subscription = self._stamps.get(prefix, (0, None))
        if subscription is None or subscription.ended:
            self._stamps[prefix] = (number + 1, self.cache.subscribe(prefix, self.cache.revision))
            return number + 1
        if subscription.take():
            number += 1
            self._stamps[prefix] = (number, subscription)
        return number

    def subscribe(self, resource: Resource, namespace: str, after: int) -> Subscription:
        """Changes after a revision. Raises `Compacted`."""
        return self.cache.subscribe(self.prefix(resource, namespace), after)

    @property
    def is_shared(self) -> bool:
        """Whether other planes write to the store too."""
        return self._store.is_shared

    async def commit(self, writes: Sequence[Put | Delete]) -> int:
        """Write all or nothing, and return once reads show it. Raises `store.contract.Conflict`, 413, 503 and 504."""
        with _told():
            revision = await self._store.commit(writes)
        await self.cache.wait_for(revision)
        return revision

    async def catch_up(self) -> bool:
        """Wait until reads show all that any plane had acknowledged when this was called; whether that was more.

        Raises 503 and 504.
        """
        with _told():
            revision = await self._store.latest()
        if revision <= self.cache.revision:
            return False
        await self.cache.wait_for(revision)
        return True

    async def settle(self, revision: int) -> None:
        """Wait until reads show `revision` (after a lost race)."""
        await self.cache.wait_for(revision)


__all__ = ["Compacted", "Event", "Object", "Record", "Registry", "as_version", "stored_bytes", "with_revision"]
