"""The shape in which KubeVirt's typed API returns a machine's spec: what its Go encoder leaves out or writes anyway.

The real mutating webhook decodes a spec into Go structs and encodes it again, and clients see the effect: empty lists
vanish, `resources` and `devices` always stand there, quantities are canonical (recordings `containerpath-gate-off`,
`hostdisk-existing`, `vmi-memory-fraction`). Works on a private copy and returns it. Pure.
"""

from __future__ import annotations

from typing import Any

from stead.kube import quantity
from stead.kube.encoding import own_copy
from stead.server.admission.contract import Json

#: optional strings that the encoder drops when empty, as (list, key)
_DROPPED_WHEN_EMPTY = (("tolerations", "key"),)


def settled_spec(spec: Json) -> Json:
    """A new instance spec in canonical shape; the input is left alone."""
    settled: Json = _without_empty_lists(own_copy(spec))
    domain = settled.setdefault("domain", {})
    if not isinstance(domain, dict):
        return settled
    domain.setdefault("devices", {})
    domain.setdefault("resources", {})
    if domain.get("features") is not None:
        domain["features"].setdefault("acpi", {})
    for section in ("requests", "limits"):
        _canonicalise_all(domain["resources"].get(section))
    memory = domain.get("memory")
    for key in ("guest", "maxGuest"):
        _canonicalise(memory, key)
    for volume in settled.get("volumes") or ():
        _canonicalise(volume.get("emptyDisk"), "capacity")
        host_disk = volume.get("hostDisk")
        if host_disk is not None:
            host_disk.setdefault("capacity", "0")
            _canonicalise(host_disk, "capacity")
        path = volume.get("containerPath")
        if path is not None:
            path.setdefault("readOnly", True)
    for list_name, key in _DROPPED_WHEN_EMPTY:
        for entry in settled.get(list_name) or ():
            if entry.get(key) == "":
                del entry[key]
    return settled


def _without_empty_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_empty_lists(v) for k, v in value.items() if v is not None and v != []}
    if isinstance(value, list):
        return [_without_empty_lists(v) for v in value]
    return value


def _canonicalise(holder: Any, key: str) -> None:
    """Rewrite one quantity; text that does not parse stays for the schema step to refuse."""
    if isinstance(holder, dict) and key in holder and quantity.is_quantity(holder[key]):
        holder[key] = quantity.canonical(holder[key])


def _canonicalise_all(holder: Any) -> None:
    for key in list(holder or ()):
        _canonicalise(holder, key)
