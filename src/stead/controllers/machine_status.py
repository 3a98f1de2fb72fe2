"""What a VirtualMachine's status says: printableStatus, conditions, crash-loop record. Pure functions on one `View`.

Called by `controllers.machine` only. Order of printableStatus, names and reasons follow KubeVirt 1.8
(pkg/virt-controller/watch/vm); the crash-loop delay is 10·n² s plus jitter, at most 300 s.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec

from stead.controllers.conditions import (
    condition,
    controller_of,
    find_condition,
    is_condition,
    is_deleting,
    merge_conditions,
    spec_of,
    status_of,
    text_from_time,
    time_from_text,
)
from stead.kube.quantity import is_quantity, parse

Object = dict[str, Any]

FINAL_PHASES = ("Succeeded", "Failed")
STARTING_PHASES = ("", "Pending", "Scheduling", "Scheduled")
#: Conditions that are the VM controller's own; all others are copies of the instance's.
OWN_CONDITIONS = ("Ready", "Failure", "RestartRequired", "ManualRecoveryRequired", "Paused")
BACKOFF_STRATEGIES = ("Always", "RerunOnFailure", "Once")
MAX_BACKOFF_SECONDS = 300
RESTART_MESSAGE = "a non-live-updatable field was changed in the template spec"


class Failure(msgspec.Struct, frozen=True):
    """Why a pass could not do what it should: reason and message of the VM's Failure condition."""

    reason: str
    message: str


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision about one VirtualMachine may look at. Objects are never changed."""

    vm: Object
    vmi: Object | None
    #: DataVolumes and claims by name, those that the template's volumes refer to; a missing one is absent
    data_volumes: dict[str, Object] = {}
    claims: dict[str, Object] = {}
    #: the spec that the running instance was made from (its start revision), if known
    started_spec: Object | None = None
    now: datetime
    #: seconds added to the crash-loop delay, drawn by the caller in [0, 1) and scaled here
    roll: float = 0.0


def run_strategy(vm: Object) -> str:
    """The effective run strategy; `running` is the deprecated spelling of Always and Halted."""
    spec = spec_of(vm)
    if spec.get("runStrategy"):
        return str(spec["runStrategy"])
    return "Always" if spec.get("running") else "Halted"


def is_final(vmi: Object | None) -> bool:
    """Whether the instance has ended."""
    return phase(vmi) in FINAL_PHASES


def phase(vmi: Object | None) -> str:
    """The instance's phase; "" when new or absent."""
    return str(status_of(vmi).get("phase") or "")


def requests(vm: Object) -> list[Object]:
    """Pending stateChangeRequests, oldest first. Only the first is acted on."""
    return list(status_of(vm).get("stateChangeRequests") or ())


def start_request(vm: Object) -> Object | None:
    """The first request, if it asks for a start."""
    first = requests(vm)[:1]
    return first[0] if first and first[0].get("action") == "Start" else None


def wants_stop_of(vm: Object, vmi: Object | None) -> bool:
    """Whether the first request asks to stop this very instance."""
    first = requests(vm)[:1]
    return bool(vmi and first and first[0].get("action") == "Stop" and first[0].get("uid") == vmi["metadata"]["uid"])


def open_requests(vm: Object, vmi: Object | None) -> list[Object]:
    """The requests without the first one, if that is fulfilled."""
    pending = requests(vm)
    if not pending:
        return pending
    first = pending[0]
    if first.get("action") == "Stop":
        fulfilled = vmi is None or first.get("uid") != vmi["metadata"]["uid"]
    else:
        fulfilled = vmi is not None and not is_final(vmi) and not is_deleting(vmi)
    return pending[1:] if fulfilled else pending


# crash loop ---------------------------------------------------------------------------------------------------------


def has_run(vmi: Object) -> bool:
    """Whether the instance ever reached Running."""
    return any(t.get("phase") == "Running" for t in status_of(vmi).get("phaseTransitionTimestamps") or ())


def backoff_seconds(failures: int, roll: float) -> int:
    """Delay after the n-th start failure in a row: 10·n² s and up to 5·n s of jitter, capped."""
    return min(MAX_BACKOFF_SECONDS, 10 * failures * failures + int(roll * 5 * failures))


