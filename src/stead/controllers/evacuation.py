"""Empties hosts: makes migrations for the machines that a drain or an eviction wants away.

Started by `controllers.start`. A machine is to go when its `status.evacuationNodeName` names its host (an eviction, see
`server/admission/eviction.py`), or when its host bears the taint `kubevirt.io/drain` and its eviction strategy moves it
(`kinds.hosts.decide_leaving`). Each such machine that can move gets one migration of priority system-critical at a
time; a failed one is followed by another after a pause that doubles. Sole writer of those migrations. Source:
KubeVirt's evacuation controller (notes 4.8).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from stead.client.informer import Key, key_of
from stead.controllers.conditions import is_condition, is_deleting, owner_reference, spec_of, status_of, time_from_text
from stead.controllers.machine_status import is_final
from stead.controllers.migration import FINAL, phase_of
from stead.controllers.runner import Controller, Source, World, own_key
from stead.kinds.hosts import DRAIN_TAINT, decide_leaving, has_taint
from stead.kinds.register import MIGRATION, NODE, VIRTUAL_MACHINE_INSTANCE

Object = dict[str, Any]

PREFIX = "kubevirt-evacuation-"
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 20.0, 640.0


def is_to_go(vmi: Object, node: Object | None) -> bool:
    """Whether the machine is wanted away from the host where it is, and can move."""
    host = status_of(vmi).get("nodeName")
    if not host or is_final(vmi) or is_deleting(vmi) or not is_condition(vmi, "LiveMigratable"):
        return False
    if status_of(vmi).get("evacuationNodeName") == host:
        return True
    return has_taint(node or {}, DRAIN_TAINT["key"]) and decide_leaving(vmi)[0] == "move"


def pause_left(earlier: list[Object], now: datetime) -> float:
    """Seconds until another try, after so many that failed for this host."""
    failed = [m for m in earlier if phase_of(m) == "Failed"]
    if not failed:
        return 0.0
    pause = min(FIRST_PAUSE_SECONDS * 2 ** (len(failed) - 1), LAST_PAUSE_SECONDS)
    ends = [status_of(m).get("migrationState", {}).get("endTimestamp") for m in failed]
    latest = max((time_from_text(text) for text in ends if text), default=None)
    return 0.0 if latest is None else pause - (now - latest).total_seconds()


class Evacuations:
    """The controller's hands."""

    def __init__(self, world: World) -> None:
        self._world = world
        of = world.informers.of
        self._vmis, self._nodes, self._migrations = of(VIRTUAL_MACHINE_INSTANCE), of(NODE), of(MIGRATION)
        self._vmis.add_index("host", lambda vmi: [str(status_of(vmi).get("nodeName") or "")])

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (
            Source(self._vmis, own_key),
            Source(
                self._nodes, lambda node: [key_of(v) for v in self._vmis.by_index("host", node["metadata"]["name"])]
            ),
            Source(self._migrations, lambda m: [Key(m["metadata"]["namespace"], str(spec_of(m).get("vmiName")))]),
        )
        return Controller("evacuation", self.reconcile, sources, workers=1)

    async def reconcile(self, key: Key) -> float | None:
        """Make a migration for the machine, if it is to go and none is under way."""
        vmi = self._vmis.get(*key)
        if vmi is None or not is_to_go(vmi, self._nodes.get(None, str(status_of(vmi).get("nodeName")))):
            return None
        of_machine = [
            m
            for m in self._migrations.objects()
            if spec_of(m).get("vmiName") == key.name and m["metadata"]["namespace"] == key.namespace
        ]
        if any(phase_of(m) not in FINAL for m in of_machine):
            return None
        host = str(status_of(vmi)["nodeName"])
        ours = [m for m in of_machine if m["metadata"]["name"].startswith(PREFIX) and _source(m) == host]
        left = pause_left(ours, datetime.now(UTC))
        if left > 0:
            return left
        await self._world.client.create(MIGRATION, migration_for(vmi))
        return None


def _source(migration: Object) -> str:
    return str((status_of(migration).get("migrationState") or {}).get("sourceNode") or "")


def migration_for(vmi: Object) -> Object:
    """The migration that takes a machine away from where it is."""
    metadata = vmi["metadata"]
    return {
        "apiVersion": MIGRATION.api_version,
        "kind": MIGRATION.kind,
        "metadata": {
            "generateName": PREFIX,
            "namespace": metadata["namespace"],
            "annotations": {"kubevirt.io/evacuationMigration": str(status_of(vmi).get("nodeName"))},
            "ownerReferences": [owner_reference(vmi, controller=False)],
        },
        "spec": {"vmiName": metadata["name"], "priority": "system-critical"},
    }
