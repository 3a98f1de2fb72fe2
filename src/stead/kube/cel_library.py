"""Kubernetes' own libraries of CEL functions, as of 1.34: lists, sets, regular expressions, URLs, IP addresses and
ranges, quantities, semantic versions, image references and named formats. (Rules in schemas have no authorizer.)

Two tables, as in `cel_functions`, which joins them to its own. Pure but for the rule's budget. Each raises RuleError.
Source: the documentation of k8s.io/apiserver/pkg/cel/library, whose examples are the tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from stead.kube import cel_formats, quantity
from stead.kube.cel_network import IpAddress, IpRange, Url, parse_ip, parse_range, parse_url
from stead.kube.cel_operators import add, checked, equal, items_of, less, text, whole
from stead.kube.cel_values import NONE, Maybe, RuleError, no_overload, spend
from stead.kube.cel_versions import Image, SemanticVersion, parse_image, parse_version
from stead.kube.gopattern import compile_go
from stead.kube.quantity import Quantity


def _parses(parse: Callable[..., Any]) -> Callable[..., bool]:
    def check(value: Any, *more: Any) -> bool:
        try:
            parse(text(value), *more)
        except ValueError:
            return False
        return True

    return check


def _of(kind: type, read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`read` for values of one type; for others there is no such function."""

    def call(value: Any) -> Any:
        if not isinstance(value, kind):
            raise no_overload()
        return read(value)

    return call


# --- lists and sets ---------------------------------------------------------------------------------------------


def _is_sorted(value: Any) -> bool:
    return all(not less(second, first) for first, second in itertools.pairwise(items_of(value)))


def _sum(value: Any) -> Any:
    items = items_of(value)
    total: Any = items[0] if items else 0
    for item in items[1:]:
        total = add(total, item)
    return total


def _extreme(value: Any, *, is_least: bool) -> Any:
    items = items_of(value)
    if not items:
        raise RuleError(f"{'min' if is_least else 'max'} called on empty list")
    found = items[0]
    for item in items[1:]:
        if less(item, found) if is_least else less(found, item):
            found = item
    return found


def _has(items: list[Any], wanted: Any) -> bool:
    return any(equal(item, wanted) for item in items)


def _includes(value: Any, part: Any) -> bool:
    return all(_has(items_of(value), item) for item in items_of(part))


# --- regular expressions ----------------------------------------------------------------------------------------


def _find(value: Any, pattern: Any) -> str:
    match = compile_go(text(pattern)).search(text(value))
    return match[0] if match else ""


def _find_all(value: Any, pattern: Any, limit: Any = -1) -> list[str]:
    matches = compile_go(text(pattern)).finditer(text(value))
    spend(len(value))
    return [match[0] for match in (matches if whole(limit) < 0 else itertools.islice(matches, limit))]


# --- quantities -------------------------------------------------------------------------------------------------


def _amount(value: Any) -> Quantity:
    if isinstance(value, int) and not isinstance(value, bool):
        return Quantity(value)
    if not isinstance(value, Quantity):
        raise no_overload()
    return value


def _is_whole(value: Quantity) -> bool:
    return value.value.denominator == 1 and -(2**63) <= value.value < 2**63 - 1


def _as_integer(value: Quantity) -> int:
    if not _is_whole(value):
        raise RuleError("cannot convert value to integer")
    return value.value.numerator


def _sum_of(one: Any, other: Any) -> Quantity:
    if not isinstance(one, Quantity):
        raise no_overload()
    return one + _amount(other)


def _difference(one: Any, other: Any) -> Quantity:
    if not isinstance(one, Quantity):
        raise no_overload()
    return one - _amount(other)


def _compare(one: Any, other: Any) -> int:
    if isinstance(one, Quantity) and isinstance(other, Quantity):
        return int(one > other) - int(one < other)
    if isinstance(one, SemanticVersion) and isinstance(other, SemanticVersion):
        return int(one > other) - int(one < other)
    raise no_overload()


# --- addresses --------------------------------------------------------------------------------------------------


def _ip(value: Any) -> IpAddress:
    if isinstance(value, IpRange):
        return value.ip
    return value if isinstance(value, IpAddress) else parse_ip(text(value))


def _contains_ip(value: Any, other: Any) -> bool:
    if isinstance(other, IpRange) or not isinstance(value, IpRange):
        raise no_overload()
    return value.has(_ip(other))


def _contains_range(value: Any, other: Any) -> bool:
    if not isinstance(value, IpRange):
        raise no_overload()
    return value.covers(other if isinstance(other, IpRange) else parse_range(text(other)))


# --- formats ----------------------------------------------------------------------------------------------------


def _validate(named: Any, value: Any) -> Maybe:
    if not isinstance(named, cel_formats.Format):
        raise no_overload()
    found = named.check(text(value))
    return Maybe(found) if found else NONE


