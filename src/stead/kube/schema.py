"""Structural schemas: made from our typed definitions, used to prune, default and validate objects.

The face of three modules: `structural` (the schema itself, from Structs), this one (pruning and defaulting) and
`validation`. The server runs prune → default → validate on every write, in that order, and uses the same dict for
OpenAPI, `kubectl explain` and server-side apply. Nothing here changes its input: results share untouched parts with it.
Safe from any thread; all it keeps is which fields of a schema have defaults. Follows apiextensions' `schema` packages
as recorded from kube-apiserver 1.36.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from stead.kube.structural import (
    EMBEDDED,
    INT_OR_STRING,
    LIST_KEYS,
    LIST_TYPE,
    MAP_TYPE,
    OBJECT_META,
    PRESERVE,
    RULES,
    Schema,
    child,
    join,
    object_schema,
    schema_from_struct,
    type_of,
)
from stead.kube.validation import ABSENT, Causes, has_rules, type_mismatch, validate, with_unchecked

__all__ = [
    "ABSENT",
    "EMBEDDED",
    "INT_OR_STRING",
    "LIST_KEYS",
    "LIST_TYPE",
    "MAP_TYPE",
    "OBJECT_META",
    "PRESERVE",
    "RULES",
    "Causes",
    "Schema",
    "child",
    "default",
    "has_rules",
    "normalise_metadata",
    "object_schema",
    "prune",
    "schema_from_struct",
    "type_mismatch",
    "type_of",
    "validate",
    "with_unchecked",
]


def _rebuilt(value: Any, change: Callable[[Any, Any], Any]) -> Any:
    """`value` with every object and list in it replaced by `change(key, child)`; the same when nothing changed."""
    made = value
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list):
            new = change(key, item)
            if new is not item:
                if made is value:
                    made = value.copy()
                made[key] = new
    return made


# --- prune ------------------------------------------------------------------------------------------------------


def prune(schema: Schema, obj: Any) -> tuple[Any, list[str]]:
    """`obj` without the fields that the schema does not know, and their paths, sorted (`spec.foo`, `spec.l[0].x`)."""
    unknown: list[str] = []
    return _prune(schema, obj, "", unknown), sorted(unknown)


def _prune(schema: Schema, value: Any, path: str, unknown: list[str]) -> Any:
    if isinstance(value, list):
        items = schema.get("items")
        if not isinstance(items, dict):
            return value
        return _rebuilt(value, lambda i, item: _prune(items, item, f"{path}[{i}]", unknown))
    if not isinstance(value, dict):
        return value
    preserve = schema.get(PRESERVE) or schema.get("additionalProperties") is True
    if not preserve and "properties" not in schema and "additionalProperties" not in schema and not schema.get("type"):
        return value
    strangers = set() if preserve else {key for key in value if child(schema, key) is None}
    if strangers:
        unknown += [join(path, key) for key in strangers]
        value = {k: v for k, v in value.items() if k not in strangers}

    def below(key: str, item: Any) -> Any:
        inner = child(schema, key)
        return item if inner is None else _prune(inner, item, join(path, key), unknown)

    return _rebuilt(value, below)


# --- default ----------------------------------------------------------------------------------------------------


def default(schema: Schema, obj: Any) -> Any:
    """`obj` with the schema's defaults put in and nulls dropped (or replaced by the default) where not nullable."""
    if isinstance(obj, list):
        items = schema.get("items")
        return _rebuilt(obj, lambda _i, item: default(items, item)) if isinstance(items, dict) else obj
    if not isinstance(obj, dict):
        return obj
    missing = _missing_defaults(schema, obj)
    nulls = [k for k, v in obj.items() if v is None and k not in missing and _drops_null(child(schema, k))]
    if nulls or missing:
        obj = {**{k: v for k, v in obj.items() if k not in nulls}, **missing}

    def below(key: str, item: Any) -> Any:
        inner = child(schema, key)
        # What null means in metadata is `normalise_metadata`'s to say.
        return item if inner is None or inner is OBJECT_META else default(inner, item)

    return _rebuilt(obj, below)


def _missing_defaults(schema: Schema, obj: dict[str, Any]) -> dict[str, Any]:
    return {
        key: inner["default"]
        for key, inner in _defaulted(schema)
        if key not in obj or (obj[key] is None and not inner.get("nullable"))
    }


#: the fields that have a default, by identity of the schema; the schema is held, so that its identity stays its own
_DEFAULTED: OrderedDict[int, tuple[Schema, list[tuple[str, Schema]]]] = OrderedDict()
_MOST_DEFAULTED = 8192


def _defaulted(schema: Schema) -> list[tuple[str, Schema]]:
    """Few of the many fields have a default; a schema, once it rules, does not change."""
    known = _DEFAULTED.get(id(schema))
    if known is not None:
        return known[1]
    found = [(key, inner) for key, inner in schema.get("properties", {}).items() if "default" in inner]
    _DEFAULTED[id(schema)] = (schema, found)
    if len(_DEFAULTED) > _MOST_DEFAULTED:
        _DEFAULTED.popitem(last=False)
    return found


def _drops_null(schema: Schema | None) -> bool:
    return schema is not None and not schema.get("nullable") and not (schema.get(PRESERVE) and "type" not in schema)


def normalise_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """`metadata` as Go's ObjectMeta would print it: nulls and empty fields gone, null label values empty text."""
    clean: dict[str, Any] = {}
    for key, value in metadata.items():
        if value is None or value in ({}, [], ""):
            continue
        if key in {"labels", "annotations"} and isinstance(value, dict):
            value = {k: "" if v is None else v for k, v in value.items()} if None in value.values() else value
        clean[key] = value
    return clean
