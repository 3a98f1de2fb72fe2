"""Which machines' changed blocks are recorded, and what their status says of it. Pure; used by `machine.py`.

KubeVirt's selectors (`changedBlockTrackingLabelSelectors`, by the machine's or its namespace's labels; feature gate
IncrementalBackup), or any BackupSchedule of ours that selects the machine. The instance is made with state
Initializing; its host records from the start on and says Enabled. Source: KubeVirt 1.8.
"""

from __future__ import annotations

from typing import Any

from stead.controllers.backups import selects
from stead.controllers.conditions import labels_of, spec_of, status_of
from stead.kube.errors import ApiError
from stead.kube.selectors import labels_from_object

Object = dict[str, Any]

GATE = "IncrementalBackup"
INITIALIZING, ENABLED, PENDING, DISABLED = "Initializing", "Enabled", "PendingRestart", "Disabled"
GATE_OFF = "IncrementalBackupFeatureGateDisabled"


def wanted(vm: Object, namespace: Object | None, kubevirt: Object | None, schedules: list[Object]) -> str:
    """`Initializing` when changes are to be recorded from the next start on, `GATE_OFF` when only the gate forbids it,
    else "".
    """
    if any(selects(schedule, vm) for schedule in schedules):
        return INITIALIZING
    configuration = spec_of(kubevirt).get("configuration") or {}
    selectors = configuration.get("changedBlockTrackingLabelSelectors") or {}
    chosen = _matches(selectors.get("virtualMachineLabelSelector"), vm)
    if not (chosen or _matches(selectors.get("namespaceLabelSelector"), namespace)):
        return ""
    developer = configuration.get("developerConfiguration") or {}
    listed = GATE in (developer.get("featureGates") or ())
    return INITIALIZING if listed and GATE not in (developer.get("disabledFeatureGates") or ()) else GATE_OFF


def _matches(selector: Object | None, obj: Object | None) -> bool:
    """An absent or empty selector chooses nothing here."""
    if not selector or obj is None:
        return False
    try:
        found = labels_from_object(selector)
    except ApiError:
        return False
    return found is not None and found.matches(labels_of(obj))


def state_of_machine(vm: Object, vmi: Object | None, asked: str) -> str:
    """`status.changedBlockTracking.state` of a VirtualMachine; "" = none."""
    before = (status_of(vm).get("changedBlockTracking") or {}).get("state", "")
    if asked == GATE_OFF:
        return GATE_OFF
    if vmi is None:
        return INITIALIZING if asked else DISABLED if before else ""
    found = str((status_of(vmi).get("changedBlockTracking") or {}).get("state") or "")
    if bool(asked) != (found in (INITIALIZING, ENABLED)):
        return PENDING
    return found or (DISABLED if before else "")
