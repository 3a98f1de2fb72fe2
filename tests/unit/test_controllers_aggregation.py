"""Aggregated ClusterRoles: whoever labels a role adds to another, and takes it away again."""

from __future__ import annotations

from typing import Any

from controller_world import plane
from stead.kinds.aggregation import aggregated_rules
from stead.kinds.register import CLUSTER_ROLE

Object = dict[str, Any]


def role(name: str, verbs: list[str], labels: dict[str, str] | None = None, chooses: Object | None = None) -> Object:
    rules = [{"apiGroups": ["x"], "resources": ["y"], "verbs": verbs}] if verbs else []
    found = {"apiVersion": CLUSTER_ROLE.api_version, "kind": "ClusterRole",
             "metadata": {"name": name, "labels": labels or {}}, "rules": rules}  # fmt: skip
    return {**found, "aggregationRule": {"clusterRoleSelectors": [chooses]}} if chooses is not None else found


def verbs(found: Object) -> list[str]:
    return [verb for rule in found["rules"] for verb in rule["verbs"]]


def test_rules_come_in_order_of_names_each_once_and_never_from_oneself() -> None:
    whole = role("whole", ["own"], {"a": "1"}, {"matchLabels": {"a": "1"}})
    others = [role("c", ["get"], {"a": "1"}), role("b", ["list"], {"a": "1"}), role("d", ["get"], {"a": "1"}),
              role("e", ["delete"], {"a": "2"}), whole]  # fmt: skip
    assert verbs({"rules": aggregated_rules(whole, others)}) == ["list", "get"]
    broken = role("whole", [], {}, {"matchExpressions": [{"key": "a", "operator": "Nonsense"}]})
    assert aggregated_rules(broken, others) == []


async def test_a_labelled_role_joins_and_leaves_through_a_chain() -> None:
    async with plane() as p:
        inner = {"matchExpressions": [{"key": "to", "operator": "In", "values": ["inner"]}]}
        await p.client.create(CLUSTER_ROLE, role("inner", [], {"to": "outer"}, inner))
        await p.client.create(CLUSTER_ROLE, role("outer", ["mine"], {}, {"matchLabels": {"to": "outer"}}))
        await p.client.create(CLUSTER_ROLE, role("part", ["get"], {"to": "inner"}))
        await p.until(CLUSTER_ROLE, "outer", lambda found: verbs(found) == ["get"])
        await p.client.patch(CLUSTER_ROLE, None, "outer", {"rules": []})
        await p.until(CLUSTER_ROLE, "outer", lambda found: verbs(found) == ["get"])
        await p.client.patch(CLUSTER_ROLE, None, "part", {"metadata": {"labels": {"to": None}}})
        await p.until(CLUSTER_ROLE, "outer", lambda found: verbs(found) == [])
