"""Structural schemas: made from our typed definitions, used to prune, default and validate objects.

One schema (an OpenAPI v3 dict with the `x-kubernetes-…` extensions) exists per kind. `schema_from_struct` derives it
from a msgspec Struct; user CRDs bring theirs. The server runs prune → default → validate on every write, in that order,
and uses the same dict for OpenAPI, `kubectl explain` and server-side apply. Nothing here changes its input: results
share untouched parts with it. Stateless but for caches; safe from any thread. Follows apiextensions' `schema` packages
and go-openapi's validator as recorded from kube-apiserver 1.36 (texts, reasons).

Rules for Structs: names by `rename="camel"`; a field without default is required; `T | None` is not nullable (a null is
dropped, as in Kubernetes); a Struct's default is for reading only, a stored default is
`Meta(extra_json_schema={"default": …})`, which also carries list types, map types, patch keys and formats; `int | str`
is int-or-string; `dict[str, Any]`, `Any` and recursion keep unknown fields. A root Struct that declares nothing but
`metadata` declares no schema: everything is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect as mi

from stead.kube.errors import cause
from stead.kube.meta import parse_time

Schema = dict[str, Any]
Causes = list[dict[str, str]]

PRESERVE = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"
EMBEDDED = "x-kubernetes-embedded-resource"
LIST_TYPE = "x-kubernetes-list-type"
LIST_KEYS = "x-kubernetes-list-map-keys"
MAP_TYPE = "x-kubernetes-map-type"

_STRING: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer", "format": "int64"}
_BOOLEAN: Schema = {"type": "boolean"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_STRING_MAP: Schema = {"type": "object", "additionalProperties": _STRING}

#: `metadata` of every object (metav1.ObjectMeta); order is that of messages and documents
OBJECT_META: Schema = {
    "type": "object",
    "description": "Standard object metadata.",
    "properties": {
        "name": {**_STRING, "description": "Name within the namespace; cannot be changed."},
        "generateName": {**_STRING, "description": "Prefix from which the server makes a unique name."},
        "namespace": {**_STRING, "description": "The space within which the name is unique."},
        "selfLink": _STRING,
        "uid": {**_STRING, "description": "Unique in time and space; set by the server."},
        "resourceVersion": {**_STRING, "description": "Opaque version for optimistic concurrency; set by the server."},
        "generation": {**_INTEGER, "description": "Counts changes of the desired state; set by the server."},
        "creationTimestamp": {**_TIME, "description": "When the object was created; set by the server."},
        "deletionTimestamp": {**_TIME, "description": "When deletion was asked for; set by the server."},
        "deletionGracePeriodSeconds": _INTEGER,
        "labels": {**_STRING_MAP, "description": "Keys and values to select objects by."},
        "annotations": {**_STRING_MAP, "description": "Keys and values for tools; cannot be selected by."},
        "ownerReferences": {
            "type": "array",
            "description": "Objects that this one belongs to; it goes when all of them have gone.",
            LIST_TYPE: "map",
            LIST_KEYS: ["uid"],
            "x-kubernetes-patch-merge-key": "uid",
            "x-kubernetes-patch-strategy": "merge",
            "items": {
                "type": "object",
                MAP_TYPE: "atomic",
                "required": ["apiVersion", "kind", "name", "uid"],
                "properties": {
                    "apiVersion": _STRING,
                    "kind": _STRING,
                    "name": _STRING,
                    "uid": _STRING,
                    "controller": _BOOLEAN,
                    "blockOwnerDeletion": _BOOLEAN,
                },
            },
        },
        "finalizers": {
            "type": "array",
            "description": "Names of those who must act before the object may go.",
            LIST_TYPE: "set",
            "x-kubernetes-patch-strategy": "merge",
            "items": _STRING,
        },
        "managedFields": {
            "type": "array",
            LIST_TYPE: "atomic",
            "items": {
                "type": "object",
                "properties": {
                    "manager": _STRING,
                    "operation": _STRING,
                    "apiVersion": _STRING,
                    "time": _TIME,
                    "fieldsType": _STRING,
                    "fieldsV1": {"type": "object", PRESERVE: True},
                    "subresource": _STRING,
                },
            },
        },
    },
}

_ROOT: Schema = {
    "apiVersion": {**_STRING, "description": "Version of the schema of this object."},
    "kind": {**_STRING, "description": "The kind of this object."},
    "metadata": OBJECT_META,
}


# --- from Structs -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def schema_from_struct(struct: type[msgspec.Struct]) -> Schema:
    """The structural schema of a root kind: the Struct's fields, and apiVersion, kind and metadata in any case."""
    info = mi.type_info(struct)
    assert isinstance(info, mi.StructType)
    schema = _from_type(info, ())
    schema.pop(PRESERVE, None)
    declared = set(schema.get("properties", {})) - set(_ROOT)
    schema["properties"] = {**_ROOT, **{k: v for k, v in schema.get("properties", {}).items() if k in declared}}
    required = [name for name in schema.pop("required", []) if name in declared]
    if required:
        schema["required"] = required
    if not declared:
        schema[PRESERVE] = True
    return schema


