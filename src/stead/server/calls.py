"""One call of a verb: who, on what, with which options; and what came of it.

Made by `app` from a request and by `client.local` directly; used by `verbs`, `reviews`, `subresources`. Values only.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.kinds.resource import Resource
from stead.kube import meta
from stead.kube.errors import ApiError, cause, invalid
from stead.server.authn import User
from stead.server.registry import Record
from stead.server.request import Query

Object = dict[str, Any]

VALIDATION_MODES = ("Ignore", "Warn", "Strict")
_MANAGER_MAX = 128


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a write. `force` None = not given; `manager` is the field manager."""

    dry_run: bool = False
    manager: str = "unknown"
    manager_given: bool = False
    validation: str = "Warn"
    force: bool | None = None


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call. `version` is the API version that the caller speaks; `namespace` "" for cluster-scoped kinds."""

    user: User
    resource: Resource
    version: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    options: Options = Options()

    @property
    def api_version(self) -> str:
        """`group/version` of the caller."""
        return f"{self.resource.group}/{self.version}" if self.resource.group else self.version


class DeleteOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a delete, checked. `propagation` is "", Background, Foreground or Orphan."""

    propagation: str = ""
    grace_seconds: int | None = None
    uid: str = ""
    resource_version: str = ""
    dry_run: bool = False


class Outcome(msgspec.Struct):
    """What a write gives: the state of the object (or a Status), the HTTP code, warnings for the client."""

    code: int
    record: Record | None = None
    status: Object | None = None
    warnings: list[str] = []


def write_options(kind: str, query: Query, user_agent: str) -> Options:
    """Options of a create, update or patch (`kind` is CreateOptions, UpdateOptions, PatchOptions). Raises 422."""
    causes: list[dict[str, str]] = []
    dry_run = query.all("dryRun")
    if query.has("dryRun") and dry_run != ["All"]:
        causes.append(dry_run_cause(dry_run))
    manager = query.get("fieldManager") or ""
    if len(manager) > _MANAGER_MAX:
        text = f"Too long: may not be more than {_MANAGER_MAX} bytes"
        causes.append(cause("fieldManager", text, "FieldValueTooLong"))
    for at, char in enumerate(manager):
        if not char.isprintable():
            text = f"invalid character U+{ord(char):04X} (at position {len(manager[:at].encode())})"
            causes.append(cause("fieldManager", f"Invalid value: {meta.go_quote(manager)}: {text}"))
    validation = query.get("fieldValidation") or ""
    if validation and validation not in VALIDATION_MODES:
        text = f'Unsupported value: "{validation}": supported values: "", "Ignore", "Strict", "Warn"'
        causes.append(cause("fieldValidation", text, "FieldValueNotSupported"))
    if causes:
        raise invalid(kind, "meta.k8s.io", "", causes)
    force = query.flag("force") if query.has("force") else None
    return Options(
        dry_run=bool(dry_run), manager=manager or manager_from(user_agent), manager_given=bool(manager),
        validation=validation or "Warn", force=force,
    )  # fmt: skip


def dry_run_cause(values: list[str]) -> dict[str, str]:
    """The cause for a dryRun that is not `All`."""
    shown = msgspec.json.encode(values).decode()
    return cause("dryRun", f'Unsupported value: {shown}: supported values: "All"', "FieldValueNotSupported")


def manager_from(user_agent: str) -> str:
    """The field manager that a User-Agent stands for: what comes before the first slash."""
    return user_agent.partition("/")[0][:_MANAGER_MAX] or "unknown"


def delete_options(body: Object | None, query: Query) -> DeleteOptions:
    """Options of a delete, from the body or else the query. Raises 400 and 422."""
    if body is None:
        body = _delete_query(query)
    elif query.has("dryRun") and "dryRun" not in body:
        body = {**body, "dryRun": query.all("dryRun")}
    causes: list[dict[str, str]] = []
    policy = body.get("propagationPolicy")
    orphan = body.get("orphanDependents")
    if policy is not None and orphan is not None:
        text = "orphanDependents and deletionPropagation cannot be both set"
        causes.append(cause("propagationPolicy", f'Invalid value: "{policy}": {text}'))
    elif policy is not None and policy not in ("Foreground", "Background", "Orphan"):
        text = f'Unsupported value: "{policy}": supported values: "Foreground", "Background", "Orphan", "nil"'
        causes.append(cause("propagationPolicy", text, "FieldValueNotSupported"))
    dry_run = body.get("dryRun") or []
    if "dryRun" in body and dry_run != ["All"] and dry_run != []:
        causes.append(dry_run_cause(list(dry_run)))
    if causes:
        raise invalid("DeleteOptions", "meta.k8s.io", "", causes)
    if policy is None and orphan is not None:
        policy = "Orphan" if orphan else "Background"
    preconditions = body.get("preconditions") or {}
    return DeleteOptions(
        propagation=policy or "", grace_seconds=body.get("gracePeriodSeconds"),
        uid=preconditions.get("uid") or "", resource_version=preconditions.get("resourceVersion") or "",
        dry_run=bool(dry_run),
    )  # fmt: skip


def _delete_query(query: Query) -> Object:
    body: Object = {}
    if (grace := query.get("gracePeriodSeconds")) is not None:
        try:
            body["gracePeriodSeconds"] = int(grace)
        except ValueError as error:
            raise ApiError("BadRequest", f'strconv.ParseInt: parsing "{grace}": invalid syntax') from error
    if query.get("propagationPolicy"):
        body["propagationPolicy"] = query.get("propagationPolicy")
    if query.has("orphanDependents"):
        body["orphanDependents"] = query.flag("orphanDependents")
    if query.has("dryRun"):
        body["dryRun"] = query.all("dryRun")
    return body
