"""The status of CustomResourceDefinitions: accepted names, conditions, and the mark of a deletion.

Called by `definitions` (which writes it) and by `verbs` when a definition is deleted. Pure. Follows apiextensions'
naming and establishing controllers: a name belongs to the definition that had it first; the last conflict is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stead.kinds.foreign import CLEANUP, condition_of

Object = dict[str, Any]

_SINGLE = {"plural": "PluralConflict", "singular": "SingularConflict", "kind": "KindConflict",
           "listKind": "ListKindConflict"}  # fmt: skip
_KINDS = ("kind", "listKind")
_ORDER = ("NamesAccepted", "Established", "Terminating")


def decide_status(definition: Object, others: Iterable[Object], now: str) -> Object:
    """The status that a definition should have, beside the other definitions of its group."""
    status = definition.get("status") or {}
    wanted, accepted = definition["spec"]["names"], dict(status.get("acceptedNames") or {})
    kinds, words = _taken(others)
    trouble = ("", "")
    for field in ("plural", "singular", "shortNames", "kind", "listKind"):
        reason, message = _conflict(field, wanted, accepted, kinds if field in _KINDS else words)
        if reason:
            trouble = (reason, message)
        elif wanted.get(field):
            accepted[field] = wanted[field]
        else:
            accepted.pop(field, None)
    accepted = {"plural": "", "kind": "", **{key: value for key, value in accepted.items() if value}}
    if wanted.get("categories"):
        accepted["categories"] = wanted["categories"]
    else:
        accepted.pop("categories", None)
    reason, message = trouble
    if reason:
        found = [_condition("NamesAccepted", "False", reason, message)]
    else:
        found = [_condition("NamesAccepted", "True", "NoConflicts", "no conflicts found")]
    # A kind that was served once goes on being served.
    if condition_of(definition, "Established") == "True":
        pass
    elif reason:
        found.append(_condition("Established", "False", "NotAccepted", "not all names are accepted"))
    else:
        text = "the initial names have been accepted"
        found.append(_condition("Established", "True", "InitialNamesAccepted", text))
    conditions = with_conditions(status.get("conditions"), found, now)
    return {**status, "conditions": conditions, "acceptedNames": accepted}


def _taken(others: Iterable[Object]) -> tuple[set[str], set[str]]:
    """Kinds and resource names that other definitions have been given."""
    kinds: set[str] = set()
    words: set[str] = set()
    for other in others:
        names = (other.get("status") or {}).get("acceptedNames") or {}
        kinds |= {names.get("kind") or "", names.get("listKind") or ""}
        words |= {names.get("plural") or "", names.get("singular") or "", *(names.get("shortNames") or ())}
    return kinds - {""}, words - {""}


def _conflict(field: str, wanted: Object, accepted: Object, taken: set[str]) -> tuple[str, str]:
    """(reason, message) when a name that is asked for belongs to another definition."""
    if field == "shortNames":
        short = [name for name in wanted.get(field) or () if name in taken and name not in (accepted.get(field) or ())]
        return ("ShortNamesConflict", ", ".join(f'"{name}" is already in use' for name in short)) if short else ("", "")
    name = wanted.get(field)
    if name and name != accepted.get(field) and name in taken:
        return _SINGLE[field], f'"{name}" is already in use'
    return "", ""


def _condition(kind: str, status: str, reason: str, message: str) -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def with_conditions(known: list[Object] | None, wanted: list[Object], now: str) -> list[Object]:
    """The conditions with `wanted` put in; a time changes with the status only."""
    merged = {condition["type"]: condition for condition in known or ()}
    for condition in wanted:
        old = merged.get(condition["type"])
        same = old is not None and old.get("status") == condition["status"]
        time = old.get("lastTransitionTime", now) if old is not None and same else now
        merged[condition["type"]] = {**condition, "lastTransitionTime": time}
    ordered = [kind for kind in _ORDER if kind in merged] + [kind for kind in merged if kind not in _ORDER]
    return [merged[kind] for kind in ordered]


def terminating(definition: Object, now: str) -> Object:
    """A definition marked for deletion; it goes when its instances have gone."""
    metadata = dict(definition["metadata"])
    if metadata.get("deletionTimestamp"):
        return definition
    metadata["deletionTimestamp"] = now
    finalizers = list(metadata.get("finalizers") or [])
    metadata["finalizers"] = finalizers if CLEANUP in finalizers else [*finalizers, CLEANUP]
    text = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"
    mark = _condition("Terminating", "True", "InstanceDeletionPending", text)
    status = definition.get("status") or {}
    return {**definition, "metadata": metadata,
            "status": {**status, "conditions": with_conditions(status.get("conditions"), [mark], now)}}  # fmt: skip
