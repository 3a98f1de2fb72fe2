"""Start, stop, restart and migrate of a VirtualMachine: what each run strategy makes of them.

Start and stop are wishes written into the machine (run strategy, or a state change request in its status); the machine
controller grants them. Rules and texts are KubeVirt's (notes 2, observed 43-45, recordings `start-*`, `stop-*`,
`restart-*`, `migrate-*`). Pure.
"""

from __future__ import annotations

from stead.server.lifecycle.contract import (
    FINAL_PHASES,
    Decision,
    Json,
    Patch,
    bad_request,
    found_instance,
    found_machine,
    internal,
    is_dry_run,
    is_running,
    machine_conflict,
    phase_of,
)

_PAUSED = {"paused": "true"}


def decide_start(name: str, machine: Json | None, instance: Json | None, body: Json | None) -> Decision:
    """Start a machine, paused if `body.paused`."""
    machine = found_machine(machine, name)
    if instance is not None and phase_of(instance) not in ("", "Unknown", *FINAL_PHASES):
        raise machine_conflict(name, "VM is already running")
    strategy = run_strategy(machine)
    dry_run, paused = is_dry_run(body), bool((body or {}).get("paused"))
    if strategy == "Halted" and not paused:
        return Decision(machine_patch=_running_patch(machine, True), dry_run=dry_run)
    if strategy not in ("Halted", "Manual", "RerunOnFailure"):
        raise machine_conflict(name, f"{strategy} does not support manual start requests")
    start: Json = {"action": "Start", **({"data": dict(_PAUSED)} if paused else {})}
    over = phase_of(instance) in (FINAL_PHASES if strategy == "Manual" else ("Succeeded",))
    requests = [_stop_request(instance), start] if instance is not None and over else [start]
    return Decision(status_patch=_request_patch(machine, requests), dry_run=dry_run)


def decide_stop(name: str, machine: Json | None, instance: Json | None, body: Json | None) -> Decision:
    """Stop a machine; `body.gracePeriod` (seconds) shortens its grace period."""
    grace = (body or {}).get("gracePeriod")
    if grace is not None and grace < 0:
        raise bad_request("gracePeriod has to be greater or equal to 0")
    machine = found_machine(machine, name)
    strategy = run_strategy(machine)
    alive = instance is not None and phase_of(instance) not in FINAL_PHASES
    if strategy == "Halted":
        shorter = grace is not None and instance is not None and grace < _grace_of(instance)
        if not alive or not shorter:
            raise machine_conflict(name, "VM is not running")
    elif strategy not in ("Always", "Once") and not alive:
        raise machine_conflict(name, "VM is not running")
    dry_run = is_dry_run(body)
    shorten = _grace_patch(instance, grace) if instance is not None and grace is not None else ()
    if strategy == "Halted":
        return Decision(instance_patch=shorten, dry_run=dry_run)
    if strategy in ("Always", "Once", "WaitAsReceiver"):
        return Decision(machine_patch=_running_patch(machine, False), instance_patch=shorten, dry_run=dry_run)
    requests = [_stop_request(instance or {})]
    return Decision(status_patch=_request_patch(machine, requests), instance_patch=shorten, dry_run=dry_run)


def decide_restart(name: str, machine: Json | None, instance: Json | None, body: Json | None) -> Decision:
    """Stop a machine and start it again; `body.gracePeriodSeconds` 0 does not wait for the guest."""
    grace = (body or {}).get("gracePeriodSeconds")
    if grace is not None and grace > 0:
        raise bad_request("For force restart, only gracePeriod=0 is supported for now")
    if grace is not None and grace < 0:
        raise bad_request("gracePeriod has to be greater or equal to 0")
    machine = found_machine(machine, name)
    strategy = run_strategy(machine)
    if strategy in ("Halted", "Once"):
        raise machine_conflict(name, f"RunStategy {strategy} does not support manual restart requests")
    if instance is None:
        raise machine_conflict(name, "VM is not running: Halted")
    requests = [_stop_request(instance), {"action": "Start"}]
    return Decision(
        status_patch=_request_patch(machine, requests),
        instance_patch=_grace_patch(instance, 0) if grace == 0 else (),
        dry_run=is_dry_run(body),
    )