def object_schema(schema: Schema) -> Schema:
    """A CRD's `openAPIV3Schema` with the implicit root fields (apiVersion, kind, metadata) put in."""
    return {**schema, "properties": {**schema.get("properties", {}), **_ROOT}}


def _from_type(info: mi.Type, outer: tuple[type, ...]) -> Schema:
    """The schema of one inspected type; `outer` holds the Structs around it, to stop recursion."""
    if isinstance(info, mi.Metadata):
        return {**_from_type(info.type, outer), **(info.extra_json_schema or {})}
    if isinstance(info, mi.StructType):
        return _from_struct(info, outer)
    if isinstance(info, mi.UnionType):
        return _from_union(info, outer)
    if isinstance(info, mi.DictType):
        values = _from_type(info.value_type, outer)
        if values == {PRESERVE: True}:
            return {"type": "object", PRESERVE: True}
        return {"type": "object", "additionalProperties": values}
    if isinstance(info, mi.ListType | mi.VarTupleType | mi.SetType | mi.FrozenSetType):
        schema: Schema = {"type": "array", "items": _from_type(info.item_type, outer)}
        bounds = {"minItems": info.min_length, "maxItems": info.max_length}
        return {**schema, **{k: v for k, v in bounds.items() if v is not None}}
    return _from_scalar(info)


def _from_struct(info: mi.StructType, outer: tuple[type, ...]) -> Schema:
    if info.cls in outer:
        return {"type": "object", PRESERVE: True}
    inner = (*outer, info.cls)
    schema: Schema = {"type": "object"}
    own_doc = info.cls.__dict__.get("__doc__")
    if own_doc:
        schema["description"] = " ".join(own_doc.split())
    schema["properties"] = {f.encode_name: _from_type(f.type, inner) for f in info.fields}
    required = [f.encode_name for f in info.fields if f.required]
    if required:
        schema["required"] = required
    return schema


def _from_union(info: mi.UnionType, outer: tuple[type, ...]) -> Schema:
    parts = [t for t in info.types if not isinstance(t, mi.NoneType)]
    if len(parts) == 1:
        return _from_type(parts[0], outer)
    schemas = [_from_type(p, outer) for p in parts]
    if {s.get("type") for s in schemas} <= {"integer", "string", "number"}:
        extra = {k: v for s in schemas for k, v in s.items() if k in {"pattern", "description"}}
        return {INT_OR_STRING: True, **extra}
    return {PRESERVE: True}


def _from_scalar(info: mi.Type) -> Schema:
    match info:
        case mi.StrType():
            bounds = {"minLength": info.min_length, "maxLength": info.max_length, "pattern": info.pattern}
            return {"type": "string", **{k: v for k, v in bounds.items() if v is not None}}
        case mi.BoolType():
            return {"type": "boolean"}
        case mi.IntType() | mi.FloatType():
            return {"type": "integer" if isinstance(info, mi.IntType) else "number", **_number_bounds(info)}
        case mi.LiteralType():
            return {"type": _type_name(info.values[0]), "enum": list(info.values)}
        case mi.EnumType():
            values = [member.value for member in info.cls]
            return {"type": _type_name(values[0]), "enum": values}
        case mi.DateTimeType():
            return {"type": "string", "format": "date-time"}
        case mi.BytesType():
            return {"type": "string", "format": "byte"}
    return {PRESERVE: True}


