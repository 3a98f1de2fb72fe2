"""The result type of all subresource decisions, and the refusals in the words of KubeVirt's subresource API.

A decision is data: the server carries it out (unless the call was a dry run) and answers `code` with `body`. Pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.kube.errors import ApiError

Json = dict[str, Any]
Patch = tuple[Json, ...]

#: phases in which an instance is over
FINAL_PHASES = ("Succeeded", "Failed")


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What a subresource call does. JSON patches are empty when there is nothing to change.

    `instance_patch` goes to the instance and comes first (it may shorten a grace period that a stop then uses), then
    `machine_patch` to the VirtualMachine, then `status_patch` to its /status. `agent` is the path of the call
    to the agent of the instance's host below `/v1/namespaces/{ns}/machines/{name}/`, with `agent_body` as JSON; "" = no
    call. `streams` says that the caller's WebSocket is joined to that path. `body` is the answer's JSON.
    """

    code: int = 202
    dry_run: bool = False
    machine_patch: Patch = ()
    status_patch: Patch = ()
    instance_patch: Patch = ()
    agent: str = ""
    agent_body: Json = {}
    streams: bool = False
    body: Json | None = None
    #: spec of the VirtualMachineInstanceMigration to create
    migration: Json | None = None


class PlainError(ApiError):
    """A refusal that is answered as text/plain, not as a Status: the guest information calls, screenshots."""


def is_dry_run(body: Json | None) -> bool:
    """Whether the options ask for a dry run."""
    return "All" in ((body or {}).get("dryRun") or ())


def phase_of(instance: Json | None) -> str:
    """Phase of an instance; "" if there is none or it has none."""
    return str(((instance or {}).get("status") or {}).get("phase") or "")


def is_running(instance: Json) -> bool:
    """Whether the guest runs (or is paused)."""
    return phase_of(instance) == "Running"


def has_condition(instance: Json, kind: str) -> bool:
    """Whether a condition of the instance is True."""
    conditions = (instance.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == kind and c.get("status") == "True" for c in conditions)


def not_found_machine(name: str) -> ApiError:
    """404 for a VirtualMachine; the subresource API names kinds in the singular."""
    return _not_found("virtualmachine", name)


def not_found_instance(name: str) -> ApiError:
    """404 for a VirtualMachineInstance."""
    return _not_found("virtualmachineinstance", name)


def _not_found(kind: str, name: str) -> ApiError:
    details = {"name": name, "group": "kubevirt.io", "kind": kind}
    return ApiError("NotFound", f'{kind}.kubevirt.io "{name}" not found', details)


def machine_conflict(name: str, why: str) -> ApiError:
    """409 about a VirtualMachine."""
    return _conflict("virtualmachine", name, why)


def instance_conflict(name: str, why: str) -> ApiError:
    """409 about a VirtualMachineInstance."""
    return _conflict("virtualmachineinstance", name, why)


def _conflict(kind: str, name: str, why: str) -> ApiError:
    details = {"name": name, "group": "kubevirt.io", "kind": kind}
    return ApiError("Conflict", f'Operation cannot be fulfilled on {kind}.kubevirt.io "{name}": {why}', details)


def bad_request(why: str) -> ApiError:
    """400."""
    return ApiError("BadRequest", why)


def internal(why: str) -> ApiError:
    """500, worded as apimachinery's NewInternalError."""
    return ApiError("InternalError", f"Internal error occurred: {why}", {"causes": [{"message": why}]})


def found_machine(machine: Json | None, name: str) -> Json:
    """The machine, or its 404."""
    if machine is None:
        raise not_found_machine(name)
    return machine


def found_instance(instance: Json | None, name: str) -> Json:
    """The instance, or its 404."""
    if instance is None:
        raise not_found_instance(name)
    return instance


def in_plain(error: ApiError) -> PlainError:
    """The same refusal as upstream's text/plain 500."""
    return PlainError("", error.message, code=500)
