"""Whether the disks that an instance names can be used now, and what they ask of its host. Pure.

Called by `controllers.instance`. A claim whose content is still being brought in must not be attached: a DataVolume
counts by its phase, a plain claim by Bound and by the transfer that the agent reports on it.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec

from stead.controllers.conditions import annotations_of, controller_of, find_condition, is_deleting, spec_of, status_of

Object = dict[str, Any]

SELECTED_NODE = "volume.kubernetes.io/selected-node"
SOURCE, TRANSFER, HANDLE = "stead.io/source", "stead.io/transfer", "stead.io/volume-handle"
PROVISIONER = "stead.io"


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """One volume of an instance. `state`: ready, wait (message says for what), absent (no such claim), place (the
    claim waits for its first consumer: choose the host now)."""

    volume: str
    claim: str
    state: Literal["ready", "wait", "absent", "place"]
    message: str = ""
    of_data_volume: bool = False


def claim_names(vmi: Object) -> list[tuple[str, str, bool]]:
    """(volume, claim, named as dataVolume) of each volume that lies in a claim."""
    found = []
    for volume in spec_of(vmi).get("volumes") or ():
        if volume.get("dataVolume"):
            found.append((volume["name"], volume["dataVolume"].get("name", ""), True))
        elif volume.get("persistentVolumeClaim"):
            found.append((volume["name"], volume["persistentVolumeClaim"].get("claimName", ""), False))
    return found


def transfer_of(claim: Object | None) -> Object:
    """What the agent reports of the claim's content; empty if nothing (yet), or unreadable."""
    try:
        found = json.loads(annotations_of(claim).get(TRANSFER, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def waits_for_consumer(claim: Object, storage_class: Object | None) -> bool:
    """Whether nobody has chosen a host yet because the class says WaitForFirstConsumer."""
    return (
        not spec_of(claim).get("volumeName")
        and SELECTED_NODE not in annotations_of(claim)
        and (storage_class or {}).get("volumeBindingMode") == "WaitForFirstConsumer"
    )


def assess(
    volume: tuple[str, str, bool], claim: Object | None, data_volume: Object | None, storage_class: Object | None
) -> Need:
    """How one volume of an instance stands. `volume` as `claim_names` gives it."""
    name, claim_name, by_data_volume = volume
    owner = controller_of(claim)
    filled = by_data_volume or bool(owner and owner["kind"] == "DataVolume")

    def need(state: Literal["ready", "wait", "absent", "place"], message: str = "") -> Need:
        return Need(volume=name, claim=claim_name, state=state, message=message, of_data_volume=filled)

    if claim is None:
        if data_volume is not None:
            return need("wait", _data_volume_text(data_volume))
        return need("absent")
    if is_deleting(claim):
        return need("wait", f"claim {claim_name} is being deleted")
    if waits_for_consumer(claim, storage_class):
        return need("place")
    if filled and data_volume is not None:
        if status_of(data_volume).get("phase") != "Succeeded":
            return need("wait", _data_volume_text(data_volume))
    elif SOURCE in annotations_of(claim) and transfer_of(claim).get("phase") != "Succeeded":
        text = transfer_of(claim).get("message") or f"content is {transfer_of(claim).get('phase', 'Pending')}"
        return need("wait", f"claim {claim_name}: {text}")
    if status_of(claim).get("phase") != "Bound":
        return need("wait", f"claim {claim_name} is not bound")
    return need("ready")


def _data_volume_text(data_volume: Object) -> str:
    running = find_condition(data_volume, "Running") or {}
    phase = status_of(data_volume).get("phase") or "Pending"
    text = f"DataVolume {data_volume['metadata']['name']} is {phase}"
    return f"{text}: {running['message']}" if running.get("message") else text
