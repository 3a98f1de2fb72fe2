"""Sets of field paths: what managedFields record, and how objects compare, merge and shrink by them.

Used by `apply` only. A path is a tuple of elements as FieldsV1 spells them: `f:<name>`, `k:<keys as JSON>`, `v:<scalar
as JSON>`; a set is a frozenset of paths. Which maps and lists are taken apart is the schema's word: maps are granular
unless `x-kubernetes-map-type: atomic`, lists atomic unless `x-kubernetes-list-type` is map or set; where the schema
says nothing, maps are granular and lists atomic. Pure. Follows sigs.k8s.io/structured-merge-diff v6 (fieldpath, typed).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from stead.kube.schema import INT_OR_STRING, LIST_KEYS, LIST_TYPE, MAP_TYPE, PRESERVE, Schema, child, type_of

Path = tuple[str, ...]
Paths = frozenset[Path]
EMPTY: Paths = frozenset()


class SchemaMismatch(ValueError):
    """A value that the schema cannot hold; the text names the path: `.spec.size: expected numeric …`."""


class Comparison(msgspec.Struct, frozen=True):
    """What happened between two values. A new or lost map is itself a member, beside what it holds."""

    added: Paths
    modified: Paths
    removed: Paths


# --- FieldsV1 ---------------------------------------------------------------------------------------------------


def paths_from_fields(fields: dict[str, Any]) -> Paths:
    """The set that a `fieldsV1` object spells. A node is a member if it is empty or holds "."."""
    return frozenset(_paths_below(fields, ()))


def _paths_below(fields: dict[str, Any], prefix: Path) -> Iterator[Path]:
    for element, below in fields.items():
        if element == ".":
            continue
        path = (*prefix, element)
        if not below or "." in below:
            yield path
        if below:
            yield from _paths_below(below, path)


def fields_from_paths(paths: Paths) -> dict[str, Any]:
    """The `fieldsV1` object for a set, sorted."""
    root: dict[str, Any] = {}
    for path in sorted(paths):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        node["."] = {}
    return _without_lonely_dots(root)


def _without_lonely_dots(node: dict[str, Any]) -> dict[str, Any]:
    return {k: {} if v.keys() == {"."} else _without_lonely_dots(v) for k, v in node.items()}


def told(paths: Paths) -> list[str]:
    """Paths as messages list them: at each level the fields themselves, then what lies below others."""
    ordered = sorted(paths, key=lambda path: [(at < len(path) - 1, element) for at, element in enumerate(path)])
    return [path_text(path) for path in ordered]


def path_text(path: Path) -> str:
    """A path as messages show it: `.spec.containers[name="c"].image`."""
    text = ""
    for element in path:
        kind, value = element[:2], element[2:]
        if kind == "f:":
            text += "." + value
        elif kind == "k:":
            text += "[" + _keys_text(json.loads(value)) + "]"
        else:
            text += f"[={value}]"
    return text


def _keys_text(keys: dict[str, Any]) -> str:
    return ",".join(f"{k}={_json(v)}" for k, v in keys.items())


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# --- what the schema takes apart --------------------------------------------------------------------------------


def is_granular(schema: Schema, value: Any) -> bool:
    """Whether the value is a map whose fields, or a list whose items, are owned one by one."""
    if isinstance(value, dict):
        return schema.get(MAP_TYPE) != "atomic"
    return isinstance(value, list) and schema.get(LIST_TYPE) in {"map", "set"}


def _children(schema: Schema, value: Any) -> list[tuple[str, Any, Schema]]:
    """(element, child, its schema) of a granular value; a list's repeated items come once, the first."""
    if isinstance(value, dict):
        return [("f:" + k, v, child(schema, k) or {}) for k, v in value.items()]
    items: Schema = schema.get("items") or {}
    found: dict[str, tuple[str, Any, Schema]] = {}
    for item in value:
        element = item_element(schema, item)
        found.setdefault(element, (element, item, items))
    return list(found.values())


def item_element(schema: Schema, item: Any) -> str:
    """The path element of an item of a granular list. A key field that is absent counts as its default, else null."""
    if schema.get(LIST_TYPE) == "set" or not isinstance(item, dict):
        return "v:" + _json(item)
    properties = (schema.get("items") or {}).get("properties", {})
    names = sorted(schema.get(LIST_KEYS) or [])
    return "k:" + _json({n: item.get(n, properties.get(n, {}).get("default")) for n in names})