def _named(name: Any) -> Maybe:
    found = cel_formats.FORMATS.get(text(name))
    return NONE if found is None else Maybe(found)


def text_of_library_value(value: Any) -> str:
    """`string()` of an address, a range or a URL. Raises RuleError."""
    if isinstance(value, IpAddress | IpRange):
        return str(value)
    raise no_overload()


CALLS: dict[tuple[str, int], Callable[..., Any]] = {
    ("sets.contains", 2): _includes,
    ("sets.equivalent", 2): lambda a, b: _includes(a, b) and _includes(b, a),
    ("sets.intersects", 2): lambda a, b: any(_has(items_of(b), item) for item in items_of(a)),
    ("url", 1): lambda a: parse_url(text(a)),
    ("isURL", 1): _parses(parse_url),
    ("ip", 1): lambda a: parse_ip(text(a)),
    ("isIP", 1): _parses(parse_ip),
    ("ip.isCanonical", 1): lambda a: str(parse_ip(text(a))) == a,
    ("cidr", 1): lambda a: parse_range(text(a)),
    ("isCIDR", 1): _parses(parse_range),
    ("quantity", 1): lambda a: quantity.parse(text(a)),
    ("isQuantity", 1): _parses(quantity.parse),
    ("semver", 1): lambda a: parse_version(text(a)),
    ("semver", 2): lambda a, b: parse_version(text(a), b),
    ("isSemver", 1): _parses(parse_version),
    ("isSemver", 2): _parses(parse_version),
    ("image", 1): lambda a: parse_image(text(a)),
    ("isImage", 1): _parses(parse_image),
    ("format.named", 1): _named,
    **{(f"format.{name}", 0): lambda found=found: found for name, found in cel_formats.FORMATS.items()},
}
METHODS: dict[tuple[str, int], Callable[..., Any]] = {
    ("isSorted", 1): _is_sorted,
    ("sum", 1): _sum,
    ("min", 1): lambda a: _extreme(a, is_least=True),
    ("max", 1): lambda a: _extreme(a, is_least=False),
    ("find", 2): _find,
    ("findAll", 2): _find_all,
    ("findAll", 3): _find_all,
    ("getScheme", 1): _of(Url, lambda a: a.scheme),
    ("getHost", 1): _of(Url, lambda a: a.host),
    ("getHostname", 1): _of(Url, lambda a: a.hostname),
    ("getPort", 1): _of(Url, lambda a: a.port),
    ("getEscapedPath", 1): _of(Url, lambda a: a.path),
    ("getQuery", 1): _of(Url, lambda a: a.query()),
    ("family", 1): _of(IpAddress, lambda a: a.address.version),
    ("isUnspecified", 1): _of(IpAddress, lambda a: a.address.is_unspecified),
    ("isLoopback", 1): _of(IpAddress, lambda a: a.address.is_loopback),
    ("isLinkLocalMulticast", 1): _of(IpAddress, lambda a: a.is_link_local_multicast),
    ("isLinkLocalUnicast", 1): _of(IpAddress, lambda a: a.address.is_link_local),
    ("isGlobalUnicast", 1): _of(IpAddress, lambda a: a.is_global_unicast),
    ("containsIP", 2): _contains_ip,
    ("containsCIDR", 2): _contains_range,
    ("ip", 1): _of(IpRange, _ip),
    ("masked", 1): _of(IpRange, lambda a: a.masked()),
    ("prefixLength", 1): _of(IpRange, lambda a: a.length),
    ("isInteger", 1): _of(Quantity, _is_whole),
    ("asInteger", 1): _of(Quantity, _as_integer),
    ("asApproximateFloat", 1): _of(Quantity, lambda a: float(a.value)),
    ("sign", 1): _of(Quantity, lambda a: (a.value > 0) - (a.value < 0)),
    ("add", 2): _sum_of,
    ("sub", 2): _difference,
    ("isGreaterThan", 2): lambda a, b: _compare(a, b) > 0,
    ("isLessThan", 2): lambda a, b: _compare(a, b) < 0,
    ("compareTo", 2): _compare,
    ("major", 1): _of(SemanticVersion, lambda a: checked(a.major)),
    ("minor", 1): _of(SemanticVersion, lambda a: checked(a.minor)),
    ("patch", 1): _of(SemanticVersion, lambda a: checked(a.patch)),
    ("containsDigest", 1): _of(Image, lambda a: bool(a.digest)),
    ("registry", 1): _of(Image, lambda a: a.registry),
    ("repository", 1): _of(Image, lambda a: a.repository),
    ("tag", 1): _of(Image, lambda a: a.tag),
    ("digest", 1): _of(Image, lambda a: a.digest),
    ("identifier", 1): _of(Image, lambda a: a.digest or a.tag),
    ("validate", 2): _validate,
}