def start_failure(view: View) -> Object | None:
    """The `status.startFailure` to record: counted once per instance that ended without having run, reset by a run."""
    known: Object | None = status_of(view.vm).get("startFailure")
    if run_strategy(view.vm) not in BACKOFF_STRATEGIES:
        return None
    vmi = view.vmi
    if vmi is None:
        return known
    if phase(vmi) == "Running" or has_run(vmi):
        return None
    if not is_final(vmi) or (known and known.get("lastFailedVMIUID") == vmi["metadata"]["uid"]):
        return known
    count = int((known or {}).get("consecutiveFailCount") or 0) + 1
    retry = view.now + timedelta(seconds=backoff_seconds(count, view.roll))
    return {
        "consecutiveFailCount": count,
        "lastFailedVMIUID": vmi["metadata"]["uid"],
        "retryAfterTimestamp": text_from_time(retry),
    }


def backoff_left(failure: Object | None, now: datetime) -> float:
    """Seconds until another start may be tried; 0 when at once."""
    if not failure or not failure.get("retryAfterTimestamp"):
        return 0.0
    return max(0.0, (time_from_text(failure["retryAfterTimestamp"]) - now).total_seconds())


# volumes ------------------------------------------------------------------------------------------------------------


def volume_claims(vm: Object) -> list[tuple[str, bool]]:
    """(claim name, made by a DataVolume) of each volume in the template that has one."""
    found: list[tuple[str, bool]] = []
    for volume in spec_of(spec_of(vm).get("template")).get("volumes") or ():
        if "dataVolume" in volume:
            found.append((volume["dataVolume"].get("name", ""), True))
        elif "persistentVolumeClaim" in volume:
            found.append((volume["persistentVolumeClaim"].get("claimName", ""), False))
    return found


def relevant_data_volumes(vm: Object) -> list[str]:
    """Names of the DataVolumes that the machine needs: of its templates and of its volumes, in order."""
    names = [t["metadata"]["name"] for t in spec_of(vm).get("dataVolumeTemplates") or ()]
    names += [name for name, is_data_volume in volume_claims(vm) if is_data_volume]
    return list(dict.fromkeys(n for n in names if n))


def is_data_volume_ready(view: View, name: str) -> bool:
    """Whether an instance may be made as far as this DataVolume goes (WaitForFirstConsumer waits for the instance)."""
    found = view.data_volumes.get(name)
    if found is None:
        return name in view.claims and not is_deleting(view.claims[name])
    if is_left_over(view.vm, found):
        return False
    return status_of(found).get("phase") in ("Succeeded", "WaitForFirstConsumer", "PendingPopulation")


def is_left_over(vm: Object, data_volume: Object) -> bool:
    """Whether a DataVolume is going, or belongs to an earlier machine of this name and will go."""
    owner = controller_of(data_volume)
    earlier = owner is not None and owner["kind"] == vm["kind"] and owner["uid"] != vm["metadata"]["uid"]
    return is_deleting(data_volume) or (earlier and owner is not None and owner["name"] == vm["metadata"]["name"])


def has_data_volume_error(view: View) -> bool:
    """Whether a DataVolume failed or is failing."""
    return any(
        status_of(dv).get("phase") == "Failed"
        or is_condition(dv, "Running", "False", "Error")
        or is_condition(dv, "Running", "False", "ImagePullFailed")
        for dv in view.data_volumes.values()
    )


def is_provisioning(view: View) -> bool:
    """Whether a DataVolume is still being filled."""
    done = ("Succeeded", "Failed", "WaitForFirstConsumer", "PendingPopulation")
    for name in relevant_data_volumes(view.vm):
        found = view.data_volumes.get(name)
        if found is None and name not in view.claims:
            return True
        if found is not None and status_of(found).get("phase") not in done:
            return True
    return False


def is_waiting_for_binding(view: View) -> bool:
    """Whether a claim that exists is not bound yet."""
    return any(
        name in view.claims and status_of(view.claims[name]).get("phase") != "Bound"
        for name, _ in volume_claims(view.vm)
    )