def _number_bounds(info: mi.IntType | mi.FloatType) -> Schema:
    bounds: Schema = {}
    if info.ge is not None or info.gt is not None:
        bounds["minimum"] = info.ge if info.ge is not None else info.gt
    if info.le is not None or info.lt is not None:
        bounds["maximum"] = info.le if info.le is not None else info.lt
    if info.gt is not None:
        bounds["exclusiveMinimum"] = True
    if info.lt is not None:
        bounds["exclusiveMaximum"] = True
    return bounds


# --- walking ----------------------------------------------------------------------------------------------------


def child(schema: Schema, key: str) -> Schema | None:
    """The schema of one field or map value, or None where none is declared."""
    properties = schema.get("properties")
    if properties and key in properties:
        found: Schema = properties[key]
        return found
    if schema.get(EMBEDDED) and key in _ROOT:
        root: Schema = _ROOT[key]
        return root
    extra = schema.get("additionalProperties")
    return extra if isinstance(extra, dict) else None


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _rebuilt(value: Any, change: Callable[[Any, Any], Any]) -> Any:
    """`value` with every child replaced by `change(key, child)`; the same object when nothing changed."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    changed = [(key, change(key, item)) for key, item in items]
    if all(new is old for (_, new), (_, old) in zip(changed, items, strict=True)):
        return value
    return dict(changed) if isinstance(value, dict) else [new for _, new in changed]


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
        unknown += [_join(path, key) for key in strangers]
        value = {k: v for k, v in value.items() if k not in strangers}

    def below(key: str, item: Any) -> Any:
        inner = child(schema, key)
        return item if inner is None else _prune(inner, item, _join(path, key), unknown)

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
    nulls = {k for k, v in obj.items() if v is None and k not in missing and _drops_null(child(schema, k))}
    if nulls or missing:
        obj = {**{k: v for k, v in obj.items() if k not in nulls}, **missing}

    def below(key: str, item: Any) -> Any:
        inner = child(schema, key)
        return item if inner is None else default(inner, item)

    return _rebuilt(obj, below)


def _missing_defaults(schema: Schema, obj: dict[str, Any]) -> dict[str, Any]:
    return {
        key: inner["default"]
        for key, inner in schema.get("properties", {}).items()
        if "default" in inner and (key not in obj or (obj[key] is None and not inner.get("nullable")))
    }


def _drops_null(schema: Schema | None) -> bool:
    return schema is not None and not schema.get("nullable") and not (schema.get(PRESERVE) and "type" not in schema)


# --- validate ---------------------------------------------------------------------------------------------------


def validate(schema: Schema, value: Any, path: str = "", name: str | None = None) -> Causes:
    """`details.causes` for all that breaks the schema, in schema order.

    `path` is the field path of causes; `name` the path that texts show, where that differs (the status subresource is
    validated with path "status" and name "").
    """
    return _Validation().check(schema, value, path, path if name is None else name)


def type_of(value: Any) -> str:
    """The JSON type name of a value: object array string integer number boolean null."""
    return _type_name(value)


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    names: dict[type, str] = {dict: "object", list: "array", str: "string", int: "integer", type(None): "null"}
    return names.get(type(value), "object")


def _invalid(path: str, value: Any, text: str) -> dict[str, str]:
    return cause(path or "<nil>", f"Invalid value: {_shown(value)}: {text}")


def _shown(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class _Validation:
    """The checks of one pass; no state, the class only groups them."""

    def check(self, schema: Schema, value: Any, path: str, name: str) -> Causes:
        if value is None and (schema.get("nullable") or "type" not in schema):
            return []
        causes = self._type(schema, value, path, name)
        causes += self._enum(schema, value, path)
        if isinstance(value, str):
            causes += self._string(schema, value, path, name)
        elif isinstance(value, bool):
            pass
        elif isinstance(value, int | float):
            causes += self._number(schema, value, path, name)
        elif isinstance(value, list):
            causes += self._list(schema, value, path, name)
        elif isinstance(value, dict):
            causes += self._object(schema, value, path, name)
        return causes + self._junctors(schema, value, path, name)

    def _type(self, schema: Schema, value: Any, path: str, name: str) -> Causes:
        actual = _type_name(value)
        if schema.get(INT_OR_STRING):
            allowed = ["integer", "string"]
        elif wanted := schema.get("type"):
            allowed = [wanted]
        else:
            return []
        if actual in allowed or (actual == "integer" and allowed == ["number"]):
            return []
        text = f'Invalid value: "{actual}": {name} in body must be of type {",".join(allowed)}: "{actual}"'
        causes = [cause(path or "<nil>", text, "FieldValueTypeInvalid")]
        if actual == "number" and allowed == ["integer"]:
            kind = f"format {schema['format']}" if schema.get("format") else "(default format)"
            causes.append(cause("<nil>", f'Invalid value: "": Checked value must be of type integer {kind} in {name}'))
        return causes

    def _enum(self, schema: Schema, value: Any, path: str) -> Causes:
        allowed = schema.get("enum")
        if not allowed or value in allowed:
            return []
        listed = ", ".join(_shown(v) for v in allowed)
        text = f"Unsupported value: {_shown(value)}: supported values: {listed}"
        return [cause(path, text, "FieldValueNotSupported")]

    def _string(self, schema: Schema, value: str, path: str, name: str) -> Causes:
        causes: Causes = []
        longest, shortest, pattern = schema.get("maxLength"), schema.get("minLength"), schema.get("pattern")
        if longest is not None and len(value) > longest:
            causes.append(cause(path, f"Too long: may not be more than {longest} bytes", "FieldValueTooLong"))
        if shortest is not None and len(value) < shortest:
            causes.append(_invalid(path, value, f"{name} in body should be at least {shortest} chars long"))
        if pattern is not None and not _pattern(pattern).search(value):
            causes.append(_invalid(path, value, f"{name} in body should match '{pattern}'"))
        form = schema.get("format", "")
        if not _has_format(form, value):
            text = f"Invalid value: {_shown(value)}: {name} in body must be of type {form}: {_shown(value)}"
            causes.append(cause(path, text, "FieldValueTypeInvalid"))
        return causes

    def _number(self, schema: Schema, value: int | float, path: str, name: str) -> Causes:
        causes: Causes = []
        top, bottom, step = schema.get("maximum"), schema.get("minimum"), schema.get("multipleOf")
        if top is not None and (value > top or (value == top and schema.get("exclusiveMaximum"))):
            less = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
            causes.append(_invalid(path, value, f"{name} in body should be {less} {top}"))
        if bottom is not None and (value < bottom or (value == bottom and schema.get("exclusiveMinimum"))):
            more = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
            causes.append(_invalid(path, value, f"{name} in body should be {more} {bottom}"))
        if step and value % step:
            causes.append(_invalid(path, value, f"{name} in body should be a multiple of {step}"))
        form = schema.get("format")
        bits = {"int32": 31, "int64": 63}.get(form or "")
        if bits and schema.get("type") == "integer" and not -(2**bits) <= value < 2**bits:
            causes.append(
                cause("<nil>", f'Invalid value: "": Checked value must be of type integer with format {form} in {name}')
            )
        return causes

    def _list(self, schema: Schema, value: list[Any], path: str, name: str) -> Causes:
        causes: Causes = []
        most, least, items = schema.get("maxItems"), schema.get("minItems"), schema.get("items")
        if most is not None and len(value) > most:
            causes.append(cause(path, f"Too many: {len(value)}: must have at most {most} items", "FieldValueTooMany"))
        if least is not None and len(value) < least:
            causes.append(_invalid(path, len(value), f"{name} in body should have at least {least} items"))
        if isinstance(items, dict):
            for index, item in enumerate(value):
                causes += self.check(items, item, f"{path}[{index}]", f"{name}[{index}]")
        return causes + list(_duplicates(schema, value, path))

    def _object(self, schema: Schema, value: dict[str, Any], path: str, name: str) -> Causes:
        causes: Causes = []
        most, least = schema.get("maxProperties"), schema.get("minProperties")
        if most is not None and len(value) > most:
            causes.append(cause(path, f"Too many: {len(value)}: must have at most {most} items", "FieldValueTooMany"))
        if least is not None and len(value) < least:
            causes.append(_invalid(path, len(value), f"{name} in body should have at least {least} properties"))
        for key in schema.get("required", []):
            if key not in value:
                causes.append(cause(_join(path, key), "Required value", "FieldValueRequired"))
        for key, item in value.items():
            inner = child(schema, key)
            # The metadata of an object has rules of its own (see `type_mismatch` and `meta.validate_metadata`).
            if inner is not None and inner is not OBJECT_META:
                causes += self.check(inner, item, _join(path, key), _join(name, key))
        return causes

    def _junctors(self, schema: Schema, value: Any, path: str, name: str) -> Causes:
        causes: Causes = []
        for part in schema.get("allOf", []):
            causes += self.check(part, value, path, name)
        if options := schema.get("anyOf"):
            results = [self.check(o, value, path, name) for o in options]
            if all(results):
                causes.append(
                    _invalid(path, _summary(value), f"{name} in body must validate at least one schema (anyOf)")
                )
                causes += results[0]
        if options := schema.get("oneOf"):
            results = [self.check(o, value, path, name) for o in options]
            valid = sum(not r for r in results)
            if valid != 1:
                found = "Found none valid" if not valid else f"Found {valid} valid alternatives"
                text = f"{name} in body must validate one and only one schema (oneOf). {found}"
                causes.append(_invalid(path, _summary(value), text))
                causes += results[0] if not valid else []
        if (inverse := schema.get("not")) and not self.check(inverse, value, path, name):
            causes.append(_invalid(path, _summary(value), f"{name} in body must not validate the schema (not)"))
        return causes


def _summary(value: Any) -> Any:
    """What messages show of a structure: nothing."""
    return "" if isinstance(value, dict | list) else value


@lru_cache(maxsize=512)
def _pattern(pattern: str) -> re.Pattern[str]:
    r"""A Go pattern as Python's; `$` must not match before a last newline, as it does not in Go."""
    return re.compile(re.sub(r"(?<!\\)\$$", r"\\Z", pattern))


