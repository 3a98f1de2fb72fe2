"""Whether a Node matches: node selector terms, taints and tolerations. Pure.

Called by `placement` and `placement_book`. The meaning is kube-scheduler's (component-helpers: nodeaffinity, taints).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Object = dict[str, Any]


def matches_terms(terms: Iterable[Object], name: str, labels: Mapping[str, str]) -> bool:
    """Whether any NodeSelectorTerm matches a host; a term without requirements matches nothing."""
    return any(_matches_term(term, name, labels) for term in terms)


def _matches_term(term: Object, name: str, labels: Mapping[str, str]) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    names = {"metadata.name": name}
    return all(_matches(e, labels) for e in expressions) and all(_matches(f, names) for f in fields)


def _matches(requirement: Object, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(requirement.get("key", "")), requirement.get("values") or []
    match requirement.get("operator"):
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            try:
                number, bound = int(value or ""), int(values[0])
            except (ValueError, IndexError):
                return False
            return number > bound if operator == "Gt" else number < bound
    return False


def is_tolerated(taint: Object, tolerations: Iterable[Object]) -> bool:
    """Whether one of the tolerations is for this taint."""
    for toleration in tolerations:
        if toleration.get("effect") not in (None, "", taint.get("effect")):
            continue
        if toleration.get("key") not in (None, "", taint.get("key")):
            continue
        if toleration.get("operator") == "Exists":
            return True
        if toleration.get("key") and toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def only_hosts(terms: Iterable[Object], hostname_label: str) -> frozenset[str] | None:
    """The hosts that terms allow when all they ask for is a host's name; None when they ask for more."""
    found: set[str] = set()
    for term in terms:
        expressions = term.get("matchExpressions") or []
        if len(expressions) != 1 or term.get("matchFields"):
            return None
        if expressions[0].get("key") != hostname_label or expressions[0].get("operator") != "In":
            return None
        found.update(expressions[0].get("values") or [])
    return frozenset(found)