def data_volumes_message(view: View) -> str:
    """What the DataVolumes wait for, each with its own words; "" if for nothing."""
    texts = []
    for name in relevant_data_volumes(view.vm):
        if is_data_volume_ready(view, name):
            continue
        found = view.data_volumes.get(name)
        reason = "does not exist yet"
        if found is not None and is_left_over(view.vm, found):
            reason = "is being deleted"
        elif found is not None:
            parts = [c.get("message") for k in ("Running", "Ready", "Bound") if (c := find_condition(found, k))]
            reason = next((p for p in parts if p), str(status_of(found).get("phase") or "Pending"))
        texts.append(f"DataVolume {name}: {reason}")
    return "; ".join(texts)


# printableStatus ----------------------------------------------------------------------------------------------------


def is_start_expected(view: View, *, start_pending: bool) -> bool:
    """Whether the run strategy will make an instance without anybody asking again."""
    strategy = run_strategy(view.vm)
    if strategy == "Always":
        return True
    return strategy != "Halted" and (start_pending or start_request(view.vm) is not None)


def printable_status(view: View, failure: Object | None, *, start_pending: bool) -> str:
    """The first row that matches. `failure` is the startFailure that is being recorded."""
    vm, vmi = view.vm, view.vmi
    expected = is_start_expected(view, start_pending=start_pending)
    set_to_start = vmi is not None or expected
    crashing = run_strategy(vm) in BACKOFF_STRATEGIES and bool(failure) and (vmi is None or is_final(vmi))
    starting = (vmi is not None and phase(vmi) in STARTING_PHASES) or (vmi is None and expected and not crashing)
    rows = (
        ("Terminating", is_deleting(vm)),
        ("Stopping", vmi is not None and not is_final(vmi) and is_deleting(vmi)),
        ("Migrating", is_migrating(vmi)),
        ("Paused", is_condition(vmi, "Paused") and not is_final(vmi)),
        ("Running", phase(vmi) == "Running"),
        ("ErrorPvcNotFound", is_condition(vmi, "Synchronized", "False", "FailedPvcNotFound") and not is_final(vmi)),
        ("DataVolumeError", has_data_volume_error(view)),
        ("ErrorUnschedulable", is_condition(vmi, "PodScheduled", "False", "Unschedulable") and not is_final(vmi)),
        ("Provisioning", is_provisioning(view)),
        ("WaitingForVolumeBinding", set_to_start and not is_final(vmi) and is_waiting_for_binding(view)),
        ("ErrImagePull", is_condition(vmi, "Synchronized", "False", "ErrImagePull") and not is_final(vmi)),
        ("ImagePullBackOff", is_condition(vmi, "Synchronized", "False", "ImagePullBackOff") and not is_final(vmi)),
        ("Starting", starting),
        ("CrashLoopBackOff", crashing),
        ("Stopped", run_strategy(vm) != "WaitAsReceiver" and (vmi is None or is_final(vmi))),
        ("WaitingForReceiver", run_strategy(vm) == "WaitAsReceiver"),
    )
    return next((name for name, holds in rows if holds), "Unknown")


def is_migrating(vmi: Object | None) -> bool:
    """Whether a migration of the instance is under way."""
    state = status_of(vmi).get("migrationState") or {}
    return bool(state.get("startTimestamp")) and not state.get("endTimestamp") and not is_final(vmi)


# RestartRequired ----------------------------------------------------------------------------------------------------


def template_differs(started: Object, current: Object) -> bool:
    """Whether a running instance made from VM spec `started` must restart to follow VM spec `current`.

    Placement rules matter only at the next start. Absent equals empty; quantities compare by value.
    """
    for matcher in ("instancetype", "preference"):
        old, new = started.get(matcher) or {}, current.get(matcher) or {}
        if (old.get("name"), old.get("kind") or "") != (new.get("name"), new.get("kind") or ""):
            return True
    ignored = ("nodeSelector", "affinity", "tolerations", "topologySpreadConstraints", "evictionStrategy")
    old_spec, new_spec = spec_of(started.get("template")), spec_of(current.get("template"))
    old_spec = {k: v for k, v in old_spec.items() if k not in ignored}
    new_spec = {k: v for k, v in new_spec.items() if k not in ignored}
    return bool(_plain(old_spec) != _plain(new_spec))


_QUANTITY_FIELDS = frozenset(
    ("guest", "maxGuest", "memory", "cpu", "capacity", "storage", "overcommitPercent", "pageSize", "ephemeral-storage")
)