def decide_migrate(name: str, machine: Json | None, instance: Json | None, body: Json | None) -> Decision:
    """Move a running machine to another host."""
    found_machine(machine, name)
    instance = found_instance(instance, name)
    if not is_running(instance):
        raise machine_conflict(name, "VM is not running")
    spec: Json = {"vmiName": name}
    if (body or {}).get("addedNodeSelector"):
        spec["addedNodeSelector"] = dict((body or {})["addedNodeSelector"])
    return Decision(migration=spec, dry_run=is_dry_run(body))


def decide_cancel_evacuation(
    name: str, instance: Json | None, body: Json | None, machine: Json | None = None, *, of_machine: bool = False
) -> Decision:
    """Withdraw a drain's wish. With none pending nothing is changed (upstream fails with a 500 there, note 48)."""
    if of_machine:
        found_machine(machine, name)
    instance = found_instance(instance, name)
    patch: Patch = ()
    node = (instance.get("status") or {}).get("evacuationNodeName")
    if node:
        where = "/status/evacuationNodeName"
        patch = ({"op": "test", "path": where, "value": node}, {"op": "remove", "path": where})
    return Decision(code=200, instance_patch=patch, dry_run=is_dry_run(body))


def run_strategy(machine: Json) -> str:
    """The run strategy of a machine, whichever way it is written."""
    spec: Json = machine.get("spec") or {}
    if spec.get("running") is not None:
        return "Always" if spec["running"] else "Halted"
    return str(spec.get("runStrategy") or "Halted")


def _running_patch(machine: Json, running: bool) -> Patch:
    """Always or Halted, written the way in which the machine states it; fails if it changed meanwhile."""
    spec: Json = machine["spec"]
    if spec.get("runStrategy") is not None:
        path, value = "/spec/runStrategy", "Always" if running else "Halted"
        return ({"op": "test", "path": path, "value": spec["runStrategy"]}, _replace(path, value))
    path = "/spec/running"
    if spec.get("running") is None:
        return ({"op": "add", "path": path, "value": running},)
    return ({"op": "test", "path": path, "value": spec["running"]}, _replace(path, running))


def _replace(path: str, value: object) -> Json:
    return {"op": "replace", "path": path, "value": value}


def _stop_request(instance: Json) -> Json:
    return {"action": "Stop", "uid": (instance.get("metadata") or {}).get("uid")}


def _request_patch(machine: Json, requests: list[Json]) -> Patch:
    """Write state change requests. A lone stop replaces what is pending; anything else must wait."""
    status = machine.get("status")
    path = "/status/stateChangeRequests"
    if not status:
        return ({"op": "add", "path": "/status", "value": {"stateChangeRequests": requests}},)
    pending = status.get("stateChangeRequests")
    only_stop = len(requests) == 1 and requests[0]["action"] == "Stop"
    if pending and not only_stop:
        raise internal("unable to complete request: stop/start already underway")
    patch: list[Json] = []
    if pending:
        patch = [{"op": "test", "path": path, "value": pending}, _replace(path, requests)]
    else:
        patch = [{"op": "add", "path": path, "value": requests}]
    if status.get("startFailure") is not None and requests[-1]["action"] == "Start":
        patch.append({"op": "remove", "path": "/status/startFailure"})
    return tuple(patch)


def _grace_of(instance: Json) -> int:
    seconds = (instance.get("spec") or {}).get("terminationGracePeriodSeconds")
    return 30 if seconds is None else int(seconds)


def _grace_patch(instance: Json, seconds: int) -> Patch:
    path = "/spec/terminationGracePeriodSeconds"
    had = (instance.get("spec") or {}).get("terminationGracePeriodSeconds")
    if had is None:
        return ({"op": "add", "path": path, "value": seconds},)
    return ({"op": "test", "path": path, "value": had}, _replace(path, seconds))
