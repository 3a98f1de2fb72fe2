"""Watches: from a start point to an endless, ordered stream of events, over chunks or WebSocket frames.

Called by `app` (HTTP, WebSocket) and `client.local`. A watcher follows one subscription of the watch cache; the bytes
of an event are made once for each shape and shared by all watchers. A watcher that cannot keep up is closed and lists
again. Follows W1 to W7. One task for each watcher, on the event loop; over HTTP that task sleeps while the client keeps
up, and events are written as the cache tells them (`send_by`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable

import msgspec

from stead.kube.errors import ApiError, cause
from stead.server.reading import Selector, options_invalid, parse_revision, selector_from
from stead.server.registry import Compacted, Record, Registry
from stead.server.request import Query
from stead.server.shapes import Shape
from stead.store.contract import Event
from stead.store.watch import Overrun, Subscription

#: seconds between bookmarks, and how long before its end a watch sends the last one
BOOKMARK_SECONDS = 60.0
LAST_BOOKMARK_SECONDS = 2.0
#: a watch without timeoutSeconds ends somewhere between once and twice this, seconds
DEFAULT_SECONDS = 1800.0
#: longest wait for more events before the watcher looks at its deadlines, seconds
_TICK_SECONDS = 1.0

#: newest lines that are kept for the other watchers of a shape
_SHARED = 16

_encoder = msgspec.json.Encoder()
_INITIAL_END = {"k8s.io/initial-events-end": "true"}


class WatchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a watch, checked. `revision` None = unset; `seconds` is how long it lasts."""

    selector: Selector = Selector()
    revision: int | None = None
    bookmarks: bool = False
    send_initial: bool | None = None
    seconds: float = DEFAULT_SECONDS


def watch_options(resource_selector: Selector, query: Query) -> WatchOptions:
    """The options of a watch request. Raises 400 and 422."""
    causes: list[dict[str, str]] = []
    match = query.get("resourceVersionMatch") or ""
    initial = query.flag("sendInitialEvents") if query.has("sendInitialEvents") else None
    field = "resourceVersionMatch"
    if query.get("continue"):
        text = "Forbidden: resourceVersionMatch is forbidden when continue is provided"
        causes.append(cause(field, text, "FieldValueForbidden"))
    elif initial is not None and match != "NotOlderThan":
        text = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        causes.append(cause(field, text, "FieldValueForbidden"))
    elif initial is None and match:
        text = "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        causes.append(cause(field, text, "FieldValueForbidden"))
    if match and match != "NotOlderThan":
        text = f'Unsupported value: "{match}": supported values: "NotOlderThan"'
        causes.append(cause(field, text, "FieldValueNotSupported"))
    if causes:
        raise options_invalid(causes)
    text = query.get("resourceVersion") or ""
    try:
        revision = parse_revision(text) if text else None
    except ValueError as error:
        raise ApiError("BadRequest", str(error)) from error
    return WatchOptions(
        selector=resource_selector, revision=revision, bookmarks=query.flag("allowWatchBookmarks"),
        send_initial=initial, seconds=_seconds(query),
    )  # fmt: skip


def _seconds(query: Query) -> float:
    try:
        seconds = int(query.get("timeoutSeconds") or "0")
    except ValueError:
        seconds = 0
    return float(seconds) if seconds > 0 else DEFAULT_SECONDS * (1 + random.random())  # noqa: S311 - spreads load


class Change(msgspec.Struct, frozen=True):
    """One event as a watcher sees it: ADDED, MODIFIED, DELETED with a record, or BOOKMARK at a revision."""

    type: str
    record: Record | None = None
    revision: int = 0
    annotations: dict[str, str] | None = None


