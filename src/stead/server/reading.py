"""Get and list: options, snapshots, pages and bodies, all from memory.

Called by `app` and `client.local` (through `verbs`). A list is served from entries that the watch cache hands out at
one revision; pages of a list come from the same snapshot, which is kept for a while and else rebuilt by undoing the
recent events. Follows L1 to L3 and S1, S2. On the event loop; nothing here waits except for a revision still on its
way.
"""

from __future__ import annotations

import base64
import bisect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from stead.kinds.events import GROUP as EVENTS_GROUP
from stead.kinds.resource import Resource
from stead.kube import meta, selectors
from stead.kube.errors import ApiError, cause, invalid
from stead.server import table
from stead.server.answer import Answer
from stead.server.registry import Compacted, Object, Record, Registry, with_revision
from stead.server.request import Query
from stead.server.shapes import Shape, partial_metadata
from stead.store.contract import Entry

#: how long a read waits for a revision that has not arrived, seconds
FUTURE_WAIT_SECONDS = 3.0
#: lists whose next page may still be asked for
_KEPT_SNAPSHOTS = 32
#: stored bytes of a list from which on it is streamed, and of one part of it
STREAM_FROM_BYTES = 256 * 1024
PART_BYTES = 128 * 1024

_encoder = msgspec.json.Encoder()

_OLD_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)
_OLD_EXACT = "The resourceVersion for the provided list is too old."


class Selector(msgspec.Struct, frozen=True):
    """Parsed label and field selectors of a request."""

    labels: selectors.LabelSelector = selectors.EVERYTHING
    fields: selectors.FieldSelector = selectors.ALL_FIELDS

    def __bool__(self) -> bool:
        return bool(self.labels) or bool(self.fields)

    def matches(self, obj: Object) -> bool:
        """Whether an object (in its stored version) is selected."""
        if self.labels and not self.labels.matches(obj["metadata"].get("labels")):
            return False
        return not self.fields or self.fields.matches(obj, field_text)


class ListOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a list, checked."""

    selector: Selector = Selector()
    limit: int = 0
    token: str = ""
    revision: int | None = None
    match: str = ""


class Page(msgspec.Struct):
    """One page of a list: records, the revision of the snapshot, the token and number of what remains."""

    records: list[Record]
    revision: int
    token: str = ""
    remaining: int | None = None


def field_text(obj: Object, field: str) -> str:
    """The text of a selectable field; names that are no plain paths are mapped here."""
    if field == "source":
        return str((obj.get("source") or {}).get("component") or obj.get("reportingComponent") or "")
    if field.startswith("regarding."):
        field = "involvedObject." + field.removeprefix("regarding.")
    elif field == "reportingController":
        field = "reportingComponent"
    text = selectors.field_value(obj, field)
    if not text and field == "spec.unschedulable":
        return "false"
    return text


def selector_from(resource: Resource, query: Query) -> Selector:
    """The selectors of a request. Raises 400."""
    return parse_selector(resource, query.get("labelSelector") or "", query.get("fieldSelector") or "")


def parse_selector(resource: Resource, labels: str, fields: str) -> Selector:
    """Selectors from their texts. Raises 400."""
    try:
        parsed = selectors.parse_labels(labels) if labels else selectors.EVERYTHING
    except ApiError as error:
        raise ApiError("BadRequest", error.message) from error
    chosen = selectors.parse_fields(fields) if fields else selectors.ALL_FIELDS
    if chosen:
        allowed = resource.field_selectors
        if resource.group == EVENTS_GROUP:
            allowed = _events_v1_fields()
        tabled = not resource.builtin or bool(allowed)
        selectors.check_fields(chosen, allowed, tabled=tabled)
    return Selector(parsed, chosen)


def _events_v1_fields() -> tuple[str, ...]:
    inner = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
    return (*(f"regarding.{name}" for name in inner), "reason", "reportingController", "type")


def parse_revision(text: str) -> int:
    """A resourceVersion as a number. Raises ValueError with the API server's words."""
    if not text.isascii() or not text.isdigit():
        shown = f"resourceVersion: Invalid value: {meta.go_quote(text)}: strconv.ParseUint: parsing "
        raise ValueError(f"{shown}{meta.go_quote(text)}: invalid syntax")
    return int(text)


def options_invalid(causes: list[dict[str, str]]) -> ApiError:
    """422 for options of a list."""
    return invalid("ListOptions", "meta.k8s.io", "", causes)