def _plain(value: Any, field: str = "") -> Any:
    if isinstance(value, dict):
        parts = {k: _plain(v, k) for k, v in value.items()}
        return {k: v for k, v in parts.items() if v is not None and v != [] and (v != {} or k in _MARKERS)}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if field in _QUANTITY_FIELDS and is_quantity(value):
        return parse(value)
    return value


#: Empty dictionaries that mean something by being there.
_MARKERS = frozenset(
    (
        "masquerade", "bridge", "passt", "slirp", "sriov", "pod", "rng", "tpm", "watchdog", "acpi", "efi", "bios",
        "smm", "kvm", "hyperv", "utc", "emptyDisk", "emptyDir", "downwardMetrics", "disk", "cdrom", "lun", "panic",
    )
)  # fmt: skip


# the whole ----------------------------------------------------------------------------------------------------------


def _ready(vmi: Object | None) -> Object:
    if vmi is None:
        return condition("Ready", "False", "VMINotExists", "VMI does not exist")
    copied = find_condition(vmi, "Ready")
    if copied is None:
        return condition("Ready", "False", "VMIConditionMissing", "VMI is missing the Ready condition")
    return {k: v for k, v in copied.items() if k not in ("lastTransitionTime", "lastProbeTime")}


def conditions(view: View, failure: Failure | None) -> list[Object]:
    """The VM's conditions, dated."""
    vm, vmi = view.vm, view.vmi
    wanted = [_ready(vmi)]
    if failure is not None:
        wanted.append(condition("Failure", "True", failure.reason, failure.message))
    if vmi is not None:
        for copied in status_of(vmi).get("conditions") or ():
            if copied["type"] in OWN_CONDITIONS and not (copied["type"] == "Paused" and copied["status"] == "True"):
                continue
            wanted.append({k: v for k, v in copied.items() if k not in ("lastTransitionTime", "lastProbeTime")})
    elif message := data_volumes_message(view):
        wanted.append(condition("DataVolumesReady", "False", "NotAllDVsReady", message))
    if is_restart_required(view):
        wanted.append(condition("RestartRequired", "True", "RestartRequired", RESTART_MESSAGE))
    kept = find_condition(vm, "ManualRecoveryRequired")
    if kept is not None:
        wanted.append(kept)
    return merge_conditions(status_of(vm).get("conditions"), wanted, text_from_time(view.now))


def is_restart_required(view: View) -> bool:
    """Whether a live instance no longer matches the template in a field that only a restart applies."""
    if view.vmi is None or is_final(view.vmi) or is_deleting(view.vmi) or view.started_spec is None:
        return False
    return template_differs(view.started_spec, spec_of(view.vm))


def decide_status(view: View, references: Object, failure: Failure | None, *, start_pending: bool) -> Object:
    """The whole new status. `references` holds instancetypeRef and preferenceRef as resolved (or nothing)."""
    vm, vmi = view.vm, view.vmi
    status = dict(status_of(vm))
    crash = start_failure(view)
    generation = vm["metadata"].get("generation", 1)
    status["desiredGeneration"] = generation
    status["observedGeneration"] = _observed_generation(view, generation)
    if not start_pending:
        status["runStrategy"] = run_strategy(vm)
    status["conditions"] = conditions(view, failure)
    status["printableStatus"] = printable_status(view, crash, start_pending=start_pending)
    optional: Object = {
        "created": True if vmi is not None else None,
        "ready": True if is_condition(vmi, "Ready") else None,
        "startFailure": crash,
        "stateChangeRequests": open_requests(vm, vmi) or None,
        "instancetypeRef": references.get("instancetypeRef"),
        "preferenceRef": references.get("preferenceRef"),
    }
    for field, value in optional.items():
        if value is None:
            status.pop(field, None)
        else:
            status[field] = value
    return status


def _observed_generation(view: View, generation: int) -> int:
    if view.vmi is None or view.started_spec is None or not template_differs(view.started_spec, spec_of(view.vm)):
        return generation
    text = (view.vmi["metadata"].get("annotations") or {}).get("kubevirt.io/vm-generation", "")
    return int(text) if text.isdigit() else generation
