"""RBAC decided by another hand: from the published rules, over plain objects, slow and plain. Knows nothing of `stead`.

Kubernetes documents: a request is allowed if any rule of any role bound to the user, or one of the user's groups, holds
its verb, API group and resource (`*` for each; `plural/sub` for subresources, `*/sub` for one of all; a plural
alone never means its subresources), and its name if the rule has resourceNames. A RoleBinding counts in its own
namespace, a ClusterRoleBinding everywhere. Non-resource URLs match exactly or by a trailing `*`, through cluster-wide
bindings only. `system:masters` may do everything. An aggregated role has the rules of all that its selectors choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Object = dict[str, Any]


class Question(NamedTuple):
    """One cell of the matrix. `path` is set instead of the rest for non-resource URLs."""

    verb: str
    group: str = ""
    plural: str = ""
    sub: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""


class Policy(NamedTuple):
    """All RBAC objects of a cluster."""

    cluster_roles: list[Object]
    roles: list[Object]
    cluster_bindings: list[Object]
    bindings: list[Object]


def may(policy: Policy, user: str, groups: set[str], asked: Question) -> bool:
    """The decision."""
    if "system:masters" in groups:
        return True
    for binding in policy.cluster_bindings:
        if _names(binding, user, groups):
            for rule in _cluster_rules(policy, binding["roleRef"]["name"], set()):
                if _path_allowed(rule, asked) if asked.path else _allowed(rule, asked):
                    return True
    if asked.path or not asked.namespace:
        return False
    here = [each for each in policy.bindings if each["metadata"]["namespace"] == asked.namespace]
    mine = [each for each in here if _names(each, user, groups)]
    return any(_allowed(rule, asked) for each in mine for rule in _bound_rules(policy, each))


def _names(binding: Object, user: str, groups: set[str]) -> bool:
    for subject in binding.get("subjects") or []:
        if subject["kind"] == "User" and subject["name"] == user:
            return True
        if subject["kind"] == "Group" and subject["name"] in groups:
            return True
        if subject["kind"] == "ServiceAccount":
            where = subject.get("namespace") or binding["metadata"].get("namespace", "")
            if user == f"system:serviceaccount:{where}:{subject['name']}":
                return True
    return False


def _bound_rules(policy: Policy, binding: Object) -> Iterator[Object]:
    name = binding["roleRef"]["name"]
    if binding["roleRef"]["kind"] == "ClusterRole":
        yield from _cluster_rules(policy, name, set())
        return
    for role in policy.roles:
        if role["metadata"]["name"] == name and role["metadata"]["namespace"] == binding["metadata"]["namespace"]:
            yield from role.get("rules") or []


def _cluster_rules(policy: Policy, name: str, seen: set[str]) -> Iterator[Object]:
    for role in policy.cluster_roles:
        if role["metadata"]["name"] != name or name in seen:
            continue
        if role.get("aggregationRule") is None:
            yield from role.get("rules") or []
            continue
        for selector in role["aggregationRule"].get("clusterRoleSelectors") or []:
            for other in policy.cluster_roles:
                labels = other["metadata"].get("labels") or {}
                if all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()):
                    yield from _cluster_rules(policy, other["metadata"]["name"], {*seen, name})


def _allowed(rule: Object, asked: Question) -> bool:
    wanted = f"{asked.plural}/{asked.sub}" if asked.sub else asked.plural
    possible = {"*", wanted} | ({f"*/{asked.sub}"} if asked.sub else set())
    return (
        bool({"*", asked.verb} & set(rule.get("verbs") or []))
        and bool({"*", asked.group} & set(rule.get("apiGroups") or []))
        and bool(possible & set(rule.get("resources") or []))
        and (not rule.get("resourceNames") or asked.name in rule["resourceNames"])
    )


def _path_allowed(rule: Object, asked: Question) -> bool:
    if not {"*", asked.verb} & set(rule.get("verbs") or []):
        return False
    for url in rule.get("nonResourceURLs") or []:
        if url == asked.path or (url[-1:] == "*" and asked.path[: len(url) - 1] == url[:-1]):
            return True
    return False
