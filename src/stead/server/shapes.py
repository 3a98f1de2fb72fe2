"""How an object looks to one client: version, Table, metadata only, or as it is. Bytes are made once and shared.

Called by `reading` (get, list) and `watching`. A `Shape` is the part of a request that decides the bytes; equal shapes
share what was encoded for a state of an object (`Record.frames`), so that a change is encoded once for all watchers.
Follows N3 and N4. Pure but for the clock (ages in tables).
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.kinds.events import GROUP as EVENTS_GROUP
from stead.kinds.events import events_v1_from_core
from stead.kinds.resource import Resource
from stead.kube import meta
from stead.kube.errors import ApiError
from stead.server import foreign, table
from stead.server.answer import Accepted, not_acceptable
from stead.server.registry import Object, Record, as_version

_encoder = msgspec.json.Encoder()


class Shape(msgspec.Struct, frozen=True):
    """What a client wants to see. `projection` is "", Table, PartialObjectMetadata or PartialObjectMetadataList."""

    resource: Resource
    version: str
    projection: str = ""
    meta_version: str = "v1"
    include: str = "Metadata"

    @property
    def api_version(self) -> str:
        """`group/version` that the client asked for."""
        return f"{self.resource.group}/{self.version}" if self.resource.group else self.version

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What tells the bytes of two shapes apart."""
        edition = self.resource.edition
        return (f"{self.resource.group}#{edition}", self.version, self.projection, self.meta_version, self.include)

    def typed(self, record: Record) -> bytes:
        """The whole object in the version asked for."""
        if self.resource.group == EVENTS_GROUP:
            return self._kept(record, "event", lambda: _encoder.encode(events_v1_from_core(record.obj)))
        if self.resource.edition:
            return self._kept(record, "defined", lambda: _encoder.encode(self.obj(record)))
        if self.version == self.resource.version:
            return record.body
        return self._kept(record, "typed", lambda: as_version(record.body, self.resource, self.version))

    def single(self, record: Record) -> bytes:
        """The body of a get."""
        if self.projection == "Table":
            return _encoder.encode(table.table(self, [self.obj(record)], {"resourceVersion": str(record.revision)}))
        if self.projection == "PartialObjectMetadata":
            return self.partial(record)
        if self.projection:
            raise self.unacceptable()
        return self.typed(record)

    def partial(self, record: Record) -> bytes:
        """PartialObjectMetadata of one object."""
        return self._kept(record, "partial", lambda: _encoder.encode(partial_metadata(record.obj, self.meta_version)))

    def item(self, record: Record) -> bytes:
        """One item of a list: typed lists of built-in kinds leave apiVersion and kind out."""
        body = self.typed(record)
        if self.resource.builtin:
            head = f'{{"apiVersion":"{self.api_version}","kind":"{self.resource.kind}",'.encode()
            if body.startswith(head):
                return b"{" + body[len(head) :]
        return body

    def watched(self, record: Record, first: bool) -> bytes:
        """The object of a watch event."""
        if self.projection == "Table":
            if first:
                return self.table_row(record, columns=True)
            return self._kept(record, "row", lambda: self.table_row(record, columns=False))
        if self.projection:
            return self.partial(record)
        return self.typed(record)

    def table_row(self, record: Record, *, columns: bool) -> bytes:
        """A Table of one row."""
        body = table.table(self, [self.obj(record)], {"resourceVersion": str(record.revision)})
        if not columns:
            body["columnDefinitions"] = None
        return _encoder.encode(body)

    def obj(self, record: Record) -> Object:
        """The object in the version asked for. Shared: never mutate."""
        if self.resource.group == EVENTS_GROUP:
            return events_v1_from_core(record.obj)
        if self.resource.edition:
            return foreign.as_defined(self.resource, record.obj, self.version)
        if self.version == self.resource.version:
            return record.obj
        return {**record.obj, "apiVersion": self.api_version}

    def bookmark(self, revision: int, annotations: dict[str, str] | None, *, first: bool = False) -> bytes:
        """The object of a BOOKMARK event; columns come with the first event of a watch only."""
        metadata: Object = {"resourceVersion": str(revision)}
        if annotations:
            metadata["annotations"] = annotations
        obj: Object = {"kind": self.resource.kind, "apiVersion": self.api_version, "metadata": metadata}
        if self.projection == "Table":
            body = table.bookmark_table(self, obj)
            return _encoder.encode(body if first else {**body, "columnDefinitions": None})
        if self.projection:
            obj = {
                "kind": "PartialObjectMetadata",
                "apiVersion": f"meta.k8s.io/{self.meta_version}",
                "metadata": metadata,
            }
        return _encoder.encode(obj)

    def unacceptable(self) -> ApiError:
        """406: the projection does not fit the request."""
        return not_acceptable()

    def _kept(self, record: Record, what: str, make: Any) -> bytes:
        at = (what, *self.key)
        made: bytes | None = record.frames.get(at)
        if made is None:
            made = record.frames[at] = make()
        return made


def shape_of(resource: Resource, version: str, accepted: Accepted, include: str) -> Shape:
    """The shape of a request. `include` is the includeObject parameter. Raises 400 for an unknown one."""
    if include not in ("", "None", "Metadata", "Object"):
        why = f"Invalid value: {meta.go_quote(include)}: must be 'Metadata', 'Object', 'None', or empty"
        raise ApiError("BadRequest", f"Unable to convert to Table as requested: includeObject: {why}")
    return Shape(resource, version, accepted.projection, accepted.version, include or "Metadata")


def partial_metadata(obj: Object, version: str = "v1") -> Object:
    """An object cut down to its metadata."""
    return {"kind": "PartialObjectMetadata", "apiVersion": f"meta.k8s.io/{version}", "metadata": obj["metadata"]}
