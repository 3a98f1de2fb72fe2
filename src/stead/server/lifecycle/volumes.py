"""Volumes that are plugged and unplugged by subresource, and memory dumps.

Plugging through a VirtualMachine edits its template, for good; plugging into a bare instance lasts as long as it does.
Rules and texts are KubeVirt's with declarative hotplug on, its default (observed 46-47, recordings `addvolume-*`,
`removevolume-*`, `memorydump-*`). Pure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from stead.kube.errors import ApiError
from stead.server.lifecycle.contract import (
    Decision,
    Json,
    Patch,
    bad_request,
    found_instance,
    found_machine,
    instance_conflict,
    is_dry_run,
    is_running,
    machine_conflict,
)

#: makes the 409 of the object that is changed
Refusal = Callable[[str], ApiError]
_MACHINE_SPEC = "/spec/template/spec"
_SOURCES = ("dataVolume", "persistentVolumeClaim")


def decide_add_volume(name: str, machine: Json | None, body: Json | None) -> Decision:
    """Add a volume and its disk to a machine's template; a running instance follows."""
    options = _add_options(body)
    spec = _template_spec(found_machine(machine, name))
    _refuse_taken(spec, options, lambda why: machine_conflict(name, why))
    return Decision(machine_patch=_add_patch(_MACHINE_SPEC, spec, options), dry_run=is_dry_run(body))


def decide_add_instance_volume(name: str, instance: Json | None, body: Json | None) -> Decision:
    """Add a volume and its disk to an instance that no machine owns."""
    options = _add_options(body)
    instance = found_instance(instance, name)
    _refuse_owned(instance)
    if not is_running(instance):
        raise instance_conflict(name, "VMI is not running")
    spec: Json = instance["spec"]
    _refuse_taken(spec, options, lambda why: instance_conflict(name, why))
    return Decision(instance_patch=_add_patch("/spec", spec, options), dry_run=is_dry_run(body))


def decide_remove_volume(name: str, machine: Json | None, body: Json | None) -> Decision:
    """Take a plugged volume out of a machine's template; a running instance follows."""
    volume = _removed_name(body)
    spec = _template_spec(found_machine(machine, name))
    patch = _remove_patch(_MACHINE_SPEC, spec, volume, lambda why: machine_conflict(name, why))
    return Decision(machine_patch=patch, dry_run=is_dry_run(body))


def decide_remove_instance_volume(name: str, instance: Json | None, body: Json | None) -> Decision:
    """Take a plugged volume out of an instance that no machine owns."""
    volume = _removed_name(body)
    instance = found_instance(instance, name)
    _refuse_owned(instance)
    if not is_running(instance):
        raise instance_conflict(name, "VMI is not running")
    patch = _remove_patch("/spec", instance["spec"], volume, lambda why: instance_conflict(name, why))
    return Decision(instance_patch=patch, dry_run=is_dry_run(body))


def decide_memory_dump(name: str, machine: Json | None, instance: Json | None) -> Decision:
    """Memory dumps are not offered yet; what upstream refuses is refused in its words."""
    found_machine(machine, name)
    instance = found_instance(instance, name)
    if not is_running(instance):
        raise machine_conflict(name, "VM is not running")
    raise bad_request(f'cannot dump the memory of "{name}": this server does not offer it yet')


def decide_remove_memory_dump(name: str, machine: Json | None, body: Json | None) -> Decision:
    """Forget the claim that holds a machine's memory dump."""
    machine = found_machine(machine, name)
    if (machine.get("status") or {}).get("memoryDumpRequest") is None:
        why = f"can't remove memory dump association for vm {name}, no association found"
        raise machine_conflict(name, why)
    patch = ({"op": "add", "path": "/status/memoryDumpRequest/remove", "value": True},)
    return Decision(status_patch=patch, dry_run=is_dry_run(body))