def _has_format(form: str, value: str) -> bool:
    if form == "date-time":
        try:
            parse_time(value)
        except ValueError:
            return False
    elif form == "date":
        return re.fullmatch(r"\d{4}-\d{2}-\d{2}", value) is not None
    elif form == "uuid":
        return re.fullmatch(r"(?i)[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", value) is not None
    elif form == "byte":
        return re.fullmatch(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", value) is not None
    return True


def _duplicates(schema: Schema, value: list[Any], path: str) -> Iterator[dict[str, str]]:
    """Causes for items that a set or map list holds twice."""
    kind = schema.get(LIST_TYPE)
    if kind not in {"set", "map"}:
        return
    keys = schema.get(LIST_KEYS, [])
    seen: set[str] = set()
    for index, item in enumerate(value):
        if kind == "map":
            if not isinstance(item, dict):
                continue
            item = {k: item[k] for k in sorted(keys) if k in item}
        text = _shown(item)
        if text in seen:
            yield cause(f"{path}[{index}]", f"Duplicate value: {text}", "FieldValueDuplicate")
        seen.add(text)


# --- Go's decoder -----------------------------------------------------------------------------------------------

_GO_KIND = {"object": "object", "array": "array", "string": "string", "integer": "number", "number": "number"}
_GO_TYPE = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}


