"""How much of a request the audit log keeps: rules of an administrator's file, and what is never kept.

Read once at start from the file that the setting `audit_policy` names: a `Policy` of `audit.k8s.io/v1` in YAML, the
first matching rule decides, as in Kubernetes; what is unknown there is an error that names it. Whatever a rule says,
requests that carry secrets or tokens are logged with metadata only, and fields that usually hold them are blanked in
all others. Pure but for reading the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from stead.config import ConfigError
from stead.kube import encoding
from stead.kube.errors import ApiError
from stead.server.authn import User
from stead.server.catalogue import SUBRESOURCE_GROUPS
from stead.server.request import Request

Level = Literal["None", "Metadata", "Request", "RequestResponse"]
LEVELS: tuple[Level, ...] = ("None", "Metadata", "Request", "RequestResponse")

#: bytes of a body above which the log says only that there was one
MAX_BODY = 256 * 1024
#: kinds whose bodies are secrets or hold tokens; matched in every group
_SECRET_KINDS = frozenset({
    "secrets", "tokenreviews", "tokenrequests", "uploadtokenrequests", "serviceaccounts/token",
})  # fmt: skip
#: fields of other kinds that people put passwords and keys into
_BLANKED = frozenset({
    "userData", "userDataBase64", "networkData", "networkDataBase64", "extraHeaders", "stringData", "token", "password",
    "kubectl.kubernetes.io/last-applied-configuration",
})  # fmt: skip
_BLANK = "(not logged)"
_TOKEN = re.compile(rb"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")


class PolicyError(ConfigError):
    """The policy file cannot be used; the text says why."""


class GroupResources(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Kinds of one group ("" is the core group); no `resources` means all of it."""

    group: str = ""
    resources: tuple[str, ...] = ()
    resource_names: tuple[str, ...] = ()


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """One rule; what is left empty matches all."""

    level: Level
    users: tuple[str, ...] = ()
    user_groups: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    resources: tuple[GroupResources, ...] = ()
    namespaces: tuple[str, ...] = ()
    non_resource_urls: tuple[str, ...] = msgspec.field(default=(), name="nonResourceURLs")


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """All rules. No rule matches: not logged, as in Kubernetes."""

    rules: tuple[Rule, ...]
    api_version: Literal["audit.k8s.io/v1"] = "audit.k8s.io/v1"
    kind: Literal["Policy"] = "Policy"
    metadata: dict[str, Any] = {}

    def level(self, request: Request, user: User) -> Level:
        """How much of a request is logged."""
        found: Level = next((rule.level for rule in self.rules if _matches(rule, request, user)), "None")
        return "Metadata" if found in ("Request", "RequestResponse") and has_secrets(request) else found


#: everything, with metadata only: what is logged where no file is named
USUAL = Policy(rules=(Rule(level="Metadata"),))


def load(path: Path | None) -> Policy:
    """The policy of a file, or the usual one without a file. Raises PolicyError."""
    if path is None:
        return USUAL
    try:
        value = encoding.decode(path.read_bytes(), "application/yaml").value
        return msgspec.convert(value, Policy)
    except (OSError, encoding.DecodeError, ApiError, msgspec.ValidationError) as error:
        raise PolicyError(f"audit_policy {path}: {error}") from error


def has_secrets(request: Request) -> bool:
    """Whether bodies of such a request are never logged."""
    if not request.is_resource or request.group in SUBRESOURCE_GROUPS:
        return True
    return request.plural in _SECRET_KINDS or request.resource_with_subresource in _SECRET_KINDS


def _matches(rule: Rule, request: Request, user: User) -> bool:
    if rule.users and user.name not in rule.users:
        return False
    if rule.user_groups and not set(rule.user_groups) & set(user.groups):
        return False
    if rule.verbs and request.verb not in rule.verbs:
        return False
    if not request.is_resource:
        urls = rule.non_resource_urls
        if rule.resources or rule.namespaces:
            return False
        return not urls or any(_matches_url(url, request.path) for url in urls)
    if rule.non_resource_urls and not rule.resources:
        return False
    if rule.namespaces and request.namespace not in rule.namespaces:
        return False
    return not rule.resources or any(_matches_kind(one, request) for one in rule.resources)


def _matches_url(pattern: str, path: str) -> bool:
    return path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern


def _matches_kind(one: GroupResources, request: Request) -> bool:
    if one.group != request.group:
        return False
    if one.resource_names and request.name not in one.resource_names:
        return False
    whole, sub = request.resource_with_subresource, request.subresource
    return not one.resources or any(
        name in ("*", whole) or name == f"{request.plural}/*" or (sub and name == f"*/{sub}") for name in one.resources
    )


def object_in(body: bytes, media: str) -> Any:
    """What the log keeps of a body, secrets blanked; None where it keeps nothing."""
    if not body or len(body) > MAX_BODY:
        return None
    kind = "application/yaml" if "yaml" in media else "application/json"
    try:
        return blanked(encoding.decode(body, kind).value)
    except (encoding.DecodeError, ApiError):
        return None  # protobuf, or no body that the server would take


def blanked(value: Any) -> Any:
    """A value with what may be secret taken out, in objects and in JSON patches."""
    if isinstance(value, list):
        return [blanked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("op"), str) and _BLANKED & set(str(value.get("path", "")).replace("~1", "/").split("/")):
        return {**value, "value": _BLANK}
    if value.get("kind") == "Secret":
        value = {key: item if key not in ("data", "stringData") else _BLANK for key, item in value.items()}
    return {key: _BLANK if key in _BLANKED else blanked(item) for key, item in value.items()}


def without_tokens(line: bytes) -> bytes:
    """A line of the log with everything that looks like a signed token blanked."""
    return _TOKEN.sub(b"(token)", line) if b"eyJ" in line else line
