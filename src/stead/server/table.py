"""Tables: what `kubectl get` prints, computed by the server.

Called by `shapes` and `reading`. Columns and cells come from `kinds.columns`; this module puts them into the wire
form of `meta.k8s.io` Table (N3). Pure but for the clock, which turns times into ages.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from stead.kinds.columns import AGE, CREATED_AT, cells, table_columns
from stead.kinds.resource import Resource
from stead.server.registry import Object

if TYPE_CHECKING:
    from stead.server.shapes import Shape

_NAME_DESCRIPTION = (
    "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a "
    "client to request the generation of an appropriate name automatically. Name is primarily intended for creation "
    "idempotence and configuration definition. Cannot be updated. More info: "
    "https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names"
)

_CREATED_DESCRIPTION = (
    "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed "
    "to be set in happens-before order across separate operations. Clients may not set this value. It is represented "
    "in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: "
    "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"
)


def definitions(resource: Resource) -> list[dict[str, Any]]:
    """`columnDefinitions` of a kind."""
    found: list[dict[str, Any]] = []
    for column in table_columns(resource):
        if column.format == "name":
            text = _NAME_DESCRIPTION
        elif column.description:
            text = column.description
        elif column == CREATED_AT or (column == AGE and not resource.columns):
            text = _CREATED_DESCRIPTION
        elif resource.builtin:
            text = column.name
        else:
            text = f"Custom resource definition column (in JSONPath format): {column.path}"
        kind = "string" if resource.builtin and column.type == "date" and column != CREATED_AT else column.type
        found.append({
            "name": column.name, "type": kind, "format": column.format, "description": text,
            "priority": column.priority,
        })  # fmt: skip
    return found


def table(shape: Shape, objects: list[Object], metadata: Object) -> Object:
    """A Table of objects."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{shape.meta_version}",
        "metadata": metadata,
        "columnDefinitions": definitions(shape.resource),
        "rows": [{"cells": cells(shape.resource, obj, now), **_row_object(shape, obj)} for obj in objects],
    }


def bookmark_table(shape: Shape, obj: Object) -> Object:
    """The Table of a BOOKMARK: one row without a name, which carries only the resourceVersion."""
    row = {"cells": ["", *[None] * (len(table_columns(shape.resource)) - 1)], **_row_object(shape, obj)}
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{shape.meta_version}",
        "metadata": {"resourceVersion": obj["metadata"]["resourceVersion"]},
        "columnDefinitions": definitions(shape.resource),
        "rows": [row],
    }


def _row_object(shape: Shape, obj: Object) -> Object:
    if shape.include == "None":
        return {"object": None}
    if shape.include == "Object":
        return {"object": obj}
    version = f"meta.k8s.io/{shape.meta_version}"
    return {"object": {"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": obj["metadata"]}}
