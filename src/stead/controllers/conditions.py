"""Conditions, owner references and times as controllers read and build them. Pure: values in, new values out.

Called by every `decide_*`. Nothing here changes what it is given. A condition keeps its `lastTransitionTime` while its
status stays the same, so that an unchanged situation gives an equal status and costs no write.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]


def text_from_time(moment: datetime) -> str:
    """An API `Time`: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_from_text(text: str) -> datetime:
    """The moment an API `Time` or `MicroTime` names. Raises ValueError."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def find_condition(obj: Object | None, kind: str) -> Object | None:
    """The condition of that type in `status.conditions`, or None."""
    for condition in status_of(obj).get("conditions") or ():
        if condition.get("type") == kind:
            found: Object = condition
            return found
    return None


def is_condition(obj: Object | None, kind: str, status: str = "True", reason: str = "") -> bool:
    """Whether that condition has this status (and, if given, this reason)."""
    condition = find_condition(obj, kind)
    return bool(condition and condition.get("status") == status and reason in ("", condition.get("reason")))


def condition(kind: str, status: str, reason: str = "", message: str = "") -> Object:
    """A condition without times; `merge_conditions` dates it. `status` is True, False or Unknown."""
    made: Object = {"type": kind, "status": status}
    if reason:
        made["reason"] = reason
    if message:
        made["message"] = message
    return made


def merge_conditions(
    old: Iterable[Object] | None, wanted: Iterable[Object], now: str, *, heartbeat: str = ""
) -> list[Object]:
    """`wanted`, in order, with the times of `old` where nothing changed.

    `heartbeat` names a second time field that moves with any change (CDI: lastHeartbeatTime; Node the same).
    """
    known = {c["type"]: c for c in old or ()}
    merged: list[Object] = []
    for new in wanted:
        before = known.get(new["type"])
        dated = dict(new)
        same_status = before is not None and before.get("status") == new["status"]
        moved = before["lastTransitionTime"] if same_status and before and before.get("lastTransitionTime") else now
        dated["lastTransitionTime"] = moved
        if heartbeat:
            equal = before is not None and all(before.get(f) == new.get(f) for f in ("status", "reason", "message"))
            dated[heartbeat] = before[heartbeat] if equal and before and before.get(heartbeat) else now
        merged.append(dated)
    return merged


def status_of(obj: Object | None) -> Object:
    """`status`, or an empty dictionary."""
    return (obj or {}).get("status") or {}


def spec_of(obj: Object | None) -> Object:
    """`spec`, or an empty dictionary."""
    return (obj or {}).get("spec") or {}


def annotations_of(obj: Object | None) -> dict[str, str]:
    """`metadata.annotations`, or an empty dictionary."""
    return ((obj or {}).get("metadata") or {}).get("annotations") or {}


def labels_of(obj: Object | None) -> dict[str, str]:
    """`metadata.labels`, or an empty dictionary."""
    return ((obj or {}).get("metadata") or {}).get("labels") or {}


def is_deleting(obj: Object | None) -> bool:
    """Whether deletion was asked for."""
    return bool(obj and obj["metadata"].get("deletionTimestamp"))


def has_finalizer(obj: Object, finalizer: str) -> bool:
    """Whether the object carries that finalizer."""
    return finalizer in (obj["metadata"].get("finalizers") or ())


def owner_reference(owner: Object, *, controller: bool = True) -> Object:
    """A reference for `metadata.ownerReferences` of what `owner` makes."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": controller,
        "blockOwnerDeletion": True,
    }


def controller_of(obj: Object | None) -> Object | None:
    """The owner reference with `controller: true`, or None."""
    for reference in ((obj or {}).get("metadata") or {}).get("ownerReferences") or ():
        if reference.get("controller"):
            found: Object = reference
            return found
    return None


def is_owned_by(obj: Object | None, owner: Object) -> bool:
    """Whether `owner` (by uid) is the object's controller."""
    reference = controller_of(obj)
    return bool(reference and reference.get("uid") == owner["metadata"]["uid"])


def qualified(obj: Object) -> str:
    """namespace/name for people."""
    metadata = obj["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else str(metadata["name"])
