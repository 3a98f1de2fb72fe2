"""A local copy of the objects of one kind, kept true by list and watch, that tells listeners what changed.

Used by controllers and the agent over any `client.contract.Client`. Runs on one event loop: `run` is the only writer,
readers see whole objects and **must not change them**. A watch resumes at the last resourceVersion seen; when that is
too old (410) everything is listed again and the differences are told as if they had been watched. Listeners are plain
functions and must only note a key (see `queue`). Memory is bounded by what the server holds; there is no event buffer.
Follows the reflector and shared informer of client-go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple

import structlog

from stead.client.contract import Client, Object, Selection, WatchEvent
from stead.client.queue import Backoff
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

log = structlog.get_logger(__name__)

#: Listener: old object (None = added), new object (None = deleted).
Listener = Callable[[Object | None, Object | None], None]
#: Index function: the values under which an object is found.
Index = Callable[[Object], Iterable[str]]


class Key(NamedTuple):
    """Which object: namespace ("" for cluster-scoped kinds) and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def key_of(obj: Object) -> Key:
    """The key of an object."""
    metadata = obj["metadata"]
    return Key(metadata.get("namespace", ""), metadata["name"])


class NotSynced(Exception):
    """The first list did not come in time."""


class Informer:
    """See the module's prose. `idle_seconds`: a watch that is silent for so long is opened anew."""

    def __init__(
        self, client: Client, resource: Resource, selection: Selection | None = None, *, idle_seconds: float = 900.0
    ) -> None:
        self.resource = resource
        self._client = client
        self._selection = selection or Selection()
        self._idle_seconds = idle_seconds
        self._objects: dict[Key, Object] = {}
        self._index_functions: dict[str, Index] = {}
        self._indexes: dict[str, dict[str, dict[Key, None]]] = {}
        self._listeners: list[Listener] = []
        self._synced = asyncio.Event()
        self._version = ""
        self._backoff = Backoff(base=0.1, cap=30.0)

    # reading -----------------------------------------------------------------------------------------------------

    @property
    def synced(self) -> bool:
        """True once the first list has been taken in."""
        return self._synced.is_set()

    async def wait_synced(self, timeout_seconds: float = 60.0) -> None:
        """Wait for the first list. Raises `NotSynced`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._synced.wait()
        except TimeoutError:
            raise NotSynced(f"no list of {self.resource.plural} within {timeout_seconds:g} s") from None

    def get(self, namespace: str | None, name: str) -> Object | None:
        """The object, or None."""
        return self._objects.get(Key(namespace or "", name))

    def objects(self, namespace: str | None = None) -> list[Object]:
        """All objects, or those of one namespace."""
        if namespace is None:
            return list(self._objects.values())
        return [obj for key, obj in self._objects.items() if key.namespace == namespace]

    def keys(self) -> list[Key]:
        """Keys of all objects."""
        return list(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def by_index(self, index: str, value: str) -> list[Object]:
        """Objects for which the index function named `index` gave `value`, oldest first."""
        return [self._objects[key] for key in self._indexes[index].get(value, ())]

    def index_values(self, index: str) -> Iterable[str]:
        """All values that the index holds now."""
        return self._indexes[index].keys()

    # wiring ------------------------------------------------------------------------------------------------------

    def add_index(self, name: str, function: Index) -> None:
        """Keep an index; asking twice for the same name keeps the first function."""
        if name in self._index_functions:
            return
        self._index_functions[name] = function
        self._indexes[name] = {}
        for key, obj in self._objects.items():
            self._enter(name, key, obj)

    def add_listener(self, listener: Listener) -> None:
        """Tell `listener` of every change from now on, and of what is there already as additions."""
        self._listeners.append(listener)
        for obj in list(self._objects.values()):
            listener(None, obj)

    def remove_listener(self, listener: Listener) -> None:
        """Stop telling `listener`."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    # keeping true ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """List, watch, resume, list again when too far behind; until cancelled. Errors are logged and retried."""
        failures = 0
        while True:
            try:
                if not self._version:
                    await self._relist()
                if await self._follow():
                    failures = 0
            except ApiError as error:
                if error.code == 410:
                    self._version = ""
                    failures = 0
                    continue
                failures += 1
                log.warning("watch failed", kind=self.resource.kind, error=str(error), failures=failures)
            except (OSError, TimeoutError) as error:
                failures += 1
                log.warning("watch failed", kind=self.resource.kind, error=str(error), failures=failures)
            if failures:
                await asyncio.sleep(self._backoff.delay(failures))

    async def _relist(self) -> None:
        answer = await self._client.list(self.resource, self._selection)
        fresh = {key_of(obj): obj for obj in answer.items}
        for key in [key for key in self._objects if key not in fresh]:
            self._put(key, None)
        for key, obj in fresh.items():
            known = self._objects.get(key)
            if known is not None and known["metadata"].get("uid") != obj["metadata"].get("uid"):
                self._put(key, None)  # deleted and made anew while we did not look
                known = None
            if known is None or known["metadata"].get("resourceVersion") != obj["metadata"].get("resourceVersion"):
                self._put(key, obj)
        self._version = answer.resource_version
        self._synced.set()

    async def _follow(self) -> bool:
        """Apply one watch until it ends. True if anything came (so that the back-off starts anew)."""
        events = aiter(self._client.watch(self.resource, self._selection, self._version))
        heard = False
        started = asyncio.get_running_loop().time()
        try:
            while True:
                try:
                    async with asyncio.timeout(self._idle_seconds):
                        event = await anext(events)
                except (StopAsyncIteration, TimeoutError):
                    break
                heard = True
                self._apply(event)
        finally:
            await _close(events)
        if not heard and asyncio.get_running_loop().time() - started < 1.0:
            await asyncio.sleep(self._backoff.delay(3))  # a server that ends watches at once must not be hammered
        return True

    def _apply(self, event: WatchEvent) -> None:
        self._version = event.object["metadata"].get("resourceVersion", self._version)
        if event.type == "BOOKMARK":
            return
        self._put(key_of(event.object), None if event.type == "DELETED" else event.object)

    def _put(self, key: Key, obj: Object | None) -> None:
        old = self._objects.get(key)
        if obj is None and old is None:
            return
        for name in self._index_functions:
            if old is not None:
                self._leave(name, key, old)
            if obj is not None:
                self._enter(name, key, obj)
        if obj is None:
            del self._objects[key]
        else:
            self._objects[key] = obj
        for listener in list(self._listeners):
            try:
                listener(old, obj)
            except Exception:
                log.exception("a listener failed", kind=self.resource.kind, key=str(key))

    def _enter(self, name: str, key: Key, obj: Object) -> None:
        for value in self._index_functions[name](obj):
            self._indexes[name].setdefault(value, {})[key] = None

    def _leave(self, name: str, key: Key, obj: Object) -> None:
        index = self._indexes[name]
        for value in self._index_functions[name](obj):
            members = index.get(value)
            if members is not None:
                members.pop(key, None)
                if not members:
                    del index[value]


async def _close(events: AsyncIterator[Any]) -> None:
    closer = getattr(events, "aclose", None)
    if closer is not None:
        await closer()


class Informers:
    """One informer a kind, shared by all who ask; `run` keeps them all true."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._informers: dict[tuple[str, str], Informer] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._running = False

    def of(self, resource: Resource) -> Informer:
        """The informer of a kind, made on first demand (and started, if the others run already)."""
        identity = (resource.group, resource.plural)
        informer = self._informers.get(identity)
        if informer is None:
            informer = self._informers[identity] = Informer(self.client, resource)
            if self._running:
                self._start(identity)
        return informer

    def all(self) -> list[Informer]:
        """All informers made so far."""
        return list(self._informers.values())

    def start(self) -> None:
        """Start one task for each informer, also for those made later. Needs a running loop."""
        self._running = True
        for identity in self._informers:
            self._start(identity)

    async def wait_synced(self, timeout_seconds: float = 60.0) -> None:
        """Wait for the first list of every informer. Raises `NotSynced`."""
        async with asyncio.timeout(timeout_seconds + 1):
            for informer in self.all():
                await informer.wait_synced(timeout_seconds)

    async def stop(self) -> None:
        """Cancel all tasks and wait for them."""
        self._running = False
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, identity: tuple[str, str]) -> None:
        if identity not in self._tasks:
            informer = self._informers[identity]
            self._tasks[identity] = asyncio.create_task(informer.run(), name=f"informer {informer.resource.plural}")
