"""Patches: JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge patch.

The server turns a PATCH body into a new object here, then treats it like an update. Nothing is changed in place:
results share untouched parts with the original. Stateless; safe from any thread. Limits, refusals and oddities (a
`replace` of a missing map key adds it, `test` of a missing path against null passes, an index of -1 is the last item,
merged list items come before those that only the server has) are those recorded from kube-apiserver 1.36.
"""

from __future__ import annotations

import re
from typing import Any

from stead.kube.encoding import DecodeError, decode_json, decode_yaml
from stead.kube.errors import ApiError
from stead.kube.schema import Schema, child

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

MAX_OPERATIONS = 10_000
#: what the copies of one JSON patch may add, in values (they could double the object each time)
MAX_COPIED_VALUES = 1_000_000
_REJECTED = "the server rejected our request due to an error in our request"


def _rejected() -> ApiError:
    """422 for a patch that cannot be applied; kube-apiserver gives no more detail."""
    return ApiError("Invalid", _REJECTED, {})


# --- JSON patch -------------------------------------------------------------------------------------------------


def decode_json_patch(body: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """The operations in a body, and the unknown fields in them (`[0].zzz`), for fieldValidation. Raises ApiError."""
    try:
        operations = decode_json(body).value
    except DecodeError as error:
        raise ApiError("BadRequest", f"error decoding patch: {error}") from error
    if not isinstance(operations, list) or not all(isinstance(o, dict) for o in operations):
        raise ApiError("BadRequest", "error decoding patch: a JSON patch must be a list of objects")
    if len(operations) > MAX_OPERATIONS:
        text = f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}"
        raise ApiError("RequestEntityTooLarge", f"Request entity too large: {text}")
    known = {"op", "path", "from", "value"}
    return operations, [f"[{i}].{k}" for i, operation in enumerate(operations) for k in operation if k not in known]


def json_patch(obj: Any, operations: list[dict[str, Any]]) -> Any:
    """`obj` after all operations. Raises ApiError 422 if any of them fails; then nothing has changed."""
    budget = MAX_COPIED_VALUES
    for operation in operations:
        op, path = operation.get("op"), _pointer(operation.get("path"))
        match op:
            case "add":
                obj = _add(obj, path, operation.get("value"))
            case "remove":
                obj = _remove(obj, path)
            case "replace":
                obj = _replace(obj, path, operation.get("value"))
            case "move":
                source = _pointer(operation.get("from"))
                if path[: len(source)] == source and len(path) > len(source):
                    raise _rejected()
                obj = _add(_remove(obj, source), path, _get(obj, source))
            case "copy":
                value = _get(obj, _pointer(operation.get("from")))
                budget -= _count(value)
                if budget < 0:
                    raise _rejected()
                obj = _add(obj, path, value)
            case "test":
                if not is_equal(_get(obj, path, missing_is_null=True), operation.get("value")):
                    raise _rejected()
            case _:
                raise _rejected()
    return obj


def is_equal(left: Any, right: Any) -> bool:
    """JSON equality that tells 1 from true and 3 from 3.0, as Go's comparison of raw JSON does."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(is_equal(v, right[k]) for k, v in left.items())
    if isinstance(left, list):
        return len(left) == len(right) and all(map(is_equal, left, right))
    return bool(left == right)


def _pointer(text: Any) -> tuple[str, ...]:
    """The parts of a JSON pointer (RFC 6901)."""
    if text == "":
        return ()
    if not isinstance(text, str) or not text.startswith("/"):
        raise _rejected()
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/"))


def _index(part: str, length: int) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", part):
        raise _rejected()
    index = int(part)
    if not -length <= index < length:
        raise _rejected()
    return index % length


def _get(obj: Any, path: tuple[str, ...], *, missing_is_null: bool = False) -> Any:
    for position, part in enumerate(path):
        if isinstance(obj, dict) and part in obj:
            obj = obj[part]
        elif isinstance(obj, list):
            obj = obj[_index(part, len(obj))]
        elif missing_is_null and isinstance(obj, dict) and position == len(path) - 1:
            return None
        else:
            raise _rejected()
    return obj


def _with_child(obj: Any, part: str, value: Any) -> Any:
    """A copy of the container with one existing child replaced."""
    if isinstance(obj, dict):
        return {**obj, part: value}
    copy = list(obj)
    copy[_index(part, len(obj))] = value
    return copy


def _add(obj: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    if len(path) > 1:
        return _with_child(obj, path[0], _add(_get(obj, path[:1]), path[1:], value))
    if isinstance(obj, dict):
        return {**obj, path[0]: value}
    if not isinstance(obj, list):
        raise _rejected()
    at = len(obj) if path[0] == "-" else _index(path[0], len(obj) + 1)
    return [*obj[:at], value, *obj[at:]]


def _remove(obj: Any, path: tuple[str, ...]) -> Any:
    if not path:
        raise _rejected()
    inner = _get(obj, path[:1])
    if len(path) > 1:
        return _with_child(obj, path[0], _remove(inner, path[1:]))
    if isinstance(obj, dict):
        return {k: v for k, v in obj.items() if k != path[0]}
    at = _index(path[0], len(obj))
    return [*obj[:at], *obj[at + 1 :]]


def _replace(obj: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    if len(path) == 1 and isinstance(obj, dict):
        return {**obj, path[0]: value}
    inner = _get(obj, path[:1])
    return _with_child(obj, path[0], value if len(path) == 1 else _replace(inner, path[1:], value))


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


# --- merge patch ------------------------------------------------------------------------------------------------


def decode_merge_patch(body: bytes, *, strategic: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The patch object in a body and the paths of its duplicate fields. Raises ApiError 400."""
    prefix = "" if strategic else "error decoding patch: "
    try:
        decoded = decode_json(body)
    except DecodeError as error:
        raise ApiError("BadRequest", f"{prefix}{error}") from error
    if not isinstance(decoded.value, dict):
        kind = "array" if isinstance(decoded.value, list) else type(decoded.value).__name__
        text = f"{prefix}json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
        raise ApiError("BadRequest", text)
    return decoded.value, list(decoded.duplicates)


