"""CEL's operators on values: equality across types, order, arithmetic within 64 bits, membership, fields and indexes.

Used by `cel`, `cel_macros` and the libraries. Pure but for the budget of the rule (`cel_values.spend`). Integers and
unsigned integers are one type here: schemas know only the first. Source: the CEL language definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

from stead.kube.cel_values import (
    INT_MAX,
    INT_MIN,
    ITERATION,
    NONE,
    Associative,
    Duration,
    Maybe,
    RuleError,
    Timestamp,
    checked_duration,
    checked_timestamp,
    no_overload,
    spend,
)


def truth(value: Any) -> bool:
    """The boolean. Raises RuleError for any other type."""
    if not isinstance(value, bool):
        raise no_overload()
    return value


def number(value: Any) -> Any:
    """The number. Raises RuleError for any other type."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise no_overload()
    return value


def whole(value: Any) -> int:
    """The integer. Raises RuleError for any other type."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise no_overload()
    return value


def text(value: Any) -> str:
    """The text, paid for. Raises RuleError for any other type."""
    if not isinstance(value, str):
        raise no_overload()
    spend(len(value) // 10)
    return value


def items_of(value: Any) -> list[Any]:
    """The list, paid for. Raises RuleError for any other type."""
    if not isinstance(value, list):
        raise no_overload()
    spend(len(value))
    return value


def checked(value: Any) -> Any:
    """A number that fits into 64 bits. Raises RuleError."""
    if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        raise RuleError("integer overflow")
    return value


def equal(left: Any, right: Any) -> bool:
    """Equality: numbers across their types, all else only within one type."""
    spend(ITERATION if isinstance(left, list | dict) else 1)
    if isinstance(left, Associative) and isinstance(right, list):
        return len(left) == len(right) and all(contains(item, right) for item in left)
    if isinstance(left, list):
        same = isinstance(right, list) and len(left) == len(right)
        return same and all(equal(one, other) for one, other in zip(left, right, strict=True))
    if isinstance(left, dict):
        same = isinstance(right, dict) and left.keys() == right.keys()
        return same and all(equal(value, right[key]) for key, value in left.items())
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, str) and isinstance(right, str):
        spend(min(len(left), len(right)) // 10)
    return bool(left == right)


def contains(item: Any, container: Any) -> bool:
    """`in`: of a list's items or a map's keys."""
    if isinstance(container, dict):
        return not isinstance(item, list | dict) and any(equal(item, key) for key in container if key == item)
    if isinstance(container, list):
        return any(equal(item, other) for other in container)
    raise no_overload()


def index(value: Any, at: Any) -> Any:
    """`value[at]`. Raises RuleError."""
    if isinstance(value, Maybe):
        return find(value, at)
    found = find(value, at)
    if not found.is_present:
        what = "index out of bounds" if isinstance(value, list) else "no such key"
        raise RuleError(f"{what}: {at if isinstance(at, str | int | float) else '?'}")
    return found.value


def find(value: Any, at: Any) -> Maybe:
    """What `value[?at]` gives."""
    if isinstance(value, Maybe):
        return find(value.value, at) if value.is_present else NONE
    if isinstance(at, float) and at.is_integer():
        at = int(at)
    if isinstance(value, dict) and not isinstance(at, list | dict):
        return Maybe(value[at]) if at in value else NONE
    if isinstance(value, list) and isinstance(at, int) and not isinstance(at, bool):
        return Maybe(value[at]) if 0 <= at < len(value) else NONE
    raise no_overload()


def field(value: Any, name: str) -> Any:
    """`value.name`. Raises RuleError."""
    if isinstance(value, Maybe):
        return find_field(value, name)
    if not isinstance(value, dict):
        raise no_overload()
    if name not in value:
        raise RuleError(f"no such key: {name}")
    return value[name]


def find_field(value: Any, name: str) -> Maybe:
    """What `value.?name` gives."""
    if isinstance(value, Maybe):
        return find_field(value.value, name) if value.is_present else NONE
    if not isinstance(value, dict):
        raise no_overload()
    return Maybe(value[name]) if name in value else NONE


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def check(left: Any, right: Any) -> bool:
        for kind in (bool, str, bytes, Duration, Timestamp):
            if isinstance(left, kind) or isinstance(right, kind):
                if not (isinstance(left, kind) and isinstance(right, kind)):
                    raise no_overload()
                return compare(left, right)
        return compare(number(left), number(right))

    return check


less = _ordered(lambda a, b: a < b)


def add(left: Any, right: Any) -> Any:
    """`+`: numbers, texts, bytes, lists, times."""
    if isinstance(left, list) and isinstance(right, list):
        return _joined(left, right)
    if (isinstance(left, str) and isinstance(right, str)) or (isinstance(left, bytes) and isinstance(right, bytes)):
        spend((len(left) + len(right)) // 10)
        return cast(Any, left) + right
    if isinstance(left, Duration) and isinstance(right, Duration):
        return checked_duration(left.nanos + right.nanos)
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Timestamp) and isinstance(other, Duration):
            return checked_timestamp(one.nanos + other.nanos)
    return checked(number(left) + number(right))


def _joined(left: list[Any], right: list[Any]) -> list[Any]:
    """Two lists; a right item takes the place of its like on the left where the schema says what tells them apart."""
    spend((len(left) + len(right)) // 10)
    if not isinstance(left, Associative):
        return [*left, *right]
    together = Associative(left)
    together.keys = left.keys
    for item in right:
        spend(len(together))
        at = next((n for n, held in enumerate(together) if _same_place(held, item, left.keys)), None)
        if at is None:
            together.append(item)
        else:
            together[at] = item
    return together


def _same_place(one: Any, other: Any, keys: tuple[str, ...]) -> bool:
    if not keys:
        return equal(one, other)
    return isinstance(other, dict) and all(one.get(key) == other.get(key) for key in keys)


def _subtract(left: Any, right: Any) -> Any:
    if isinstance(left, Timestamp) and isinstance(right, Timestamp):
        return checked_duration(left.nanos - right.nanos)
    if isinstance(left, Timestamp) and isinstance(right, Duration):
        return checked_timestamp(left.nanos - right.nanos)
    if isinstance(left, Duration) and isinstance(right, Duration):
        return checked_duration(left.nanos - right.nanos)
    return checked(number(left) - number(right))


def _divide(left: Any, right: Any) -> Any:
    if isinstance(number(left), int) and isinstance(number(right), int):
        if right == 0:
            raise RuleError("division by zero")
        quotient = abs(left) // abs(right)
        return checked(quotient if (left < 0) == (right < 0) else -quotient)
    if right == 0:
        return math.nan if left == 0 or left != left else math.copysign(math.inf, left) * math.copysign(1, right)
    return left / right


def _remainder(left: Any, right: Any) -> Any:
    if not (isinstance(number(left), int) and isinstance(number(right), int)):
        raise no_overload()
    if right == 0:
        raise RuleError("modulus by zero")
    return left - _divide(left, right) * right


def negative(value: Any) -> Any:
    """`-value`."""
    return checked(-number(value))


#: operators by precedence, weakest first
LEVELS: tuple[tuple[str, ...], ...] = (("==", "!=", "<=", ">=", "<", ">", "in"), ("+", "-"), ("*", "/", "%"))
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": equal,
    "!=": lambda a, b: not equal(a, b),
    "<=": _ordered(lambda a, b: a <= b),
    ">=": _ordered(lambda a, b: a >= b),
    "<": less,
    ">": _ordered(lambda a, b: a > b),
    "in": contains,
    "+": add,
    "-": _subtract,
    "*": lambda a, b: checked(number(a) * number(b)),
    "/": _divide,
    "%": _remainder,
}