def paths_of(schema: Schema, value: Any) -> Paths:
    """The fields that an applied value sets: leaves, items of granular lists, map entries, empty maps."""
    return frozenset(_set_paths(schema, value, ()))


def _set_paths(schema: Schema, value: Any, prefix: Path) -> Iterator[Path]:
    if not is_granular(schema, value):
        if prefix:
            yield prefix
        return
    declared = schema.get("properties", {})
    for element, item, inner in _children(schema, value):
        path = (*prefix, element)
        is_field = isinstance(value, dict) and element[2:] in declared
        if not is_field or item is None or item == {}:
            yield path
        yield from _set_paths(inner, item, path)


def with_named_fields(schema: Schema, paths: Paths) -> Paths:
    """The set plus every declared field on the way to a member, so that removing all of a struct removes it."""
    found = set(paths)
    for path in paths:
        node: Schema | None = schema
        for depth, element in enumerate(path[:-1]):
            if node is None:
                break
            if element.startswith("f:"):
                if element[2:] in node.get("properties", {}):
                    found.add(path[: depth + 1])
                node = child(node, element[2:])
            else:
                node = node.get("items")
    return frozenset(found)


# --- compare ----------------------------------------------------------------------------------------------------

_ABSENT: Any = object()


def compare(schema: Schema, old: Any, new: Any) -> Comparison:
    """Which fields came, changed and went between two objects."""
    added: set[Path] = set()
    modified: set[Path] = set()
    removed: set[Path] = set()
    _compare(schema, (old, new), (), (added, modified, removed))
    return Comparison(frozenset(added), frozenset(modified), frozenset(removed))


def _compare(schema: Schema, pair: tuple[Any, Any], path: Path, into: tuple[set[Path], set[Path], set[Path]]) -> None:
    old, new = pair
    if old is new or (old == new and _same(old, new)):
        return
    added, modified, removed = into
    if old is _ABSENT or new is _ABSENT:
        _collect(schema, new if old is _ABSENT else old, path, added if old is _ABSENT else removed)
        return
    parts = [_granular_children(schema, v) for v in pair]
    mixed = isinstance(old, dict) != isinstance(new, dict) or isinstance(old, list) != isinstance(new, list)
    if mixed or not any(parts):
        # Leaves, atomic values and maps that are empty on both sides.
        if path and not _same(old, new):
            modified.add(path)
        if not mixed:
            return
    before, after = parts
    for element in {**before, **after}:
        inner = (before.get(element) or after[element])[1]
        values = (before.get(element, (_ABSENT,))[0], after.get(element, (_ABSENT,))[0])
        _compare(inner, values, (*path, element), into)


def _collect(schema: Schema, value: Any, path: Path, into: set[Path]) -> None:
    """The path of a value that stands on one side only, and of all that is below it."""
    into.add(path)
    if is_granular(schema, value):
        for element, item, inner in _children(schema, value):
            _collect(inner, item, (*path, element), into)


def _granular_children(schema: Schema, value: Any) -> dict[str, tuple[Any, Schema]]:
    if value is _ABSENT or not is_granular(schema, value):
        return {}
    return {element: (item, inner) for element, item, inner in _children(schema, value)}


def _same(left: Any, right: Any) -> bool:
    """Equality in which true is not 1, but 1.0 is."""
    if left is right:
        return True
    if isinstance(left, bool) != isinstance(right, bool):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(v, right[k]) for k, v in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


# --- merge and remove -------------------------------------------------------------------------------------------


def merge(schema: Schema, live: Any, applied: Any) -> Any:
    """`live` with `applied` laid over it: granular values merge, all else is replaced."""
    if not is_granular(schema, applied) or type(live) is not type(applied):
        return applied
    if isinstance(applied, dict):
        changes = {
            k: merge(child(schema, k) or {}, live[k], v) if k in live else v for k, v in applied.items()
        }  # fmt: skip
        return {**live, **changes}
    return _merge_list(schema, live, applied)


