"""`'…%s…'.format([…])` of CEL's string extensions, in the version that Kubernetes uses (2).

Called through `cel_functions`. Pure but for the rule's budget. Raises RuleError. Source: cel-go's documentation of the
extension and its published cases.
"""

from __future__ import annotations

import json
import re
from typing import Any

from stead.kube.cel_values import (
    Duration,
    RuleError,
    Timestamp,
    TypeValue,
    no_overload,
    spend,
    text_of_double,
    text_of_duration,
    text_of_time,
    type_name,
)

_CLAUSE = re.compile(r"%(?:%|(?:\.(\d{1,3}))?([a-zA-Z])|)")
_NAMES = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def format_text(template: Any, values: Any) -> str:
    """The template with its clauses filled. Raises RuleError."""
    if not isinstance(template, str) or not isinstance(values, list):
        raise no_overload()
    given = iter(values)

    def filled(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if match[0] == "%":
            raise RuleError("unexpected end of format string")
        try:
            value = next(given)
        except StopIteration:
            raise RuleError(f"index {len(values)} out of range") from None
        text = _clause(match[2], None if match[1] is None else int(match[1]), value)
        spend(1 + len(text) // 10)
        return text

    return _CLAUSE.sub(filled, template)


def _clause(verb: str, places: int | None, value: Any) -> str:
    if verb == "s":
        return plain(value)
    if verb in "fe":
        return _decimal(verb, 6 if places is None else places, value)
    if verb in "dbxXo":
        return _whole(verb, value)
    raise RuleError(f'could not parse formatting clause: unrecognized formatting clause "{verb}"')


def _whole(verb: str, value: Any) -> str:
    if verb in "xX" and isinstance(value, str | bytes):
        text = (value.encode() if isinstance(value, str) else value).hex()
        return text.upper() if verb == "X" else text
    if verb == "b" and isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, bool) or not isinstance(value, int):
        raise RuleError(f"error during formatting: %{verb} cannot be used on {type_name(value)}")
    return format(value, verb)


def _decimal(verb: str, places: int, value: Any) -> str:
    if isinstance(value, str) and value in _NAMES:
        value = _NAMES[value]
    if not isinstance(value, float):
        raise RuleError(f"error during formatting: %{verb} cannot be used on {type_name(value)}")
    if value != value or value in (float("inf"), float("-inf")):
        return "NaN" if value != value else "∞" if value > 0 else "-∞"
    if verb == "f":
        return f"{value:,.{places}f}"
    mantissa, _, exponent = f"{value:.{places}e}".partition("e")
    return f"{mantissa}\u202f×\u202f10{exponent.replace('+', '').translate(_RAISED)}"


_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def plain(value: Any) -> str:
    """A value as `%s` shows it. Raises RuleError for what has no text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | type(None)):
        return json.dumps(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float):
        return text_of_double(value)
    if isinstance(value, Timestamp):
        return text_of_time(value)
    if isinstance(value, Duration):
        return text_of_duration(value)
    if isinstance(value, list | dict):
        return _nested(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, TypeValue):
        return value.name
    raise RuleError(f"error during formatting: no formatting function for {type_name(value)}")


def _nested(value: Any) -> str:
    """A value within a list or map, as CEL would write it."""
    spend(1)
    if isinstance(value, list):
        return "[" + ", ".join(map(_nested, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{_nested(key)}:{_nested(held)}" for key, held in value.items())) + "}"
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, str):
        spend(len(value) // 10)
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bytes):
        return "b" + json.dumps(value.decode(errors="replace"), ensure_ascii=False)
    if isinstance(value, Timestamp | Duration):
        return f'{"timestamp" if isinstance(value, Timestamp) else "duration"}("{plain(value)}")'
    return plain(value)
