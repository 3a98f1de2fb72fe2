"""Bytes ↔ objects: JSON and YAML as the API server reads and writes them.

The server decodes request bodies here, the CLI manifests, controllers annotations. What is read is hostile:
length, depth and alias expansion are bounded; duplicate keys are reported by path, and the last one wins, as in
Kubernetes. YAML is read by the rules of sigs.k8s.io/yaml (YAML 1.1 scalars, then JSON keys). Stateless; safe from any
thread.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

from stead.kube.errors import ApiError
from stead.kube.yamltext import MAX_DEPTH, Decoded, DecodeError, decode_yaml, decode_yaml_all, encode_yaml

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "YAML_TYPES",
    "DecodeError",
    "Decoded",
    "decode",
    "decode_documents",
    "decode_json",
    "decode_object",
    "decode_yaml",
    "decode_yaml_all",
    "encode",
    "encode_yaml",
]

#: request bodies above this are refused before they come here (kube-apiserver's limit)
MAX_BYTES = 3 * 1024 * 1024
#: keys in all objects of a body; no object that fits into the store has nearly as many, and each costs time
MAX_KEYS = 100_000
#: bytes of a refused body that its message shows
_SHOWN_BODY = 1024

YAML_TYPES = frozenset({"application/yaml", "application/apply-patch+yaml", "text/yaml", "application/x-yaml"})


def encode(value: Any) -> bytes:
    """Compact JSON."""
    return msgspec.json.encode(value)


def decode(body: bytes, content_type: str = "application/json") -> Decoded:
    """The value in a JSON or YAML body (parameters of the content type are ignored). Raises DecodeError."""
    if len(body) > MAX_BYTES:
        raise DecodeError(f"limit is {MAX_BYTES} bytes")
    kind = content_type.split(";", 1)[0].strip().lower()
    return decode_yaml(body) if kind in YAML_TYPES else decode_json(body)


def decode_object(body: bytes, content_type: str, kind: str) -> Decoded:
    """Like `decode`, but the value must be a JSON object; raises ApiError 400 as kube-apiserver words it for `kind`."""
    try:
        decoded = decode(body, content_type)
    except DecodeError as error:
        shown = str(error)
        if content_type.partition(";")[0].strip().lower() in YAML_TYPES:
            why = shown.removeprefix("error converting YAML to JSON: ")
        else:
            why = f"couldn't get version/kind; json parse error: {shown}"
        raise unrecognised(kind, why, body) from error
    if not isinstance(decoded.value, dict):
        raise unrecognised(kind, f"couldn't get version/kind; json parse error: {no_object(decoded.value)}", body)
    return decoded


def no_object(value: Any) -> str:
    """What Go says of a value where an object with a kind should be."""
    target = r'struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }'
    return f"json: cannot unmarshal {go_name(value)} into Go value of type {target}"


def go_name(value: Any) -> str:
    """What Go's decoder calls a value."""
    return _GO_NAMES[type(value)]


_GO_NAMES: dict[type, str] = {
    list: "array", str: "string", int: "number", float: "number", bool: "bool", type(None): "null", dict: "object",
}  # fmt: skip


def unrecognised(kind: str, why: str, body: bytes) -> ApiError:
    """400 for a body in which no object of a kind can be seen."""
    start = body[:_SHOWN_BODY]
    shown = start.decode("utf-8", "replace") if start.lstrip()[:1] == b"{" else start.hex()
    return ApiError(
        "BadRequest", f"the object provided is unrecognized (must be of type {kind}): {why} ({shown or '<empty>'})"
    )


def own_copy(value: Any) -> Any:
    """A copy of a JSON value in which nothing occurs twice: `deepcopy` would keep shared what two disks share.

    It is also ten times slower.
    """
    if isinstance(value, dict):
        return {key: own_copy(item) if isinstance(item, dict | list) else item for key, item in value.items()}
    return [own_copy(item) for item in value] if isinstance(value, list) else value


# --- JSON -------------------------------------------------------------------------------------------------------


