"""What rules in CEL compute with beyond JSON's values: times, durations, optionals, types; and what a rule may spend.

Used by the other `cel_…` modules. Values are immutable. `evaluating` gives the rule that a thread evaluates a budget,
`spend` takes from it: rules are short, but lists are long and macros nest, so that without it a rule could hold up the
server for hours. The unit is about that of Kubernetes (an iteration with a simple test costs 5). Source: the CEL
language definition.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import re
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import msgspec

#: what one evaluation may cost, and what an iteration of a macro costs
BUDGET, ITERATION = 1_000_000, 5
NANO = 10**9
INT_MIN, INT_MAX = -(2**63), 2**63 - 1
#: longest duration either way, seconds, and the instants that a timestamp can name (years 1 to 9999)
_LONGEST = 315_576_000_000
_FIRST, _LAST = -62_135_596_800, 253_402_300_799

_UNITS: dict[str, Fraction | int] = {
    "h": 3600,
    "m": 60,
    "s": 1,
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|us|µs|μs|ns|m|s)")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")


class RuleError(ValueError):
    """The rule cannot be evaluated on this value (a field is absent, types do not fit, it costs too much)."""


def no_overload() -> RuleError:
    """No function or operator takes these types."""
    return RuleError("no such overload")


class _Purse(threading.local):
    left = BUDGET


_purse = _Purse()


@contextlib.contextmanager
def evaluating() -> Iterator[None]:
    """Give this thread's rule its budget."""
    _purse.left = BUDGET
    yield


def spend(units: int) -> None:
    """Take from the budget of the rule that this thread evaluates. Raises RuleError."""
    _purse.left -= units
    if _purse.left < 0:
        raise RuleError("operation cancelled: actual cost limit exceeded")


class Duration(msgspec.Struct, frozen=True, order=True):
    """A length of time."""

    nanos: int


class Timestamp(msgspec.Struct, frozen=True, order=True):
    """An instant, in nanoseconds since 1970 (UTC)."""

    nanos: int


class TypeValue(msgspec.Struct, frozen=True):
    """What `type()` gives."""

    name: str


class Maybe(msgspec.Struct, frozen=True):
    """An optional: a value, or none."""

    value: Any = None
    is_present: bool = True


NONE = Maybe(None, False)


class Associative(list[Any]):
    """A list whose order says nothing: `keys` tell its items apart, none of a set's (then the items themselves)."""

    keys: tuple[str, ...] = ()


def parse_duration(text: str) -> Duration:
    """A duration as Go writes it. Raises RuleError."""
    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    parts = _PART.findall(body)
    if body != "0" and (not parts or len(body) > 100 or "".join(number + unit for number, unit in parts) != body):
        raise RuleError(f"type conversion error from 'string' to 'google.protobuf.Duration': invalid {text[:80]!r}")
    total = sum(Fraction("0" + number) * _UNITS[unit.replace("µ", "u").replace("μ", "u")] for number, unit in parts)
    return checked_duration(sign * int(total * NANO))


def checked_duration(nanos: int) -> Duration:
    """A duration in range. Raises RuleError."""
    if abs(nanos) > _LONGEST * NANO:
        raise RuleError("range error converting to google.protobuf.Duration")
    return Duration(nanos)


def parse_timestamp(text: str) -> Timestamp:
    """An instant in RFC 3339. Raises RuleError."""
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        day, clock, fraction, zone = match.groups()
        moment = datetime.datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone == 'Z' else zone}")
    except ValueError:
        raise RuleError(
            f"type conversion error from 'string' to 'google.protobuf.Timestamp': invalid {text[:80]!r}"
        ) from None
    seconds = (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(seconds=1)
    return checked_timestamp(seconds * NANO + int((fraction or "0")[:9].ljust(9, "0")))


def checked_timestamp(nanos: int) -> Timestamp:
    """An instant in range. Raises RuleError."""
    if not _FIRST * NANO <= nanos < (_LAST + 1) * NANO:
        raise RuleError("range error converting to google.protobuf.Timestamp")
    return Timestamp(nanos)


def moment_of(value: Timestamp, zone: datetime.tzinfo = datetime.UTC) -> datetime.datetime:
    """The instant as a clock in `zone` shows it, whole seconds."""
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    try:
        return (start + datetime.timedelta(seconds=value.nanos // NANO)).astimezone(zone)
    except OverflowError as error:
        raise RuleError("range error converting to google.protobuf.Timestamp") from error


def text_of_time(value: Timestamp) -> str:
    """RFC 3339 in UTC, with as much of a second as there is."""
    fraction = f".{value.nanos % NANO:09}".rstrip("0") if value.nanos % NANO else ""
    return f"{moment_of(value):%Y-%m-%dT%H:%M:%S}".rjust(19, "0") + f"{fraction}Z"


def text_of_duration(value: Duration) -> str:
    """Seconds, as CEL writes a duration."""
    whole, rest = divmod(abs(value.nanos), NANO)
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{'-' if value.nanos < 0 else ''}{whole}{fraction}s"


def text_of_double(value: float) -> str:
    """As Go's `%g` with the fewest digits that tell the number."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    sign, digits, last = decimal.Decimal(repr(value)).normalize().as_tuple()
    written = "".join(map(str, digits))
    exponent = len(written) + int(last) - 1
    if not any(digits) or -4 <= exponent < 6:
        return format(decimal.Decimal(repr(value)).normalize(), "f")
    rest = f".{written[1:]}" if len(written) > 1 else ""
    return f"{'-' if sign else ''}{written[0]}{rest}e{'-' if exponent < 0 else '+'}{abs(exponent):02}"


def type_name(value: Any) -> str:
    """The name of a value's type in CEL."""
    for kind, name in _TYPE_NAMES:
        if isinstance(value, kind):
            return name
    return type(value).__name__


_TYPE_NAMES: tuple[tuple[type, str], ...] = (
    (bool, "bool"),
    (int, "int"),
    (float, "double"),
    (str, "string"),
    (bytes, "bytes"),
    (list, "list"),
    (dict, "map"),
    (type(None), "null_type"),
    (TypeValue, "type"),
    (Maybe, "optional_type"),
    (Duration, "google.protobuf.Duration"),
    (Timestamp, "google.protobuf.Timestamp"),
)
#: types that a rule may name
TYPES = {name: TypeValue(name) for _, name in _TYPE_NAMES if "." not in name} | {"uint": TypeValue("uint")}


def is_zero(value: Any) -> bool:
    """Whether a value is the zero of its type."""
    if isinstance(value, Duration | Timestamp):
        return value.nanos == 0
    return value is None or (isinstance(value, bool | int | float | str | bytes | list | dict) and not value)