def _merge_list(schema: Schema, live: list[Any], applied: list[Any]) -> list[Any]:
    items: Schema = schema.get("items") or {}
    theirs = [(item_element(schema, item), item) for item in live]
    ours = {item_element(schema, item): item for item in applied}
    first: dict[str, Any] = {}
    for element, item in theirs:
        first.setdefault(element, item)
    shared = [element for element in ours if element in first]
    result: list[Any] = []
    position = 0
    for element, item in ours.items():
        wanted = shared[0] if shared else None
        # What only the live list holds keeps its place before the next item that both hold.
        while position < len(theirs) and theirs[position][0] != wanted:
            if theirs[position][0] not in ours:
                result.append(theirs[position][1])
            position += 1
        result.append(merge(items, first[element], item) if element in first else item)
        if element == wanted:
            shared.pop(0)
            position += 1
    return [*result, *(item for element, item in theirs[position:] if element not in ours)]


def remove(schema: Schema, value: Any, paths: Paths) -> Any:
    """`value` without the fields and items in `paths` (and all below them). Lists that this empties go too."""
    return _remove(schema, value, paths, ())


def _remove(schema: Schema, value: Any, paths: Paths, prefix: Path) -> Any:
    if not is_granular(schema, value):
        return value
    depth = len(prefix)
    touched = {path[depth] for path in paths if len(path) > depth and path[:depth] == prefix}
    if not touched:
        return value
    if isinstance(value, list):
        items: Schema = schema.get("items") or {}
        elements = [(item_element(schema, item), item) for item in value]
        return [_remove(items, i, paths, (*prefix, e)) for e, i in elements if (*prefix, e) not in paths]
    result: dict[str, Any] = {}
    for key, item in value.items():
        path = (*prefix, "f:" + key)
        if path in paths:
            continue
        kept = _remove(child(schema, key) or {}, item, paths, path) if "f:" + key in touched else item
        if kept != [] or item == []:
            result[key] = kept
    return result


# --- is the applied object sound? -------------------------------------------------------------------------------

_NUMERIC = {"integer", "number"}


def check_typed(schema: Schema, value: Any, path: Path = ()) -> None:
    """Raise SchemaMismatch at the first field that is undeclared, of the wrong type, or twice in a set."""
    if value is None:
        return
    wanted, actual = schema.get("type"), type_of(value)
    if schema.get(INT_OR_STRING):
        wanted = actual if actual in {"integer", "string"} else "string"
    if wanted and not (wanted == actual or (wanted in _NUMERIC and actual in _NUMERIC)):
        raise SchemaMismatch(f"{path_text(path)}: {_expected(wanted, actual, value)}")
    if isinstance(value, dict):
        _check_map(schema, value, path)
    elif isinstance(value, list):
        _check_list(schema, value, path)


def _expected(wanted: str, actual: str, value: Any) -> str:
    words = {"object": "map", "array": "list", "integer": "numeric (int or float)", "number": "numeric (int or float)"}
    shown = actual if wanted in _NUMERIC else f"&value.valueUnstructured{{Value:{_json(value)}}}"
    return f"expected {words.get(wanted, wanted)}, got {shown}"


def _check_map(schema: Schema, value: dict[str, Any], path: Path) -> None:
    open_ended = schema.get(PRESERVE) or not schema.get("type")
    for key, item in value.items():
        inner = child(schema, key)
        if inner is not None:
            check_typed(inner, item, (*path, "f:" + key))
        elif not open_ended:
            raise SchemaMismatch(f"{path_text((*path, 'f:' + key))}: field not declared in schema")


def _check_list(schema: Schema, value: list[Any], path: Path) -> None:
    items: Schema = schema.get("items") or {}
    granular = is_granular(schema, value)
    seen: set[str] = set()
    for index, item in enumerate(value):
        element = item_element(schema, item) if granular else f"v:{index}"
        if element in seen:
            raise SchemaMismatch(f"{path_text(path)}: duplicate entries for key {path_text((element,))}")
        seen.add(element)
        check_typed(items, item, (*path, element))


def leaves(paths: Iterable[Path]) -> Paths:
    """The members below which the set holds nothing."""
    everything = set(paths)
    parents = {path[:depth] for path in everything for depth in range(1, len(path))}
    return frozenset(everything - parents)
