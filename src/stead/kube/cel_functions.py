"""The functions that validation rules may call: CEL's own, its string extensions, and Kubernetes' list, regex, IP and
quantity libraries as far as rules use them.

A table for `cel`, by name and number of arguments (the target of a method call is the first). Pure. Times and durations
are numbers of seconds here, quantities exact numbers, so that they compare and subtract as in CEL. Sources: the CEL
language definition; k8s.io/apiserver's CEL libraries.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable
from typing import Any

from stead.kube import quantity
from stead.kube.gopattern import compile_go
from stead.kube.meta import parse_time

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|us|ns|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


class RuleError(ValueError):
    """The rule cannot be evaluated on this value (a field is absent, types do not fit)."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RuleError("no such overload")
    return value


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RuleError("no such overload")
    return value


def _size(value: Any) -> int:
    if not isinstance(value, str | list | dict):
        raise RuleError("no such overload")
    return len(value)


def _string(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _index_of(value: Any, wanted: Any) -> int:
    if isinstance(value, str):
        return value.find(_text(wanted))
    return next((at for at, item in enumerate(_items(value)) if item == wanted), -1)


def _last_index_of(value: Any, wanted: Any) -> int:
    if isinstance(value, str):
        return value.rfind(_text(wanted))
    found = [at for at, item in enumerate(_items(value)) if item == wanted]
    return found[-1] if found else -1


def _substring(value: Any, start: Any, end: Any = None) -> str:
    text = _text(value)
    end = len(text) if end is None else end
    if not 0 <= start <= end <= len(text):
        raise RuleError("index out of range")
    return text[start:end]


def _char_at(value: Any, at: Any) -> str:
    text = _text(value)
    if not 0 <= at <= len(text):
        raise RuleError("index out of range")
    return text[at : at + 1]


def _split(value: Any, separator: Any, limit: Any = -1) -> list[str]:
    text, separator = _text(value), _text(separator)
    if limit == 0:
        return []
    most = -1 if limit < 0 else limit - 1
    return text.split(separator, most) if separator else list(text)


def _duration(value: Any) -> float:
    text = _text(value)
    sign, body = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    parts = _DURATION.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body:
        raise RuleError(f"invalid duration {text!r}")
    return sign * sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _parses(parse: Callable[[Any], Any]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        try:
            parse(_text(value))
        except ValueError:
            return False
        return True

    return check


def _quantity(value: Any) -> Any:
    return quantity.parse(_text(value))


def _sorted(value: Any) -> bool:
    items = _items(value)
    return all(first <= second for first, second in itertools.pairwise(items))


def _extreme(choose: Callable[[list[Any]], Any]) -> Callable[[Any], Any]:
    def pick(value: Any) -> Any:
        if not _items(value):
            raise RuleError("min/max called on an empty list")
        return choose(value)

    return pick


def _find(value: Any, pattern: Any) -> str:
    match = compile_go(_text(pattern)).search(_text(value))
    return match[0] if match else ""


FUNCTIONS: dict[tuple[str, int], Callable[..., Any]] = {
    ("size", 1): _size,
    ("startsWith", 2): lambda a, b: _text(a).startswith(_text(b)),
    ("endsWith", 2): lambda a, b: _text(a).endswith(_text(b)),
    ("contains", 2): lambda a, b: _text(b) in _text(a),
    ("matches", 2): lambda a, b: compile_go(_text(b)).search(_text(a)) is not None,
    ("int", 1): lambda a: int(a),
    ("uint", 1): lambda a: int(a),
    ("double", 1): lambda a: float(a),
    ("string", 1): _string,
    ("dyn", 1): lambda a: a,
    ("charAt", 2): _char_at,
    ("indexOf", 2): _index_of,
    ("lastIndexOf", 2): _last_index_of,
    ("lowerAscii", 1): lambda a: _text(a).lower(),
    ("upperAscii", 1): lambda a: _text(a).upper(),
    ("trim", 1): lambda a: _text(a).strip(),
    ("replace", 3): lambda a, b, c: _text(a).replace(_text(b), _text(c)),
    ("replace", 4): lambda a, b, c, n: _text(a).replace(_text(b), _text(c), n),
    ("split", 2): _split,
    ("split", 3): _split,
    ("substring", 2): _substring,
    ("substring", 3): _substring,
    ("join", 1): lambda a: "".join(map(_text, _items(a))),
    ("join", 2): lambda a, b: _text(b).join(map(_text, _items(a))),
    ("find", 2): _find,
    ("isSorted", 1): _sorted,
    ("sum", 1): lambda a: sum(_items(a)),
    ("min", 1): _extreme(min),
    ("max", 1): _extreme(max),
    ("duration", 1): _duration,
    ("timestamp", 1): lambda a: parse_time(_text(a)).timestamp(),
    ("isIP", 1): _parses(ipaddress.ip_address),
    ("isCIDR", 1): _parses(lambda text: ipaddress.ip_network(text, strict=False) if "/" in text else int("no")),
    ("isQuantity", 1): _parses(quantity.parse),
    ("quantity", 1): _quantity,
    ("isGreaterThan", 2): lambda a, b: a > b,
    ("isLessThan", 2): lambda a, b: a < b,
    ("compareTo", 2): lambda a, b: (a > b) - (a < b),
}
