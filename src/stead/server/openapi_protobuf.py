"""OpenAPI v2 in protobuf, the only form that kubectl up to 1.27 reads for validation and `explain`.

Called by `openapi`. Writes the messages of gnostic's `OpenAPIv2.proto` (package openapi.v2) that clients look at: the
definitions, and for each kind a path whose patch operation says that `fieldValidation` is understood. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

#: the media type as answered, and how clients ask for it
MEDIA_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
ASKED = (MEDIA_TYPE, "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")

_VARINT, _LENGTH = 0, 2
#: string fields of message Schema
_TEXTS = (("$ref", 1), ("format", 2), ("description", 4), ("pattern", 13))
_KIND = "x-kubernetes-group-version-kind"

Schema = dict[str, Any]


def is_asked_for(accept: str) -> bool:
    """Whether an Accept header wants this form."""
    return any(media in accept for media in ASKED)


def encode(document: Schema, patched: Iterable[tuple[str, Schema]]) -> bytes:
    """The Document message of a v2 document. `patched` names, for each kind, a path and its group, version and kind."""
    info = document["info"]
    paths = b"".join(_field(2, _named(path, _field(8, _patch(kind)))) for path, kind in patched)
    return b"".join((
        _text(1, document["swagger"]),
        _field(2, _text(1, info["title"]) + _text(2, info["version"])),
        _field(8, paths),
        _field(9, _schemas(document["definitions"])),
    ))  # fmt: skip


def _patch(kind: Schema) -> bytes:
    """Operation of a PATCH: its kind, and the query parameters that kubectl looks for."""
    parameters = b"".join(
        _field(8, _field(1, _field(2, _field(3, _text(2, "query") + _text(4, name) + _text(6, "string")))))
        for name in ("dryRun", "fieldManager", "fieldValidation")
    )
    return parameters + _field(13, _extension(_KIND, kind))


def _schemas(schemas: dict[str, Schema]) -> bytes:
    """NamedSchema messages in field 1: the form of both Definitions and Properties."""
    return b"".join(_field(1, _named(name, _schema(schema))) for name, schema in schemas.items())


def _schema(schema: Schema) -> bytes:
    parts = [_text(number, schema[key]) for key, number in _TEXTS if isinstance(schema.get(key), str)]
    parts += [_text(19, name) for name in schema.get("required") or ()]
    parts += [_field(20, _any(value)) for value in schema.get("enum") or ()]
    extra = schema.get("additionalProperties")
    if extra is not None:
        parts.append(_field(21, _field(1, _schema(extra)) if isinstance(extra, dict) else _flag(2, bool(extra))))
    if isinstance(schema.get("type"), str):
        parts.append(_field(22, _text(1, schema["type"])))
    if isinstance(schema.get("items"), dict):
        parts.append(_field(23, _field(1, _schema(schema["items"]))))
    if schema.get("properties"):
        parts.append(_field(25, _schemas(schema["properties"])))
    parts += [_field(31, _extension(key, value)) for key, value in schema.items() if key.startswith("x-")]
    return b"".join(parts)


def _extension(name: str, value: Any) -> bytes:
    return _named(name, _any(value))


def _any(value: Any) -> bytes:
    # The field holds YAML, which JSON is.
    return _text(2, msgspec.json.encode(value).decode())


def _named(name: str, value: bytes) -> bytes:
    return _text(1, name) + _field(2, value)


def _text(number: int, value: str) -> bytes:
    return _field(number, value.encode())


def _flag(number: int, value: bool) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(int(value))


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
