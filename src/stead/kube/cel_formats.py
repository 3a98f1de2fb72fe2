"""The named formats of Kubernetes' CEL library `format`: what each finds wrong with a text.

Used by `cel_library`. Pure. Texts are apimachinery's; source: the library's documentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from stead.kube import meta
from stead.kube.cel_network import parse_url
from stead.kube.cel_values import RuleError, parse_timestamp

_UUID = re.compile(r"(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})")
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_TEXT_1035 = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)


class Format(msgspec.Struct, frozen=True):
    """A named format; `check` gives texts about what is wrong, none when all is well."""

    name: str
    check: Callable[[str], list[str]]


def _label_1035(text: str) -> list[str]:
    long = ["must be no more than 63 bytes"] if len(text) > 63 else []
    return long if _LABEL_1035.fullmatch(text) else [*long, _TEXT_1035]


def _prefix_of(check: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """The same rules for the beginning of a name, which may end with a dash."""

    def found(text: str) -> list[str]:
        return check(f"{text[:-1]}a" if len(text) > 1 and text.endswith("-") else text)

    return found


def _uri(text: str) -> list[str]:
    try:
        parse_url(text)
    except RuleError:
        return [f'parse "{text}": invalid URI for request' if text else 'parse "": empty url']
    return []


def _matching(pattern: re.Pattern[str], complaint: str) -> Callable[[str], list[str]]:
    return lambda text: [] if pattern.fullmatch(text) else [complaint]


def _date(text: str) -> list[str]:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            parse_timestamp(f"{text}T00:00:00Z")
            return []
    except RuleError:
        pass
    return ["invalid date"]


def _datetime(text: str) -> list[str]:
    try:
        parse_timestamp(text)
    except RuleError:
        return ["invalid datetime"]
    return []


_CHECKS: dict[str, Callable[[str], list[str]]] = {
    "dns1123Label": meta.label_name_errors,
    "dns1123Subdomain": meta.subdomain_errors,
    "dns1035Label": _label_1035,
    "qualifiedName": meta.qualified_name_errors,
    "dns1123LabelPrefix": _prefix_of(meta.label_name_errors),
    "dns1123SubdomainPrefix": _prefix_of(meta.subdomain_errors),
    "dns1035LabelPrefix": _prefix_of(_label_1035),
    "labelValue": meta.label_value_errors,
    "uri": _uri,
    "uuid": _matching(_UUID, "does not match the UUID format"),
    "byte": _matching(_BASE64, "invalid base64"),
    "date": _date,
    "datetime": _datetime,
}
FORMATS = {name: Format(name, check) for name, check in _CHECKS.items()}
