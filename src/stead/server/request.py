"""What a request asks for: its path, verb and query read by Kubernetes' rules, nothing looked up.

Called by `app` before authentication; `authz` and `audit` use the same `Request`. Pure. Follows `RequestInfoFactory` of
k8s.io/apiserver: `/api/v1/...` and `/apis/GROUP/VERSION/...` are resource paths, all else is a non-resource path.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

import msgspec

from stead.kube.errors import ApiError

#: parts below `namespaces/NAME/` that belong to the Namespace itself
_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})

#: KubeVirt's subresources of two words; RBAC names them with the slash
_TWO_WORDS = frozenset({("vnc", "screenshot"), ("evacuate", "cancel"), ("sev", "fetchcertchain"),
                        ("sev", "querylaunchmeasurement"), ("sev", "setupsession"),
                        ("sev", "injectlaunchsecret")})  # fmt: skip

_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Query(msgspec.Struct, frozen=True):
    """Query parameters, with the API's leniency: a boolean is true unless it is `0` or `false`."""

    pairs: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str | None:
        """First value, or None if absent."""
        for key, value in self.pairs:
            if key == name:
                return value
        return None

    def all(self, name: str) -> list[str]:
        """All values in order."""
        return [value for key, value in self.pairs if key == name]

    def flag(self, name: str) -> bool:
        """A boolean parameter; absent is false, present without a value is true."""
        value = self.get(name)
        return value is not None and value.lower() not in ("0", "false")

    def has(self, name: str) -> bool:
        """Whether the parameter is there at all."""
        return self.get(name) is not None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `group`, `version`, `plural`… are empty for other paths; `rest` follows the subresource."""

    method: str
    path: str
    query: Query
    verb: str
    is_resource: bool = False
    group: str = ""
    version: str = ""
    plural: str = ""
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: tuple[str, ...] = ()
    #: `metadata.name=x` of a field selector: counts as the name for authorisation, not for routing
    selected_name: str = ""

    @property
    def resource_with_subresource(self) -> str:
        """`plural` or `plural/subresource`, as RBAC names it."""
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural

    @property
    def is_write(self) -> bool:
        """Whether the verb may change something."""
        return self.verb in ("create", "update", "patch", "delete", "deletecollection")


_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")


def duration_seconds(text: str) -> float:
    """Seconds of a Go duration (`32s`, `1m30s`). Raises 400 in Go's words."""
    shown, bare = f'"{text}"', text.lstrip("+-") if text[:1] in "+-" and text else text
    why = ""
    if bare == "0":
        return 0.0
    parts = _DURATION_PART.findall(bare)
    if not bare or "".join(number + unit for number, unit in parts) != bare:
        why = f"time: invalid duration {shown}"
    for _, unit in parts:
        if not why and unit not in _UNIT_SECONDS:
            why = f'time: unknown unit "{unit}" in duration {shown}' if unit else ""
            why = why or f"time: missing unit in duration {shown}"
    if why:
        raise ApiError("BadRequest", f"invalid timeout specified in the request URL - {why}")
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    return -seconds if text.startswith("-") else seconds


def request_from(method: str, raw_path: str, query_string: str) -> Request:
    """Read a request line. `raw_path` is percent-encoded."""
    query = Query(tuple(parse_qsl(query_string, keep_blank_values=True)))
    parts = [unquote(part) for part in raw_path.split("/") if part]
    path = unquote(raw_path)
    found = _resource_parts(parts)
    if found is None:
        return Request(method=method, path=path, query=query, verb=method.lower())
    group, version, rest, deprecated_watch = found
    if not rest:
        return Request(method=method, path=path, query=query, verb=method.lower())
    namespace, plural, name, sub = _split(rest)
    verb = _VERBS.get(method, method.lower())
    selected = ""
    if not name:
        if verb == "get":
            verb = "watch" if query.flag("watch") or deprecated_watch else "list"
        elif verb == "delete":
            verb = "deletecollection"
        if verb in ("list", "watch", "deletecollection"):
            selected = _selected_name(query.get("fieldSelector") or "")
    elif deprecated_watch and verb == "get":
        verb, selected, name = "watch", name, ""
    subresource, tail = _subresource(sub)
    return Request(
        method=method, path=path, query=query, verb=verb, is_resource=True, group=group, version=version,
        plural=plural, namespace=namespace, name=name, subresource=subresource, rest=tail, selected_name=selected,
    )  # fmt: skip


def _resource_parts(parts: list[str]) -> tuple[str, str, list[str], bool] | None:
    """(group, version, what follows, deprecated /watch/ prefix), or None for a non-resource path."""
    if len(parts) >= 3 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    if rest[0] == "watch" and len(rest) > 1:
        return group, version, rest[1:], True
    return group, version, rest, False


def _split(rest: list[str]) -> tuple[str, str, str, list[str]]:
    """(namespace, plural, name, subresource parts) of what follows group and version."""
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in _NAMESPACE_SUBRESOURCES:
            rest = rest[2:]
    return namespace, rest[0], rest[1] if len(rest) > 1 else "", rest[2:]


def _subresource(parts: list[str]) -> tuple[str, tuple[str, ...]]:
    if len(parts) >= 2 and (parts[0], parts[1]) in _TWO_WORDS:
        return f"{parts[0]}/{parts[1]}", tuple(parts[2:])
    return (parts[0], tuple(parts[1:])) if parts else ("", ())


def _selected_name(selector: str) -> str:
    """The name that `metadata.name=x` fixes, if the selector has such a term."""
    for term in selector.split(","):
        key, sep, value = term.partition("=")
        if sep and key == "metadata.name":
            return value.removeprefix("=")
    return ""
