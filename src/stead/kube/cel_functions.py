"""The functions that validation rules may call: CEL's own and its string extensions; `cel_library` has Kubernetes'.

Two tables for `cel`, by name and number of arguments: of plain calls, and of calls on a value, which is then the first
argument. Pure but for the rule's budget. Each raises RuleError (TypeError and AttributeError mean the same). Sources:
the CEL language definition and cel-go's extensions.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
import zoneinfo
from collections.abc import Callable
from typing import Any

from stead.kube.cel_format import format_text
from stead.kube.cel_library import CALLS as LIBRARY_CALLS
from stead.kube.cel_library import METHODS as LIBRARY_METHODS
from stead.kube.cel_library import text_of_library_value
from stead.kube.cel_operators import checked, equal, items_of, text, whole
from stead.kube.cel_values import (
    NANO,
    NONE,
    Duration,
    Maybe,
    RuleError,
    Timestamp,
    TypeValue,
    checked_timestamp,
    is_zero,
    moment_of,
    no_overload,
    parse_duration,
    parse_timestamp,
    spend,
    text_of_double,
    text_of_duration,
    text_of_time,
    type_name,
)
from stead.kube.gopattern import compile_go

_WHITE = (
    " \t\n\v\f\r\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2008\u2009\u200a\u2028\u2029\u202f\u205f"
    "\u3000"
)
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")
_ASCII_LOWER = {upper: upper + 32 for upper in range(65, 91)}
_ASCII_UPPER = {lower: lower - 32 for lower in range(97, 123)}


# --- conversions ------------------------------------------------------------------------------------------------


def _size(value: Any) -> int:
    if not isinstance(value, str | bytes | list | dict):
        raise no_overload()
    return len(value)


def _string(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, float):
        return text_of_double(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Timestamp):
        return text_of_time(value)
    if isinstance(value, Duration):
        return text_of_duration(value)
    return text_of_library_value(value)


def _int(value: Any) -> int:
    if isinstance(value, Timestamp):
        return value.nanos // NANO
    if isinstance(value, Duration):
        return value.nanos
    if isinstance(value, str):
        if not re.fullmatch(r"[+-]?[0-9]{1,30}", value):
            raise RuleError(f"type conversion error from 'string' to 'int': invalid {value[:80]!r}")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise no_overload()
    return int(checked(int(value)))


def _unsigned(value: Any) -> int:
    found = _int(value)
    if found < 0:
        raise RuleError("unsigned integer overflow")
    return found


def _double(value: Any) -> float:
    if isinstance(value, str):
        if not re.fullmatch(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:[iI]nf(?:inity)?)|NaN", value):
            raise RuleError(f"type conversion error from 'string' to 'double': invalid {value[:80]!r}")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise no_overload()
    return float(value)


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise RuleError(f"type conversion error from 'string' to 'bool': invalid {text(value)[:80]!r}")


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else text(value).encode()


def _duration(value: Any) -> Duration:
    return value if isinstance(value, Duration) else parse_duration(text(value))


def _timestamp(value: Any) -> Timestamp:
    if isinstance(value, Timestamp):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return checked_timestamp(value * NANO)
    return parse_timestamp(text(value))


# --- times ------------------------------------------------------------------------------------------------------


def _zone(name: Any) -> datetime.tzinfo:
    if match := re.fullmatch(r"([+-]?)(\d\d):(\d\d)", text(name)):
        minutes = int(match[2]) * 60 + int(match[3])
        return datetime.timezone(datetime.timedelta(minutes=-minutes if match[1] == "-" else minutes))
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise RuleError(f"unknown time zone {name[:80]}") from None


def _of_clock(part: Callable[[datetime.datetime], int]) -> Callable[..., int]:
    """A part of an instant, in UTC or in a zone that is named."""

    def read(value: Any, zone: Any = "UTC") -> int:
        if not isinstance(value, Timestamp):
            raise no_overload()
        return part(moment_of(value, _zone(zone)))

    return read


def _of_either(part: Callable[[datetime.datetime], int], nanos: int) -> Callable[..., int]:
    """As `_of_clock`; of a duration, how many whole units of `nanos` it has."""
    of_clock = _of_clock(part)

    def read(value: Any, *zone: Any) -> int:
        if isinstance(value, Duration) and not zone:
            return abs(value.nanos) // nanos * (-1 if value.nanos < 0 else 1)
        return of_clock(value, *zone)

    return read


def _milliseconds(value: Any, *zone: Any) -> int:
    if isinstance(value, Duration) and not zone:
        return abs(value.nanos) // 10**6 * (-1 if value.nanos < 0 else 1)
    if not isinstance(value, Timestamp):
        raise no_overload()
    return value.nanos % NANO // 10**6


_CLOCK: dict[str, Callable[..., int]] = {
    "getFullYear": _of_clock(lambda t: t.year),
    "getMonth": _of_clock(lambda t: t.month - 1),
    "getDate": _of_clock(lambda t: t.day),
    "getDayOfMonth": _of_clock(lambda t: t.day - 1),
    "getDayOfWeek": _of_clock(lambda t: t.isoweekday() % 7),
    "getDayOfYear": _of_clock(lambda t: t.timetuple().tm_yday - 1),
    "getHours": _of_either(lambda t: t.hour, 3600 * NANO),
    "getMinutes": _of_either(lambda t: t.minute, 60 * NANO),
    "getSeconds": _of_either(lambda t: t.second, NANO),
    "getMilliseconds": _milliseconds,
}


# --- texts and lists --------------------------------------------------------------------------------------------


def _index_of(value: Any, wanted: Any, start: Any = 0) -> int:
    if not isinstance(value, str):
        return next((at for at, item in enumerate(items_of(value)) if equal(item, wanted)), -1)
    if not 0 <= whole(start) <= len(value):
        raise RuleError(f"index out of range: {start}")
    return text(value).find(text(wanted), start)


def _last_index_of(value: Any, wanted: Any, last: Any = None) -> int:
    if not isinstance(value, str):
        items = items_of(value)
        return next((at for at in range(len(items) - 1, -1, -1) if equal(items[at], wanted)), -1)
    if last is not None and not 0 <= whole(last) <= len(value):
        raise RuleError(f"index out of range: {last}")
    return text(value).rfind(text(wanted), 0, None if last is None else last + len(wanted))


def _substring(value: Any, start: Any, end: Any = None) -> str:
    end = len(text(value)) if end is None else end
    if not 0 <= whole(start) <= whole(end) <= len(value):
        raise RuleError(f"index out of range: {start}")
    return str(value[start:end])


def _char_at(value: Any, at: Any) -> str:
    if not 0 <= whole(at) <= len(text(value)):
        raise RuleError(f"index out of range: {at}")
    return str(value[at : at + 1])


def _split(value: Any, separator: Any, limit: Any = -1) -> list[str]:
    if whole(limit) == 0:
        return []
    spend(len(text(value)))
    most = -1 if limit < 0 else limit - 1
    if text(separator):
        return list(value.split(separator, most))
    return list(value) if most < 0 or most >= len(value) else [*value[:most], value[most:]]


def _replace(value: Any, old: Any, new: Any, most: Any = -1) -> str:
    grown = (text(value).count(text(old)) if whole(most) < 0 else min(most, len(value) + 1)) * len(text(new))
    spend((len(value) + grown) // 10)
    return str(value.replace(old, new, most))


def _join(value: Any, separator: Any = "") -> str:
    items = items_of(value)
    spend(len(items) * len(text(separator)) // 10)
    return str(separator.join(map(text, items)))


def _quote(value: Any) -> str:
    quoted = json.dumps(text(value), ensure_ascii=False)
    return re.sub(r"\\u(00(?:07|0[bB]))", lambda m: r"\a" if m[1][-1] == "7" else r"\v", quoted)


def _matches(value: Any, pattern: Any) -> bool:
    return compile_go(text(pattern)).search(text(value)) is not None


# --- optionals --------------------------------------------------------------------------------------------------


def _maybe(value: Any) -> Maybe:
    if not isinstance(value, Maybe):
        raise no_overload()
    return value


def _value(value: Any) -> Any:
    if not _maybe(value).is_present:
        raise RuleError("optional.none() dereference")
    return value.value


CALLS: dict[tuple[str, int], Callable[..., Any]] = {
    ("size", 1): _size,
    ("int", 1): _int,
    ("uint", 1): _unsigned,
    ("double", 1): _double,
    ("string", 1): _string,
    ("bool", 1): _bool,
    ("bytes", 1): _bytes,
    ("dyn", 1): lambda a: a,
    ("type", 1): lambda a: TypeValue(type_name(a)),
    ("duration", 1): _duration,
    ("timestamp", 1): _timestamp,
    ("matches", 2): _matches,
    ("strings.quote", 1): _quote,
    ("optional.of", 1): Maybe,
    ("optional.none", 0): lambda: NONE,
    ("optional.ofNonZeroValue", 1): lambda a: NONE if is_zero(a) else Maybe(a),
    **LIBRARY_CALLS,
}
METHODS: dict[tuple[str, int], Callable[..., Any]] = {
    ("size", 1): _size,
    ("matches", 2): _matches,
    ("startsWith", 2): lambda a, b: text(a).startswith(text(b)),
    ("endsWith", 2): lambda a, b: text(a).endswith(text(b)),
    ("contains", 2): lambda a, b: text(b) in text(a),
    ("charAt", 2): _char_at,
    ("indexOf", 2): _index_of,
    ("indexOf", 3): _index_of,
    ("lastIndexOf", 2): _last_index_of,
    ("lastIndexOf", 3): _last_index_of,
    ("lowerAscii", 1): lambda a: text(a).translate(_ASCII_LOWER),
    ("upperAscii", 1): lambda a: text(a).translate(_ASCII_UPPER),
    ("trim", 1): lambda a: text(a).strip(_WHITE),
    ("replace", 3): _replace,
    ("replace", 4): _replace,
    ("split", 2): _split,
    ("split", 3): _split,
    ("substring", 2): _substring,
    ("substring", 3): _substring,
    ("join", 1): _join,
    ("join", 2): _join,
    ("format", 2): format_text,
    ("hasValue", 1): lambda a: _maybe(a).is_present,
    ("value", 1): _value,
    ("or", 2): lambda a, b: a if _maybe(a).is_present else _maybe(b),
    ("orValue", 2): lambda a, b: a.value if _maybe(a).is_present else b,
    **{(name, count): read for name, read in _CLOCK.items() for count in (1, 2)},
    **LIBRARY_METHODS,
}


def base64_bytes(value: str) -> Any:
    """The bytes that a text of format `byte` stands for; the text itself if it is none."""
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        return value
