"""YAML as Kubernetes reads and writes it, with every bound checked on the way.

The face is `encoding`; this module also owns what both readers share (`Decoded`, `DecodeError`, the depth). Input is
hostile: the builder works on parser events without recursion, so that neither depth nor aliases can hurt. Stateless;
safe from any thread. Follows sigs.k8s.io/yaml: YAML 1.1 scalars, JSON keys, the last of duplicate keys wins.
"""

from __future__ import annotations

import base64
import binascii
import copy
import json
import math
import re
from collections.abc import Iterable
from typing import Any

import msgspec
import yaml

#: nesting of objects and lists; far above any kind served, far below Python's recursion limit
MAX_DEPTH = 200
#: values after alias expansion in a YAML document
MAX_YAML_NODES = 500_000


class Decoded(msgspec.Struct, frozen=True):
    """A decoded body: the value and the paths (`spec.a`) of fields that came more than once, in order.

    `repeats` says the same of YAML in the words of its reader, by line.
    """

    value: Any
    duplicates: tuple[str, ...] = ()
    repeats: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """What fieldValidation tells of fields that came more than once."""
        return list(self.repeats) or repeated_fields(self.duplicates)


def repeated_fields(paths: Iterable[str]) -> list[str]:
    """The problems that fields given twice are."""
    return [f'duplicate field "{path}"' for path in paths]


class DecodeError(ValueError):
    """The bytes are no acceptable JSON or YAML; the text says why, in the API server's words where it has some.

    `offset` counts characters up to one that may not stand there, 0 where the text is about something else.
    """

    def __init__(self, text: str, offset: int = 0) -> None:
        super().__init__(text)
        self.offset = offset


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_TRUE = frozenset("y Y yes Yes YES true True TRUE on On ON".split())  # noqa: SIM905 - a word list reads best so
_FALSE = frozenset("n N no No NO false False FALSE off Off OFF".split())  # noqa: SIM905 - likewise
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_INT_RE = re.compile(r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)")
_FLOAT_RE = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_TAG = "tag:yaml.org,2002:"


def decode_yaml(body: bytes) -> Decoded:
    """The value of the one document in `body`, as JSON types. Raises DecodeError; more documents are refused."""
    documents = decode_yaml_all(body)
    if len(documents) > 1:
        raise DecodeError("expected a single document in the stream, but found more")
    return documents[0] if documents else Decoded(None)


def decode_yaml_all(body: bytes) -> list[Decoded]:
    """Every document of a YAML stream (a manifest with `---` lines). Raises DecodeError."""
    try:
        # PyYAML's reader takes a str; C and Python parsers give the same events.
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DecodeError("yaml: invalid Unicode in body") from error
    builder = _YamlBuilder()
    try:
        for event in yaml.parse(text, Loader=_Loader):
            builder.feed(event)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise DecodeError(f"error converting YAML to JSON: yaml: {_where(error)}{problem}") from error
    return builder.documents


def _where(error: yaml.YAMLError) -> str:
    """The line of a syntax error as Go's library counts it: parsers say where they were, scanners one further."""
    mark = getattr(error, "problem_mark", None)
    line = (mark.line if mark else 0) + isinstance(error, yaml.scanner.ScannerError)
    context = getattr(error, "context_mark", None)
    line = line or (context.line if context else 0)
    return f"line {line}: " if line else ""


class _Frame:
    """An open mapping or sequence while events come in."""

    __slots__ = ("anchor", "duplicates", "key", "merges", "path", "start", "value")

    def __init__(self, value: Any, path: str, anchor: str | None, start: int) -> None:
        self.value = value
        self.path = path
        self.anchor = anchor
        self.start = start
        self.key: str | None = None
        self.merges: list[dict[str, Any]] = []
        self.duplicates: set[str] = set()