def decode_apply_patch(body: bytes) -> tuple[dict[str, Any], list[str]]:
    """The config in a body of server-side apply (YAML or JSON; empty = {}) and its duplicates. Raises ApiError 400."""
    try:
        decoded = decode_yaml(body)
    except DecodeError as error:
        raise ApiError("BadRequest", f"error decoding YAML: {error}") from error
    value = {} if decoded.value is None else decoded.value
    if not isinstance(value, dict):
        kind = "array" if isinstance(value, list) else "string" if isinstance(value, str) else "number"
        target = "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal"
        raise ApiError(
            "BadRequest", f"error decoding YAML: {target} {kind} into Go value of type map[string]interface {{}}"
        )
    return value, list(decoded.duplicates)


def merge_patch(obj: Any, patch: Any) -> Any:
    """`obj` after an RFC 7386 merge patch: maps merge, null deletes, all else replaces.

    Unlike the RFC, and like kube-apiserver, maps inside of lists lose their nulls too.
    """
    if isinstance(patch, list):
        return [merge_patch(None, item) for item in patch]
    if not isinstance(patch, dict):
        return patch
    base = obj if isinstance(obj, dict) else {}
    changes = {k: merge_patch(base.get(k), v) for k, v in patch.items() if v is not None}
    gone = {k for k, v in patch.items() if v is None}
    return {**{k: v for k, v in base.items() if k not in gone}, **changes}