class _Pairs:
    """Collects duplicate keys while the C scanner builds dicts. One instance a document."""

    def __init__(self) -> None:
        # id → (dict, keys): the dict is kept alive so that its id stays its own.
        self.found: dict[int, tuple[dict[str, Any], list[str]]] = {}
        self.keys = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.keys += len(pairs)
        if self.keys > MAX_KEYS:
            raise DecodeError(f"limit is {MAX_KEYS} keys")
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            again: list[str] = []
            for key, _ in pairs:
                if key in seen and key not in again:
                    again.append(key)
                seen.add(key)
            self.found[id(result)] = (result, again)
        return result


def _refuse_constant(text: str) -> Any:
    raise DecodeError(f"invalid character '{text[0]}' looking for beginning of value")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise DecodeError(f"json: cannot unmarshal number {text} into Go value of type float64")
    return number


def decode_json(body: bytes) -> Decoded:
    """The value of a JSON document. Raises DecodeError."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError("invalid UTF-8 in body") from error
    pairs = _Pairs()
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        why = _json_error(text, error)
        raise DecodeError(why, error.pos + 1 if why.startswith("invalid character") else 0) from error
    except RecursionError as error:
        raise DecodeError("exceeded max depth") from error
    except DecodeError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise DecodeError("number out of range") from error
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(value)
    if "\\ud" in text or "\\uD" in text:
        value = _without_surrogates(value)
    duplicates = _paths_of(value, pairs.found) if pairs.found else []
    return Decoded(value, tuple(duplicates))


_AFTER = {
    "Expecting property name": "looking for beginning of object key string",
    "Illegal trailing comma": "looking for beginning of value",
    "Expecting ':' delimiter": "after object key",
    "Expecting ',' delimiter": "after object key:value pair",
    "Extra data": "after top-level value",
    "Invalid control character": "in string literal",
}


def _json_error(text: str, error: json.JSONDecodeError) -> str:
    """What went wrong in the words of Go's decoder, near enough."""
    position = error.pos
    if position >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
        return "unexpected end of JSON input"
    rest = text[position : position + 5]
    for literal in ("null", "true", "false"):
        if rest[0] == literal[0] and error.msg == "Expecting value":
            at = next(i for i in range(len(literal) + 1) if i >= len(rest) or rest[i : i + 1] != literal[i : i + 1])
            if at >= len(rest):
                return "unexpected end of JSON input"
            return f"invalid character {_quoted(rest[at])} in literal {literal} (expecting '{literal[at]}')"
    what = next(
        (words for start, words in _AFTER.items() if error.msg.startswith(start)), "looking for beginning of value"
    )
    return f"invalid character {_quoted(text[position])} {what}"


def _quoted(char: str) -> str:
    return r"'\''" if char == "'" else repr(char)


def _check_depth(value: Any) -> None:
    """Raise DecodeError if the value nests deeper than MAX_DEPTH. Breadth-first, so that nothing overflows."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise DecodeError("exceeded max depth")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        level, depth = below, depth + 1


def _without_surrogates(value: Any) -> Any:
    """Lone surrogates (which no UTF-8 can carry) become U+FFFD, as Go reads them."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(v) for v in value]
    return value


def _paths_of(value: Any, found: dict[int, tuple[dict[str, Any], list[str]]], path: str = "") -> list[str]:
    paths: list[str] = []
    if isinstance(value, dict):
        again = found.get(id(value), (value, []))[1]
        for key, item in value.items():
            below = f"{path}.{key}" if path else key
            if key in again:
                paths.append(below)
            paths += _paths_of(item, found, below)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            paths += _paths_of(item, found, f"{path}[{index}]")
    return paths


def decode_documents(data: bytes) -> list[dict[str, Any]]:
    """The objects of a manifest file: one JSON object, or YAML documents; empty ones are left out. Raises ApiError 400.

    The caller bounds the length; nesting and aliases are bounded as everywhere.
    """
    try:
        if data.lstrip()[:1] == b"{":
            values = [decode_json(data).value]
        else:
            values = [document.value for document in decode_yaml_all(data)]
    except DecodeError as error:
        raise ApiError("BadRequest", f"error parsing manifest: {error}") from error
    objects = [value for value in values if value is not None]
    if not all(isinstance(value, dict) for value in objects):
        raise ApiError("BadRequest", "error parsing manifest: every document must be an object")
    return objects
