"""What an aggregated ClusterRole holds: the rules of all others that its selectors choose. Pure.

The controller `controllers.aggregation` writes them into the role, the server's default roles begin with them, and the
authorizer adds them at once, so that a grant does not wait for the controller. Follows kube-controller-manager's
clusterroleaggregation: in order of names, each rule once, never its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stead.kube.errors import ApiError
from stead.kube.selectors import labels_from_object

Object = dict[str, Any]
Rule = dict[str, Any]


def is_aggregated(role: Object) -> bool:
    """Whether a controller keeps the role's rules."""
    return role.get("aggregationRule") is not None


def aggregated_rules(role: Object, roles: Iterable[Object]) -> list[Rule]:
    """Rules that the role's selectors bring together. A selector that cannot be read chooses nothing."""
    chosen: dict[str, Object] = {}
    known = list(roles)
    for selector in (role.get("aggregationRule") or {}).get("clusterRoleSelectors") or []:
        for other in known:
            name = other["metadata"]["name"]
            if name != role["metadata"]["name"] and _matches(selector, other["metadata"].get("labels") or {}):
                chosen[name] = other
    rules: list[Rule] = []
    for name in sorted(chosen):
        rules += [rule for rule in chosen[name].get("rules") or [] if rule not in rules]
    return rules


def _matches(selector: Any, labels: dict[str, str]) -> bool:
    try:
        found = labels_from_object(selector)
    except ApiError:
        return False
    return found is not None and found.matches(labels)
