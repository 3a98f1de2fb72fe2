"""Quantities: `1Gi`, `500m`, `1e3` → exact value, canonical text, comparison.

Used by schema canonicalisation, placement, storage sizes and the domain planner. Values are exact (`Fraction` inside,
never float). Immutable; safe from any thread. Follows apimachinery's `api/resource` (suffixes, rounding up to nano,
canonical form); KubeVirt and CDI use the same type. Bad text raises ValueError in the API server's words.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

_TEXT_RE = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?\d{1,3})?")
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_SUFFIX_OF_EXPONENT = {exponent: suffix for suffix, exponent in _DECIMAL.items()}
_NANO = 10**9
#: digits in the number that we read; upstream has no bound, but no sensible quantity comes near
_MAX_LENGTH = 64

BAD_TEXT = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
BAD_SUFFIX = "unable to parse quantity's suffix"
_LOOSE_RE = re.compile(r"[+-]?[0-9.]+[a-zA-Z]*[-+]?[0-9]*")


@functools.total_ordering
class Quantity:
    """An exact amount with the format (`BinarySI`, `DecimalSI`, `DecimalExponent`) in which it is written."""

    __slots__ = ("format", "value")

    def __init__(self, value: int | Fraction, format: str = "DecimalSI") -> None:
        self.value = Fraction(value)
        self.format = format

    def __eq__(self, other: object) -> bool:
        return self.value == other.value if isinstance(other, Quantity) else NotImplemented

    def __lt__(self, other: Quantity) -> bool:
        return self.value < other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.value + other.value, self.format)

    def __sub__(self, other: Quantity) -> Quantity:
        return Quantity(self.value - other.value, self.format)

    def __int__(self) -> int:
        """The value rounded up to a whole number (bytes, cores), as upstream's `Value()`."""
        return -((-self.value.numerator) // self.value.denominator)

    def milli(self) -> int:
        """Thousandths, rounded up: 1 CPU = 1000."""
        return int(Quantity(self.value * 1000))

    def __bool__(self) -> bool:
        return self.value != 0

    def __repr__(self) -> str:
        return f"Quantity({str(self)!r})"

    def __str__(self) -> str:
        """The canonical text."""
        if self.value == 0:
            return "0"
        if self.format == "BinarySI" and abs(self.value) >= 1024 and self.value.denominator == 1:
            return _binary_text(self.value.numerator)
        # Upstream writes small or fractional binary amounts in decimal form.
        return _decimal_text(self.value, exponent_form=self.format == "DecimalExponent")


def _binary_text(value: int) -> str:
    power = 0
    while value % 1024 == 0 and power < 6:
        value //= 1024
        power += 1
    return f"{value}{next((s for s, p in _BINARY.items() if p == power), '')}"


def _decimal_text(value: Fraction, *, exponent_form: bool) -> str:
    exponent = 0
    mantissa = value
    while mantissa.denominator != 1 and exponent > -9:
        mantissa *= 1000
        exponent -= 3
    number = mantissa.numerator
    while number % 1000 == 0 and exponent < 18:
        number //= 1000
        exponent += 3
    if exponent_form:
        return f"{number}e{exponent}" if exponent else str(number)
    return f"{number}{_SUFFIX_OF_EXPONENT[exponent]}"


@functools.lru_cache(maxsize=4096)
def parse(text: str | int | float) -> Quantity:
    """The quantity that a JSON string or number stands for. Raises ValueError."""
    text = str(text) if not isinstance(text, float) or not text.is_integer() else str(int(text))
    match = _TEXT_RE.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if not match:
        loosely = text.isascii() and text.count(".") < 2 and _LOOSE_RE.fullmatch(text)
        raise ValueError(BAD_SUFFIX if loosely else BAD_TEXT)
    sign, digits, suffix = match.groups()
    number = Fraction(digits if digits[0] != "." else "0" + digits)
    if suffix is None or suffix in _DECIMAL:
        value, form = number * Fraction(10) ** _DECIMAL[suffix or ""], "DecimalSI"
    elif suffix in _BINARY:
        value, form = number * 1024 ** _BINARY[suffix], "BinarySI"
    else:
        value, form = number * Fraction(10) ** int(suffix[1:]), "DecimalExponent"
    # No amount is finer than a nano; what is finer is rounded away from zero.
    nanos = -(-(value * _NANO).numerator // (value * _NANO).denominator)
    value = min(Fraction(nanos, _NANO), Fraction(2**63 - 1))
    return Quantity(-value if sign == "-" else value, form)


def canonical(text: str | int | float) -> str:
    """The canonical text: `1024Mi` → `1Gi`, `0.5` → `500m`. Raises ValueError."""
    return str(parse(text))


def is_quantity(value: object) -> bool:
    """Whether a JSON value is a string or number that parses as a quantity."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    try:
        parse(value)
    except ValueError:
        return False
    return True


def quantity_from_bytes(count: int) -> Quantity:
    """A size in bytes, written in binary form (`10Gi`)."""
    return Quantity(count, "BinarySI")