def list_options(resource: Resource, query: Query) -> ListOptions:
    """The options of a list request. Raises 400 and 422."""
    causes: list[dict[str, str]] = []
    version, token = query.get("resourceVersion") or "", query.get("continue") or ""
    match = query.get("resourceVersionMatch") or ""
    if match:
        if not version:
            text = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
            causes.append(cause("resourceVersionMatch", text, "FieldValueForbidden"))
        if token:
            text = "Forbidden: resourceVersionMatch is forbidden when continue is provided"
            causes.append(cause("resourceVersionMatch", text, "FieldValueForbidden"))
        if match not in ("Exact", "NotOlderThan"):
            text = f'Unsupported value: "{match}": supported values: "Exact", "NotOlderThan", ""'
            causes.append(cause("resourceVersionMatch", text, "FieldValueNotSupported"))
        if match == "Exact" and version == "0":
            text = 'Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
            causes.append(cause("resourceVersionMatch", text, "FieldValueForbidden"))
    if query.has("sendInitialEvents"):
        text = "Forbidden: sendInitialEvents is forbidden for list"
        causes.append(cause("sendInitialEvents", text, "FieldValueForbidden"))
    if causes:
        raise options_invalid(causes)
    try:
        revision = parse_revision(version) if version else None
    except ValueError as error:
        raise ApiError("BadRequest", f"invalid resource version: {error}") from error
    if query.has("timeoutSeconds"):
        _number(query.get("timeoutSeconds") or "0")
    if token and revision:
        raise ApiError("BadRequest", "specifying resource version is not allowed when using continue")
    return ListOptions(
        selector=selector_from(resource, query), limit=_limit(query), token=token, revision=revision, match=match
    )


def _limit(query: Query) -> int:
    return max(0, _number(query.get("limit") or "0"))


def _number(text: str) -> int:
    """An integer of a query. Raises 400."""
    try:
        return int(text)
    except ValueError as error:
        raise ApiError("BadRequest", f'strconv.ParseInt: parsing "{text}": invalid syntax') from error


class Reader:
    """Gets and lists over a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._snapshots: OrderedDict[tuple[str, int], Sequence[Entry]] = OrderedDict()

    async def wait_until(self, revision: int) -> None:
        """Wait for a revision that a client has seen elsewhere. Raises 504 when it does not come."""
        if revision <= self._registry.revision:
            return
        try:
            await self._registry.cache.wait_for(revision, FUTURE_WAIT_SECONDS)
        except TimeoutError:
            current = self._registry.revision
            raise ApiError(
                "Timeout",
                f"Timeout: Too large resource version: {revision}, current: {current}",
                {
                    "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                    "retryAfterSeconds": 1,
                },
            ) from None

    async def page(self, resource: Resource, namespace: str, options: ListOptions) -> Page:
        """One page of a list. Raises 400, 410 and 504."""
        prefix = self._registry.prefix(resource, namespace)
        if options.token:
            await self.wait_until(decode_token(options.token)[0])  # another plane may have begun the list
            return self._continue(prefix, options)
        revision = options.revision
        exact = options.match == "Exact" or (options.limit > 0 and bool(revision) and not options.match)
        if revision:
            await self.wait_until(revision)
        if exact and revision:
            known = self._exact(prefix, revision)
            if known is None:
                raise ApiError("Expired", _OLD_EXACT)
            return self._cut(prefix, known, revision, options)
        name = options.selector.fields.exact("metadata.name")
        if name is not None and namespace:
            entry = self._registry.cache.get(prefix + name)
            entries, current = ([entry] if entry else []), self._registry.revision
        else:
            entries, current = self._registry.cache.list(prefix)
        if revision == 0:
            options = msgspec.structs.replace(options, limit=0)
        return self._cut(prefix, entries, current, options)

    def _continue(self, prefix: str, options: ListOptions) -> Page:
        revision, start = decode_token(options.token)
        entries: Sequence[Entry]
        if revision < 0:
            entries, revision = self._registry.cache.list(prefix)
        else:
            kept = self._exact(prefix, revision)
            if kept is None:
                error = ApiError("Expired", _OLD_CONTINUE)
                error.details = {"continue": encode_token(-1, start)}
                raise error
            entries = kept
        keys = [entry.key for entry in entries]
        return self._cut(prefix, entries, revision, options, bisect.bisect_left(keys, prefix + start))

    def _cut(self, prefix: str, entries: Sequence[Entry], revision: int, options: ListOptions, first: int = 0) -> Page:
        """Take what is selected, from the entry `first` on, up to the limit."""
        registry, selector, limit = self._registry, options.selector, options.limit
        chosen: list[Record] = []
        for at in range(first, len(entries)):
            entry = entries[at]
            if limit and len(chosen) == limit:
                start = chosen[-1].key.removeprefix(prefix) + "\0"
                # Whole: others page through the same revision, from its beginning too.
                self._keep(prefix, revision, entries)
                remaining = None if selector else len(entries) - at
                return Page(chosen, revision, encode_token(revision, start), remaining)
            record = registry.record_of(entry) if selector else Record(entry.key, entry.mod_revision, entry.value)
            if not selector or selector.matches(record.obj):
                chosen.append(record)
        return Page(chosen, revision)

    def _keep(self, prefix: str, revision: int, entries: Sequence[Entry]) -> None:
        self._snapshots[prefix, revision] = entries
        self._snapshots.move_to_end((prefix, revision))
        while len(self._snapshots) > _KEPT_SNAPSHOTS:
            self._snapshots.popitem(last=False)

    def _exact(self, prefix: str, revision: int) -> Sequence[Entry] | None:
        """Entries as they stood at a revision, or None when that is no longer known."""
        kept = self._snapshots.get((prefix, revision))
        if kept is not None:
            return kept
        cache = self._registry.cache
        if revision < cache.oldest:
            return None
        try:
            history = cache.subscribe(prefix, cache.oldest)
        except Compacted:
            return None
        events = history.take()
        cache.unsubscribe(history)
        current, _ = cache.list(prefix)
        state = {entry.key: entry for entry in current}
        before = {event.key: event.revision for event in events if event.revision <= revision}
        for event in reversed([event for event in events if event.revision > revision]):
            if event.previous is None:
                state.pop(event.key, None)
            else:
                state[event.key] = Entry(event.key, event.previous, 0, before.get(event.key, 0))
        if any(entry.mod_revision == 0 for entry in state.values()):
            return None
        return [state[key] for key in sorted(state)]


def encode_token(revision: int, start: str) -> str:
    """A continue token: where the next page starts, in which snapshot."""
    raw = _encoder.encode({"v": "meta.k8s.io/v1", "rv": revision, "start": start})
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_token(token: str) -> tuple[int, str]:
    """(revision, start) of a continue token. Raises 400."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        value: Any = msgspec.json.decode(raw)
        if value["v"] != "meta.k8s.io/v1" or not isinstance(value["start"], str):
            raise ValueError("wrong version")
        return int(value["rv"]), value["start"]
    except (ValueError, KeyError, TypeError, msgspec.DecodeError) as error:
        raise ApiError("BadRequest", f"continue key is not valid: {error}") from error


