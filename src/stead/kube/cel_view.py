"""A JSON value as a validation rule sees it: typed by its schema, as Kubernetes types it for CEL.

Called by `validation` for `self` and `oldSelf`. Numbers of type `number` are doubles, texts of format `date-time`,
`date`, `duration` and `byte` are instants, durations and bytes, and lists of type `set` and `map` compare without
order. What the schema says nothing about stays as it is. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stead.kube.cel_functions import base64_bytes
from stead.kube.cel_values import Associative, RuleError, parse_duration, parse_timestamp
from stead.kube.structural import LIST_KEYS, LIST_TYPE, OBJECT_META, Schema, child

_TEXTS: dict[str, Callable[[str], Any]] = {
    "date-time": parse_timestamp,
    "date": lambda text: parse_timestamp(f"{text}T00:00:00Z"),
    "duration": parse_duration,
    "byte": base64_bytes,
}


def view(schema: Schema, value: Any) -> Any:
    """The value for a rule at this node of a schema."""
    if isinstance(value, str):
        read = _TEXTS.get(schema.get("format", ""))
        try:
            return read(value) if read is not None else value
        except RuleError:
            return value
    if isinstance(value, dict):
        return {key: _below(child(schema, key), held) for key, held in value.items()}
    if isinstance(value, list):
        items = schema.get("items")
        viewed = [_below(items if isinstance(items, dict) else None, item) for item in value]
        if schema.get(LIST_TYPE) not in ("set", "map"):
            return viewed
        alike = Associative(viewed)
        alike.keys = tuple(schema.get(LIST_KEYS) or ())
        return alike
    is_double = schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_double else value


def _below(schema: Schema | None, value: Any) -> Any:
    return value if schema is None or schema is OBJECT_META else view(schema, value)
