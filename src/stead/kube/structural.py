"""What a structural schema is, and how one comes from a typed definition.

A schema is an OpenAPI v3 dict with Kubernetes' `x-kubernetes-…` extensions; one exists per kind. `schema` (the face
that others import), `validation` and `fieldset` build on this module. Stateless but for a cache; safe from any thread.
Source: CustomResourceDefinition (apiextensions.k8s.io/v1) and metav1.ObjectMeta.

Rules for Structs: names by `rename="camel"`; a field without default is required; `T | None` is not nullable (a null is
dropped, as in Kubernetes); a Struct's default is for reading only, a stored default is
`Meta(extra_json_schema={"default": …})`, which also carries list types, map types, patch keys and formats; `int | str`
is int-or-string; `dict[str, Any]`, `Any` and recursion keep unknown fields. A root Struct that declares nothing but
`metadata` declares no schema: everything is kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect as mi

Schema = dict[str, Any]

PRESERVE = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"
EMBEDDED = "x-kubernetes-embedded-resource"
LIST_TYPE = "x-kubernetes-list-type"
LIST_KEYS = "x-kubernetes-list-map-keys"
MAP_TYPE = "x-kubernetes-map-type"
RULES = "x-kubernetes-validations"

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
            return {"type": type_of(info.values[0]), "enum": list(info.values)}
        case mi.EnumType():
            values = [member.value for member in info.cls]
            return {"type": type_of(values[0]), "enum": values}
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


# --- looking into ----------------------------------------------------------------------------------------------------


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


def join(path: str, key: str) -> str:
    """The field path of a child."""
    return f"{path}.{key}" if path else key


def type_of(value: Any) -> str:
    """The JSON type name of a value: object array string integer number boolean null. 1.0 is an integer."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    names: dict[type, str] = {dict: "object", list: "array", str: "string", int: "integer", type(None): "null"}
    return names.get(type(value), "object")