class _YamlBuilder:
    """Builds values from parser events, without recursion and with every bound checked on the way."""

    def __init__(self) -> None:
        self.documents: list[Decoded] = []
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._duplicates: list[str] = []
        self._repeats: list[str] = []
        self._line = 0
        self._nodes = 0
        self._root: Any = None

    def feed(self, event: Any) -> None:
        """Take one parser event."""
        self._line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event.anchor)
        elif isinstance(event, yaml.MappingStartEvent):
            self._open({}, event.anchor)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._open([], event.anchor)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._close()
        elif isinstance(event, yaml.DocumentStartEvent):
            self._anchors, self._duplicates, self._repeats, self._root = {}, [], [], None
        elif isinstance(event, yaml.DocumentEndEvent):
            self.documents.append(Decoded(self._root, tuple(self._duplicates), tuple(self._repeats)))

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_YAML_NODES:
            raise DecodeError("yaml: document contains excessive aliasing")

    def _path(self) -> str:
        if not self._stack:
            return ""
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            return f"{frame.path}[{len(frame.value)}]"
        return f"{frame.path}.{frame.key}" if frame.path else str(frame.key)

    def _open(self, value: Any, anchor: str | None) -> None:
        if len(self._stack) >= MAX_DEPTH:
            raise DecodeError("yaml: exceeded max depth")
        if self._stack and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None:
            raise DecodeError("yaml: a mapping key must be a scalar")
        self._count(1)
        self._stack.append(_Frame(value, self._path(), anchor, self._nodes))

    def _close(self) -> None:
        frame = self._stack.pop()
        if frame.merges:
            merged: dict[str, Any] = {}
            for source in frame.merges:
                merged = {**source, **merged}
            frame.value = {**merged, **frame.value}
        if frame.anchor:
            self._anchors[frame.anchor] = (frame.value, self._nodes - frame.start + 1)
        self._put(frame.value)

    def _scalar(self, event: Any) -> None:
        self._count(1)
        value = _yaml_scalar(event)
        if event.anchor:
            self._anchors[event.anchor] = (value, 1)
        frame = self._stack[-1] if self._stack else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            # A plain `<<` merges; a quoted one is a key like any other.
            plain_merge = event.implicit[0] and event.value == "<<"
            self._key(frame, "<<" if plain_merge else _json_key(value), merge=plain_merge)
        else:
            self._put(value)

    def _key(self, frame: _Frame, key: str, *, merge: bool) -> None:
        frame.key = "\x00<<" if merge else key
        if not merge and key in frame.value:
            self._repeats.append(f'line {self._line}: key "{key}" already set in map')
        if not merge and key in frame.value and key not in frame.duplicates:
            frame.duplicates.add(key)
            self._duplicates.append(f"{frame.path}.{key}" if frame.path else key)

    def _alias(self, name: str | None) -> None:
        if name is None or name not in self._anchors:
            raise DecodeError(f"yaml: unknown anchor '{name}' referenced")
        value, size = self._anchors[name]
        self._count(size)
        frame = self._stack[-1] if self._stack else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            if isinstance(value, dict | list):
                raise DecodeError("yaml: a mapping key must be a scalar")
            self._key(frame, _json_key(value), merge=False)
        else:
            self._put(copy.deepcopy(value))

    def _put(self, value: Any) -> None:
        if not self._stack:
            self._root = value
            return
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            frame.value.append(value)
            return
        key, frame.key = frame.key, None
        if key != "\x00<<":
            frame.value[key] = value
            return
        sources = value if isinstance(value, list) else [value]
        if not all(isinstance(s, dict) for s in sources):
            raise DecodeError("yaml: map merge requires map or sequence of maps as the value")
        frame.merges += sources


def _json_key(value: Any) -> str:
    """A scalar as a JSON key: YAML's `true:`, `1:` and `null:` keys become text."""
    if isinstance(value, str):
        return value
    return "null" if value is None else json.dumps(value)


def _yaml_scalar(event: Any) -> Any:
    """The JSON value of a scalar event, by YAML 1.1 as Go's library reads it."""
    text: str = event.value
    tag: str = event.tag or ""
    if tag == _TAG + "binary":
        return _binary(text)
    if (tag and tag not in {"!", *(_TAG + t for t in ("bool", "int", "float", "null"))}) or not (
        tag or event.implicit[0]
    ):
        return text
    if event.style in {"'", '"', "|", ">"} and not tag:
        return text
    return _plain(text)


def _binary(text: str) -> str:
    try:
        return base64.b64decode(text).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise DecodeError("yaml: !!binary value contains invalid base64 data") from error


def _plain(text: str) -> Any:
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if text[0] not in "+-.0123456789":
        return text
    bare = text.replace("_", "")
    if len(bare) < 100 and _INT_RE.fullmatch(text):
        return _integer(bare)
    if _FLOAT_RE.fullmatch(bare) and "_" not in text[:1]:
        number = float(bare)
        if math.isinf(number):
            raise DecodeError(f"yaml: number {text[:40]} out of range")
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", text):
        raise DecodeError("json: unsupported value: " + text)
    return text


def _integer(bare: str) -> int | float | str:
    sign, digits = (bare[0], bare[1:]) if bare[0] in "+-" else ("", bare)
    base = {"0b": 2, "0o": 8, "0x": 16}.get(digits[:2].lower())
    try:
        if base is not None:
            number = int(digits[2:], base)
        elif len(digits) > 1 and digits[0] == "0":
            # Octal by a leading zero; with an 8 or 9 in it Go reads a float.
            number = int(digits, 8) if not re.search("[89]", digits) else int(digits)
        else:
            number = int(digits)
    except ValueError:
        return bare
    number = -number if sign == "-" else number
    try:
        return number if -(2**63) <= number < 2**64 else float(number)
    except OverflowError:  # digits beyond any number: text
        return bare


def encode_yaml(value: Any) -> bytes:
    """YAML in block style with sorted keys, as `kubectl -o yaml` prints."""
    text: str = yaml.dump(
        value, Dumper=_QuotingDumper, default_flow_style=False, allow_unicode=True, sort_keys=True, width=80
    )
    return text.encode()


class _QuotingDumper(_Dumper):  # type: ignore[misc]  # the base is chosen at import: C where libyaml is there
    """Quotes the YAML 1.1 booleans that PyYAML leaves bare, and never writes aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


#: plain texts that YAML 1.1 takes for a time or a number of base 60
_OTHER_RE = re.compile(
    r"\d{4}-\d{1,2}-\d{1,2}([Tt ]\d{1,2}:\d{1,2}:\d{1,2}(\.\d*)?([Zz]|[+-]\d\d:\d\d)?)?"
    r"|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"
)


def _represent_text(dumper: Any, text: str) -> Any:
    # Texts that other readers take for something else than a string.
    quoted = (
        bool(_OTHER_RE.fullmatch(text)) or text in _TRUE or text in _FALSE or not isinstance(_plain_or_text(text), str)
    )
    style = "|" if "\n" in text and not text.startswith(" ") else '"' if quoted else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


def _plain_or_text(text: str) -> Any:
    try:
        return _plain(text)
    except DecodeError:
        return None


_QuotingDumper.add_representer(str, _represent_text)
