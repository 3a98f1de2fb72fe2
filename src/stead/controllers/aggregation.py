"""Keeps the rules of aggregated ClusterRoles: whoever labels a role of theirs adds to `admin`, `edit` or `view`.

Started by `controllers.start`. Any change of a ClusterRole may concern each aggregated one; those of others' rules are
read, the role's own are written whole (what a user writes there is replaced, as in Kubernetes). A chain, `view` within
`edit` within `admin`, is done after as many passes, since each write is a change.
"""

from __future__ import annotations

from typing import Any

from stead.client.informer import Key
from stead.controllers.runner import Controller, Source, World
from stead.controllers.writes import guarded_patch
from stead.kinds.aggregation import aggregated_rules, is_aggregated
from stead.kinds.register import CLUSTER_ROLE

Object = dict[str, Any]


class Aggregation:
    """The controller's hands."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._roles = world.informers.of(CLUSTER_ROLE)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        return Controller("aggregation", self.reconcile, (Source(self._roles, self._concerned),), workers=1)

    def _concerned(self, _role: Object) -> list[Key]:
        return [Key("", role["metadata"]["name"]) for role in self._roles.objects() if is_aggregated(role)]

    async def reconcile(self, key: Key) -> float | None:
        """Write what is to be held, if it differs."""
        role = self._roles.get(None, key.name)
        if role is None or not is_aggregated(role) or role["metadata"].get("deletionTimestamp"):
            return None
        rules = aggregated_rules(role, self._roles.objects())
        if rules != (role.get("rules") or []):
            await guarded_patch(
                self._world.client, CLUSTER_ROLE, role, [{"op": "add", "path": "/rules", "value": rules}]
            )
        return None