def _add_options(body: Json | None) -> Json:
    options: Json = copy.deepcopy(body or {})
    if not options.get("name"):
        raise bad_request("AddVolumeOptions requires name to be set")
    if options.get("disk") is None:
        raise bad_request("AddVolumeOptions requires Disk to not be nil")
    if options.get("volumeSource") is None:
        raise bad_request("AddVolumeOptions requires VolumeSource to not be nil")
    options["disk"]["name"] = options["name"]
    for kind in _SOURCES:
        if options["volumeSource"].get(kind) is not None:
            options["volumeSource"][kind]["hotpluggable"] = True
    return options


def _removed_name(body: Json | None) -> str:
    volume = str((body or {}).get("name") or "")
    if not volume:
        raise bad_request("RemoveVolumeOptions requires name to be set")
    return volume


def _template_spec(machine: Json) -> Json:
    found: Json = machine["spec"]["template"].get("spec") or {}
    return found


def _refuse_owned(instance: Json) -> None:
    metadata: Json = instance.get("metadata") or {}
    owners = metadata.get("ownerReferences") or ()
    if any(o.get("controller") and o.get("kind") == "VirtualMachine" for o in owners):
        raise bad_request(f"VMI {metadata.get('namespace')}/{metadata.get('name')} is owned by a VM")


def _claim_names(volume: Json) -> set[str]:
    claim, data_volume = volume.get("persistentVolumeClaim") or {}, volume.get("dataVolume") or {}
    return {str(n) for n in (claim.get("claimName"), data_volume.get("name")) if n}


def _refuse_taken(spec: Json, options: Json, refuse: Refusal) -> None:
    wanted = _claim_names(options["volumeSource"])
    for volume in spec.get("volumes") or ():
        if volume.get("name") == options["name"]:
            why = f"Unable to add volume [{options['name']}] because volume with that name already exists"
            raise refuse(why)
        if wanted & _claim_names(volume):
            claim = sorted(wanted & _claim_names(volume))[0]
            raise refuse(f"Unable to add volume source [{claim}] because it already exists")


def _add_patch(base: str, spec: Json, options: Json) -> Patch:
    volume = {"name": options["name"], **options["volumeSource"]}
    devices: Json = (spec.get("domain") or {}).get("devices") or {}
    return (
        *_append(f"{base}/volumes", spec.get("volumes"), volume),
        *_append(f"{base}/domain/devices/disks", devices.get("disks"), options["disk"]),
    )


def _append(path: str, entries: list[Json] | None, entry: Json) -> Patch:
    """Append, failing if the list changed meanwhile."""
    if not entries:
        return ({"op": "add", "path": path, "value": [entry]},)
    return ({"op": "test", "path": path, "value": entries}, {"op": "add", "path": f"{path}/-", "value": entry})


def _remove_patch(base: str, spec: Json, name: str, refuse: Refusal) -> Patch:
    volumes: list[Json] = spec.get("volumes") or []
    found = next((v for v in volumes if v.get("name") == name), None)
    if found is None:
        raise refuse(f"Unable to remove volume [{name}] because it does not exist")
    if not any((found.get(kind) or {}).get("hotpluggable") for kind in _SOURCES):
        raise refuse(f"Unable to remove volume [{name}] because it is not hotpluggable")
    disks: list[Json] = ((spec.get("domain") or {}).get("devices") or {}).get("disks") or []
    return (
        *_without(f"{base}/volumes", volumes, name),
        *_without(f"{base}/domain/devices/disks", disks, name, keep_cdrom=True),
    )


def _without(path: str, entries: list[Json], name: str, keep_cdrom: bool = False) -> Patch:
    """Remove one entry by name. A CD-ROM drive stays when its medium goes."""
    kept = [e for e in entries if e.get("name") != name or (keep_cdrom and e.get("cdrom") is not None)]
    if len(kept) == len(entries):
        return ()
    return ({"op": "test", "path": path, "value": entries}, {"op": "replace", "path": path, "value": kept})