class Watch:
    """One watcher: iterate `changes()` once, then `close()`."""

    def __init__(self, registry: Registry, shape: Shape, namespace: str, options: WatchOptions) -> None:
        self._registry = registry
        self._shape = shape
        self._namespace = namespace
        self._options = options
        self._subscription: Subscription | None = None
        self._sent = 0
        #: where the stream started, or its last bookmark
        self._marked = 0
        self._name = options.selector.fields.exact("metadata.name")
        self._shape_key = shape.key
        #: what all watchers without a selector share, or None
        self._shared = None if options.selector or shape.projection == "Table" else registry.lines_of(shape.key)
        self._is_first = True
        self._is_idle = False

    def open(self) -> list[Change]:
        """Subscribe; the changes with which the stream starts. Raises ApiError("Expired") when too old."""
        options, registry = self._options, self._registry
        wants_state = options.send_initial if options.send_initial is not None else not options.revision
        if wants_state:
            entries, revision = registry.entries(self._shape.resource, self._namespace)
            self._subscription = registry.subscribe(self._shape.resource, self._namespace, revision)
            records = (registry.record_of(entry) for entry in entries)
            initial = [Change("ADDED", record) for record in records if self._selects(record)]
            self._sent = self._marked = revision
            if options.send_initial and options.bookmarks:
                initial.append(Change("BOOKMARK", None, revision, _INITIAL_END))
            return initial
        revision = options.revision or registry.revision
        try:
            self._subscription = registry.subscribe(self._shape.resource, self._namespace, revision)
        except Compacted as error:
            message = f"too old resource version: {revision} ({error.oldest})"
            raise ApiError("Expired", message) from error
        self._sent = self._marked = revision
        return []

    async def changes(self) -> AsyncIterator[list[Change]]:
        """Batches of changes until the time is up or the cache closes. Raises ApiError("Expired") on overrun."""
        subscription = self._subscription
        if subscription is None:
            raise RuntimeError("open the watch first")
        started = time.monotonic()
        ends = started + self._options.seconds
        next_bookmark = min(started + BOOKMARK_SECONDS, ends - LAST_BOOKMARK_SECONDS)
        if next_bookmark <= started + 0.5:
            next_bookmark = float("inf")
        while (now := time.monotonic()) < ends:
            batch = [change for event in subscription.take() if (change := self._change(event)) is not None]
            if batch:
                yield batch
                continue
            if subscription.ended:
                break
            if now >= next_bookmark:
                next_bookmark = (
                    ends - LAST_BOOKMARK_SECONDS if now + BOOKMARK_SECONDS > ends else now + BOOKMARK_SECONDS
                )
                if next_bookmark <= now:
                    next_bookmark = float("inf")
                if bookmark := self._bookmark():
                    yield [bookmark]
            await self._wait(subscription, min(ends, next_bookmark) - now)
        if subscription.ended:
            try:
                async for _ in subscription:
                    pass
            except Overrun:
                raise ApiError(
                    "Expired", f"too old resource version: {self._sent} ({self._registry.revision})"
                ) from None

    async def _wait(self, subscription: Subscription, seconds: float) -> None:
        self._is_idle = True
        try:
            async with asyncio.timeout(max(0.001, seconds)):
                await subscription.wait()
        except TimeoutError:
            return
        finally:
            self._is_idle = False

    def send_by(self, write: Callable[[bytes], bool]) -> None:
        """Give events to `write` as they come, without waking this watch's task; where it returns False, the task does.

        `write` takes whole lines, never waits, and refuses (having taken nothing) a client that does not keep up.
        """
        subscription = self._subscription
        if subscription is None:
            raise RuntimeError("open the watch first")

        def deliver() -> bool:
            if not self._is_idle:
                return False  # the task is sending, and what has come since is behind that
            events = subscription.peek()
            if self._shared is not None and len(events) == 1:
                known = self._shared.get((events[0].revision, events[0].key))
                if known is not None and write(known):
                    self._sent = events[0].revision
                    subscription.take()
                    return True
            sent, first = self._sent, self._is_first
            lines = self.lines([change for event in events if (change := self._change(event)) is not None])
            if len(events) == len(lines) == 1 and self._shared is not None:
                self._share(events[0], lines[0])
            if lines and not write(lines[0] if len(lines) == 1 else b"".join(lines)):
                self._sent, self._is_first = sent, first
                return False
            subscription.take()
            return True

        subscription.listener = deliver

    def _share(self, event: Event, line: bytes) -> None:
        """Others that want all events of this shape are told the same."""
        assert self._shared is not None
        if len(self._shared) >= _SHARED:
            self._shared.clear()
        self._shared[event.revision, event.key] = line

    def _bookmark(self) -> Change | None:
        """A bookmark, if the client wants them and something was written since the start or the last one."""
        newest = self._registry.revision
        if not self._options.bookmarks or newest <= self._marked:
            return None
        self._marked = self._sent = newest
        return Change("BOOKMARK", None, newest)

    def _selects(self, record: Record) -> bool:
        if self._name is not None and record.key.rpartition("/")[2] != self._name:
            return False
        return not self._options.selector or self._options.selector.matches(record.obj)

    def _change(self, event: Event) -> Change | None:
        """What an event is to this watcher: selectors turn transitions into ADDED and DELETED."""
        if event.revision <= (self._options.revision or 0):
            return None
        self._sent = max(self._sent, event.revision)
        registry, selector = self._registry, self._options.selector
        if self._name is not None and event.key.rpartition("/")[2] != self._name:
            return None
        current = registry.record(event.key, event.revision, event.value) if event.value is not None else None
        if not selector:
            if current is not None:
                return Change("ADDED" if event.previous is None else "MODIFIED", current)
            return Change("DELETED", self._last(event))
        was = event.previous is not None and selector.matches(self._last(event).obj)
        now = current is not None and selector.matches(current.obj)
        if now:
            return Change("MODIFIED" if was else "ADDED", current)
        return Change("DELETED", self._last(event)) if was else None

    def _last(self, event: Event) -> Record:
        """The state before the event, under the event's revision."""
        return self._registry.record(event.key + "#last", event.revision, event.previous or b"{}")

    def lines(self, changes: list[Change]) -> list[bytes]:
        """Events as JSON lines."""
        made = []
        for change in changes:
            made.append(self._line(change, first=self._is_first))
            self._is_first = False
        return made

    def _line(self, change: Change, *, first: bool) -> bytes:
        shape = self._shape
        if change.record is None:
            obj = shape.bookmark(change.revision, change.annotations, first=first)
            return b'{"type":"%s","object":%s}\n' % (change.type.encode(), obj)
        record = change.record
        first = first and shape.projection == "Table"  # else the first looks like any other
        at = ("frame", change.type, first, self._shape_key)
        made = record.frames.get(at)
        if made is None:
            made = b'{"type":"%s","object":%s}\n' % (change.type.encode(), shape.watched(record, first))
            record.frames[at] = made
        return made

    def close(self) -> None:
        """Leave the cache."""
        if self._subscription is not None:
            self._registry.cache.unsubscribe(self._subscription)


def error_frame(error: ApiError) -> bytes:
    """The ERROR event that ends a watch."""
    return b'{"type":"ERROR","object":%s}\n' % _encoder.encode(error.status())


def watch_from(registry: Registry, shape: Shape, namespace: str, query: Query, name: str = "") -> Watch:
    """A watch as a request asks for it; `name` (from the deprecated path) narrows it to one object."""
    if name:
        fields = ",".join(filter(None, [query.get("fieldSelector"), f"metadata.name={name}"]))
        query = Query((("fieldSelector", fields), *(pair for pair in query.pairs if pair[0] != "fieldSelector")))
    return Watch(registry, shape, namespace, watch_options(selector_from(shape.resource, query), query))
