"""Whether a schema that somebody wrote is structural, and why not, in the API server's words.

Called for CustomResourceDefinitions; our own schemas come from Structs and need no check. Pure. Follows apiextensions'
`validation` and `schema` packages (ValidateCustomResourceDefinitionOpenAPISchema, ValidateStructural) as recorded from
kube-apiserver 1.36.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from stead.kube import rule_check
from stead.kube.errors import cause
from stead.kube.gopattern import compile_go
from stead.kube.schema import validate
from stead.kube.structural import EMBEDDED, INT_OR_STRING, LIST_KEYS, LIST_TYPE, MAP_TYPE, PRESERVE, RULES, Schema

Causes = list[dict[str, str]]

_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_JUNCTORS = ("allOf", "anyOf", "oneOf")
_UNSUPPORTED = ("$ref", "id", "definitions", "dependencies", "patternProperties", "additionalItems")
#: what a schema inside allOf, anyOf, oneOf or not may not say
_NO_STRUCTURE = (
    "type", "title", "description", "default", "nullable", "additionalProperties", PRESERVE, EMBEDDED, INT_OR_STRING,
    LIST_TYPE, LIST_KEYS, MAP_TYPE, RULES,
)  # fmt: skip
_WHERE = {"": "at the root", "properties": "for specified object fields", "items": "for specified array items"}
_MAX_DEPTH = 64


def check_structural(schema: Schema, path: str) -> Causes:
    """Causes for what keeps a root schema from being structural. `path` is its field path."""
    if misshapen := [*_misshapen(schema, path, 0)]:
        return misshapen
    causes = [*_walk(schema, path)]
    if schema.get("type") == "object" or "type" not in schema:
        causes += _metadata(schema, path)
    elif schema.get("type") in _TYPES:
        causes.append(_invalid(f"{path}.type", schema["type"], "must be object at the root"))
    causes += _structure(schema, path, "")
    return causes or [*_defaults(schema, path)]


def _invalid(field: str, value: Any, text: str) -> dict[str, str]:
    return cause(field, f"Invalid value: {json.dumps(value, separators=(',', ':'))}: {text}")


def _forbidden(field: str, text: str) -> dict[str, str]:
    return cause(field, f"Forbidden: {text}", "FieldValueForbidden")


def _required(field: str, text: str) -> dict[str, str]:
    return cause(field, f"Required value: {text}", "FieldValueRequired")


def _children(schema: Schema, path: str) -> Iterator[tuple[Schema, str, str]]:
    """(schema, path, place) of everything directly below."""
    for name, inner in sorted((schema.get("properties") or {}).items()):
        yield inner, f"{path}.properties[{name}]", "properties"
    if isinstance(schema.get("items"), dict):
        yield schema["items"], f"{path}.items", "items"
    if isinstance(schema.get("additionalProperties"), dict):
        yield schema["additionalProperties"], f"{path}.additionalProperties", "properties"


def _nested(schema: Schema, path: str) -> Iterator[tuple[Schema, str]]:
    """Schemas in the junctors of a schema."""
    for junctor in _JUNCTORS:
        for index, inner in enumerate(schema.get(junctor) or ()):
            yield inner, f"{path}.{junctor}[{index}]"
    if isinstance(schema.get("not"), dict):
        yield schema["not"], f"{path}.not"


# --- shape ------------------------------------------------------------------------------------------------------------

_NUMBERS = ("maximum", "minimum", "multipleOf")
_COUNTS = ("maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties")
_FLAGS = ("nullable", "uniqueItems", "exclusiveMaximum", "exclusiveMinimum", PRESERVE, EMBEDDED, INT_OR_STRING)
_SHAPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("type", "format", "pattern", "title", "description", LIST_TYPE, MAP_TYPE), (str,)),
    **dict.fromkeys(("properties", "not"), (dict,)),
    **dict.fromkeys((*_JUNCTORS, "required", "enum", LIST_KEYS, RULES), (list,)),
    **dict.fromkeys(_NUMBERS, (int, float)),
    **dict.fromkeys(_COUNTS, (int,)),
    **dict.fromkeys(_FLAGS, (bool,)),
    "items": (dict, list),
    "additionalProperties": (dict, bool),
}
_RULE_TEXTS = ("rule", "message", "messageExpression", "reason", "fieldPath")
_ITEMS: dict[str, type] = {"required": str, LIST_KEYS: str, RULES: dict, **dict.fromkeys(_JUNCTORS, dict)}


def _misshapen(schema: Any, path: str, depth: int) -> Iterator[dict[str, str]]:
    """Causes for keywords whose values are of the wrong type; nothing else is looked at before these are right."""
    if not isinstance(schema, dict):
        yield _invalid(path, schema, "must be a schema object")
        return
    if depth > _MAX_DEPTH:
        yield _forbidden(path, f"must not be nested deeper than {_MAX_DEPTH} levels")
        return
    wrong = False
    for name, value in schema.items():
        allowed = _SHAPES.get(name)
        fits = allowed is None or (isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool)))
        if fits and name in _ITEMS:
            fits = all(isinstance(item, _ITEMS[name]) for item in value)
            if fits and name == RULES:
                fits = all(isinstance(said, str | bool) for rule in value for said in rule.values())
                fits = fits and not any(isinstance(rule.get(word), bool) for rule in value for word in _RULE_TEXTS)
                fits = fits and all(isinstance(rule.get("optionalOldSelf", False), bool) for rule in value)
        if not fits:
            wrong = True
            yield _invalid(f"{path}.{name}", value, "is of the wrong type")
    if not wrong:
        for inner, where in [*((s, p) for s, p, _ in _children(schema, path)), *_nested(schema, path)]:
            yield from _misshapen(inner, where, depth + 1)


# --- single keywords ------------------------------------------------------------------------------------------------


def _walk(schema: Schema, path: str, unrelated: str = "") -> Iterator[dict[str, str]]:
    """Causes of a node and all below; `unrelated` is the path of a list above whose items have no past."""
    yield from _keywords(schema, path)
    yield from _list_rules(schema, path)
    yield from rule_check.check_rules(schema, path, unrelated)
    without_past = unrelated or ("" if schema.get(LIST_TYPE) == "map" else path)
    for inner, where, _ in _children(schema, path):
        yield from _walk(inner, where, without_past if schema.get("items") is inner else unrelated)
    for inner, where in _nested(schema, path):
        yield from _walk(inner, where, unrelated)


def _keywords(schema: Schema, path: str) -> Iterator[dict[str, str]]:
    for name in _UNSUPPORTED:
        if schema.get(name):
            yield _forbidden(f"{path}.{name}", f"{name} is not supported")
    kind = schema.get("type")
    if kind == "null":
        yield _forbidden(f"{path}.type", "type cannot be set to null, use nullable as an alternative")
    elif kind is not None and kind not in _TYPES:
        yield _unsupported(f"{path}.type", kind, _TYPES)
    if schema.get("uniqueItems"):
        text = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        yield _forbidden(f"{path}.uniqueItems", text)
    if schema.get("additionalProperties") is False:
        yield _forbidden(f"{path}.additionalProperties", "additionalProperties cannot be set to false")
    if schema.get("properties") and schema.get("additionalProperties"):
        yield _forbidden(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
    if isinstance(schema.get("items"), list):
        yield _forbidden(f"{path}.items", "items must be a schema object and not an array")
    if schema.get(PRESERVE) is False:
        yield _invalid(f"{path}.{PRESERVE}", False, "must be true or undefined")
    pattern = schema.get("pattern")
    if pattern and (trouble := _pattern_trouble(pattern)):
        yield _invalid(f"{path}.pattern", pattern, f"must be a valid regular expression, but isn't: {trouble}")


def _pattern_trouble(pattern: Any) -> str:
    try:
        compile_go(str(pattern))
    except re.error as error:
        return str(error)
    return ""


def _unsupported(field: str, value: Any, allowed: tuple[str, ...]) -> dict[str, str]:
    listed = ", ".join(f'"{name}"' for name in allowed)
    return cause(field, f"Unsupported value: {json.dumps(value)}: supported values: {listed}", "FieldValueNotSupported")


def _list_rules(schema: Schema, path: str) -> Iterator[dict[str, str]]:
    kind, keys, items = schema.get(LIST_TYPE), schema.get(LIST_KEYS) or [], schema.get("items")
    if kind is not None and schema.get("type") != "array":
        text = f"must be array if {LIST_TYPE} is specified"
        yield _invalid(f"{path}.type", schema["type"], text) if schema.get("type") else _required(f"{path}.type", text)
    if kind is not None and kind not in ("atomic", "set", "map"):
        yield _unsupported(f"{path}.{LIST_TYPE}", kind, ("atomic", "set", "map"))
    if keys and kind != "map":
        text = f"must be map if {LIST_KEYS} is non-empty"
        yield _invalid(f"{path}.{LIST_TYPE}", kind, text) if kind else _required(f"{path}.{LIST_TYPE}", text)
    if kind == "map":
        if not keys:
            yield _required(f"{path}.{LIST_KEYS}", f"must not be empty if {LIST_TYPE} is map")
        yield from _map_keys(items if isinstance(items, dict) else {}, keys, path)
    scope = schema.get(MAP_TYPE)
    if scope is not None and scope not in ("atomic", "granular"):
        yield _unsupported(f"{path}.{MAP_TYPE}", scope, ("atomic", "granular"))
    if scope is not None and schema.get("type") != "object":
        text = f"must be object if {MAP_TYPE} is specified"
        yield _invalid(f"{path}.type", schema["type"], text) if schema.get("type") else _required(f"{path}.type", text)


def _map_keys(items: Schema, keys: list[str], path: str) -> Iterator[dict[str, str]]:
    properties = items.get("properties") or {}
    if items.get("type") not in (None, "object"):
        yield _invalid(f"{path}.items.type", items["type"], f"must be object if parent array's {LIST_TYPE} is map")
    if any(key not in properties for key in keys):
        yield _invalid(f"{path}.{LIST_KEYS}", keys, "entries must all be names of item properties")
    for index, key in enumerate(keys):
        inner = properties.get(key)
        if inner is None:
            continue
        if inner.get("type") in ("array", "object"):
            text = f"must be a scalar type if parent array's {LIST_TYPE} is map"
            yield _invalid(f"{path}.items.properties[{key}].type", inner["type"], text)
        if "default" not in inner and key not in (items.get("required") or ()):
            text = f"this property is in {LIST_KEYS}, so it must have a default or be a required property"
            yield _required(f"{path}.items.properties[{key}].default", text)
        if key in keys[:index]:
            yield cause(f"{path}.{LIST_KEYS}[{index}]", f'Duplicate value: "{key}"', "FieldValueDuplicate")


# --- structure --------------------------------------------------------------------------------------------------------


def _structure(schema: Schema, path: str, place: str) -> Causes:
    """Types at every node, and no structure inside junctors."""
    causes: Causes = []
    for inner, where, below in _children(schema, path):
        causes += _structure(inner, where, below)
        if inner.get(EMBEDDED):
            causes += _metadata(inner, where)
    for inner, where in _nested(schema, path):
        causes += _junctor(schema, inner, where)
    if schema.get(INT_OR_STRING):
        if schema.get("type"):
            text = f"must be empty if {INT_OR_STRING} is true"
            causes.append(_invalid(f"{path}.type", schema["type"], text))
    elif not schema.get("type") and not (schema.get(PRESERVE) and place):
        causes.append(_required(f"{path}.type", f"must not be empty {_WHERE[place]}"))
    if schema.get("type") == "array" and not isinstance(schema.get("items"), dict | list):
        causes.append(_required(f"{path}.items", "must be specified"))
    if schema.get(EMBEDDED):
        if schema.get("type") != "object":
            causes.append(_invalid(f"{path}.type", schema.get("type", ""), f"must be object if {EMBEDDED} is true"))
        if not schema.get("properties") and not schema.get(PRESERVE):
            text = f"must not be empty if {EMBEDDED} is true without {PRESERVE}"
            causes.append(_required(f"{path}.properties", text))
    return causes


def _junctor(outer: Schema, schema: Schema, path: str) -> Causes:
    causes: Causes = []
    allowed_type = outer.get(INT_OR_STRING) and set(schema) == {"type"}
    causes += [
        _forbidden(f"{path}.{name}", "must be empty to be structural")
        for name in _NO_STRUCTURE
        if name in schema and not (name == "type" and allowed_type)
    ]
    declared = outer.get("properties") or {}
    for name, inner in sorted((schema.get("properties") or {}).items()):
        if name in declared:
            causes += _junctor(declared[name], inner, f"{path}.properties[{name}]")
        elif not outer.get(PRESERVE):
            root = re.sub(r"\.(allOf|anyOf|oneOf)\[\d+\].*|\.not.*", "", path)
            text = f"because it is defined in {path}.properties[{name}]"
            causes.append(_required(f"{root}.properties[{name}]", text))
    for inner, where in _nested(schema, path):
        causes += _junctor(outer, inner, where)
    return causes


def _metadata(schema: Schema, path: str) -> Causes:
    """An object's metadata is implied; a schema may narrow its names only."""
    metadata = (schema.get("properties") or {}).get("metadata")
    if not isinstance(metadata, dict):
        return []
    extra = set(metadata) - {"type", "properties", "description", "title"}
    if extra or set(metadata.get("properties") or ()) - {"name", "generateName"}:
        text = "must not specify anything other than name and generateName, but metadata is implicitly specified"
        return [_forbidden(f"{path}.properties[metadata]", text)]
    return []


def _defaults(schema: Schema, path: str) -> Iterator[dict[str, str]]:
    """Causes for defaults that the schema itself would refuse."""
    for inner, where, _ in _children(schema, path):
        if inner.get("default") is not None:
            yield from validate(inner, inner["default"], f"{where}.default")
        yield from _defaults(inner, where)