def type_mismatch(schema: Schema, obj: dict[str, Any], kind: str) -> str | None:
    """The first type error as Go's JSON decoder words it, or None. For built-in kinds and any object's metadata.

    kube-apiserver answers these with 400 `<Kind> in version "<v>" cannot be handled as a <Kind>: <this text>`. Pass
    `{"properties": {"metadata": OBJECT_META}}` for custom resources, whose other fields are validated with causes.
    """
    return _mismatch(schema, obj, kind)


def _mismatch(schema: Schema, value: Any, where: str) -> str | None:
    if value is None:
        return None
    actual, wanted = _type_name(value), schema.get("type")
    matches = wanted is None or actual == wanted or (wanted == "number" and actual == "integer")
    if schema.get(INT_OR_STRING):
        matches = actual in {"integer", "string"}
    if not matches:
        field = where.replace("metadata", "ObjectMeta.metadata", 1) if ".metadata" in where else where
        target = _GO_TYPE.get(str(wanted), "map[string]interface {}" if wanted == "object" else "[]interface {}")
        return f"json: cannot unmarshal {_GO_KIND.get(actual, 'bool')} into Go struct field {field} of type {target}"
    if isinstance(value, dict):
        pairs = ((child(schema, k), v, f"{where}.{k}" if "properties" in schema else where) for k, v in value.items())
    elif isinstance(value, list):
        pairs = ((schema.get("items"), v, where) for v in value)
    else:
        return None
    return next((text for s, v, p in pairs if isinstance(s, dict) and (text := _mismatch(s, v, p))), None)


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