def list_answer(shape: Shape, page: Page) -> Answer:
    """The answer to a list: a long one is made while it is sent, so that it is never whole in memory."""
    if not shape.projection and sum(len(record.value) for record in page.records) > STREAM_FROM_BYTES:
        return Answer(200, b"", parts=_list_parts(shape, page))
    return Answer(200, list_body(shape, page))


def list_body(shape: Shape, page: Page) -> bytes:
    """The JSON body of a list in the shape asked for."""
    if not shape.projection:
        return b"".join(_list_parts(shape, page))
    metadata = _list_metadata(page)
    if shape.projection == "Table":
        return _encoder.encode(table.table(shape, [shape.obj(record) for record in page.records], metadata))
    items = [partial_metadata(record.obj, shape.meta_version) for record in page.records]
    return _encoder.encode({
        "kind": "PartialObjectMetadataList", "apiVersion": f"meta.k8s.io/{shape.meta_version}",
        "metadata": metadata, "items": items,
    })  # fmt: skip


def _list_parts(shape: Shape, page: Page) -> Iterator[bytes]:
    """A typed list in parts of some size; each record is let go of once it is in one."""
    metadata = _list_metadata(page)
    if not shape.resource.builtin:
        metadata.setdefault("continue", "")
    kind = f"{shape.resource.kind}List"
    gathered = [
        _encoder.encode({"kind": kind, "apiVersion": shape.api_version, "metadata": metadata})[:-1],
        b',"items":[',
    ]
    size = 0
    records, page.records = page.records[::-1], []
    while records:
        item = shape.item(records.pop())
        size += len(item)
        gathered.append(item)
        if records:
            gathered.append(b",")
        if size > PART_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    gathered.append(b"]}")
    yield b"".join(gathered)


def _list_metadata(page: Page) -> Object:
    metadata: Object = {"resourceVersion": str(page.revision)}
    if page.token:
        metadata["continue"] = page.token
    if page.remaining is not None:
        metadata["remainingItemCount"] = page.remaining
    return metadata


__all__ = [
    "ListOptions",
    "Page",
    "Reader",
    "Selector",
    "list_answer",
    "list_body",
    "list_options",
    "parse_selector",
    "with_revision",
]