def create_merge_patch(before: Any, after: Any) -> Any:
    """The smallest merge patch that makes `after` of `before` (lists are replaced whole)."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    patch: dict[str, Any] = {k: None for k in before if k not in after}
    for key, value in after.items():
        if key not in before:
            patch[key] = value
        elif not is_equal(before[key], value):
            patch[key] = create_merge_patch(before[key], value)
    return patch


# --- strategic merge patch --------------------------------------------------------------------------------------

#: Merge key by field name, for schemas that do not say (core kinds' patchMergeKey tags). "" merges primitives.
MERGE_KEYS: dict[str, str] = {
    "addresses": "type",
    "conditions": "type",
    "containers": "name",
    "env": "name",
    "ephemeralContainers": "name",
    "finalizers": "",
    "hostAliases": "ip",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ownerReferences": "uid",
    "secrets": "name",
    "topologySpreadConstraints": "topologyKey",
    "volumeDevices": "devicePath",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
_DIRECTIVE = "$patch"
_RETAIN = "$retainKeys"
_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"
_MISSING: Any = object()


def strategic_merge_patch(obj: dict[str, Any], patch: dict[str, Any], schema: Schema | None = None) -> dict[str, Any]:
    """`obj` after a strategic merge patch. Merge keys come from the schema's extensions, else from `MERGE_KEYS`.

    Raises ApiError 400 for a bad directive or a list item without its merge key (kube-apiserver answers 500 there).
    """
    return _merge_map(obj, patch, schema or {})


def _merge_map(base: dict[str, Any], patch: dict[str, Any], schema: Schema) -> dict[str, Any]:
    directive = patch.get(_DIRECTIVE)
    if directive == "replace":
        return {k: v for k, v in patch.items() if k != _DIRECTIVE}
    if directive == "delete":
        return {}
    if directive is not None and directive != "merge":
        raise ApiError("BadRequest", f"unknown patch type: {directive} in map: {go_map(patch)}")
    result = dict(base)
    if _RETAIN in patch:
        result = _retain(result, patch)
    orders = {k[len(_ORDER) :]: v for k, v in patch.items() if k.startswith(_ORDER)}
    deletions = {k[len(_DELETE) :]: v for k, v in patch.items() if k.startswith(_DELETE)}
    for name, gone in deletions.items():
        if isinstance(gone, list) and isinstance(result.get(name), list):
            result[name] = [item for item in result[name] if item not in gone]
    for name, value in patch.items():
        if name in {_DIRECTIVE, _RETAIN} or name.startswith((_ORDER, _DELETE)):
            continue
        if value is None:
            result.pop(name, None)
            continue
        merged = _merge_field(name, result.get(name, _MISSING), value, child(schema, name) or {})
        if merged is _MISSING:
            continue
        result[name] = merged
    for name, order in orders.items():
        if isinstance(result.get(name), list):
            result[name] = _ordered(name, result[name], order, base.get(name), child(schema, name) or {})
    return result


def _retain(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    keys = patch[_RETAIN]
    if not isinstance(keys, list) or not all(
        k in keys for k in patch if not k.startswith("$") and patch[k] is not None
    ):
        raise ApiError("BadRequest", f"{_RETAIN} doesn't match the patch: it must list every field that is set")
    return {k: v for k, v in base.items() if k in keys}


def _merge_field(name: str, base: Any, value: Any, schema: Schema) -> Any:
    if isinstance(value, dict):
        if base is _MISSING:
            # A directive on a field that is not there leaves it so.
            return _MISSING if _DIRECTIVE in value else _merge_map({}, value, schema)
        return _merge_map(base, value, schema) if isinstance(base, dict) else _merge_map({}, value, schema)
    if isinstance(value, list):
        key = _merge_key(name, value, base, schema)
        if key is None:
            return value
        return _merge_list(base if isinstance(base, list) else [], value, key, schema.get("items") or {})
    return value


def _merge_key(name: str, value: list[Any], base: Any, schema: Schema) -> str | None:
    """The key by which lists of this field merge; "" for primitives; None where the list is replaced."""
    if "x-kubernetes-patch-merge-key" in schema:
        return str(schema["x-kubernetes-patch-merge-key"])
    if "x-kubernetes-patch-strategy" in schema:
        return "" if "merge" in str(schema["x-kubernetes-patch-strategy"]) else None
    if name == "ports":
        items = [*value, *(base if isinstance(base, list) else [])]
        return "containerPort" if any(isinstance(i, dict) and "containerPort" in i for i in items) else "port"
    return MERGE_KEYS.get(name)


def _merge_list(base: list[Any], patch: list[Any], key: str, items: Schema) -> list[Any]:
    if not key:
        merged = [*base, *(item for item in dict.fromkeys(patch) if item not in base)]
        return _by_patch_order(merged, list(dict.fromkeys(patch)), base)
    if any(isinstance(item, dict) and item.get(_DIRECTIVE) == "replace" for item in patch):
        return [item for item in patch if item.get(_DIRECTIVE) != "replace"]
    by_key: dict[Any, Any] = {_key_of(item, key): item for item in base}
    order: list[Any] = []
    for item in patch:
        identity = _key_of(item, key)
        if item.get(_DIRECTIVE) == "delete":
            by_key.pop(identity, None)
            continue
        order.append(identity)
        by_key[identity] = _merge_map(by_key.get(identity, {}), item, items)
    ranked = _by_patch_order(list(by_key), order, [_key_of(item, key) for item in base])
    return [by_key[identity] for identity in ranked]


def _key_of(item: Any, key: str) -> Any:
    if not isinstance(item, dict) or key not in item:
        raise ApiError("BadRequest", f"map: {go_map(item)} does not contain declared merge key: {key}")
    value = item[key]
    return value if not isinstance(value, dict | list) else str(value)


def _by_patch_order(identities: list[Any], patch_order: list[Any], server_order: list[Any]) -> list[Any]:
    """Patch items in patch order, merged with server-only items that keep their place relative to known ones."""
    rank = {identity: index for index, identity in enumerate(server_order)}
    left = [i for i in patch_order if i in identities]
    right = [i for i in server_order if i in identities and i not in set(patch_order)]
    merged: list[Any] = []
    while left and right:
        before = rank.get(left[0], -1) < rank[right[0]]
        merged.append((left if before else right).pop(0))
    return [*merged, *left, *right]


def _ordered(name: str, value: list[Any], order: Any, base: Any, schema: Schema) -> list[Any]:
    """The list in the order of a `$setElementOrder` directive."""
    if not isinstance(order, list):
        raise ApiError("BadRequest", f"{_ORDER}{name} must be a list")
    key = _merge_key(name, value, base, schema)
    if key is None:
        return value
    if not key:
        return _by_patch_order(value, list(dict.fromkeys(order)), base if isinstance(base, list) else [])
    by_key = {_key_of(item, key): item for item in value}
    server = [_key_of(item, key) for item in base] if isinstance(base, list) else []
    wanted = [_key_of(item, key) for item in order]
    ranked = _by_patch_order(list(by_key), wanted, server)
    # Items that the patch brought but did not put in order come last rather than getting lost.
    return [by_key[i] for i in [*ranked, *(i for i in by_key if i not in ranked)]]


def go_map(value: Any) -> str:
    """A value as Go's %v prints it, for messages."""
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{go_map(v)}" for k, v in sorted(value.items())) + "]"
    if isinstance(value, list):
        return "[" + " ".join(map(go_map, value)) + "]"
    return "<nil>" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
