"""From the line to the manifests. Pure: the same line and facts give the same manifests, byte for byte.

Called by `cli.create`. The VirtualMachine runs by RerunOnFailure, or Always with --autostart; during an installation it
runs Once, and its annotation `stead.io/after-install` says what it becomes.
"""

from __future__ import annotations

import re

import msgspec

from stead.cli.virt_install import boot, cloudinit, compute, devices, disks, networks, systems
from stead.cli.virt_install.options import BY_FLAG, REFUSED
from stead.cli.virt_install.plan import Facts, Line, Object, Plan
from stead.cli.virt_install.suboptions import MAX_TEXT, Refusal, read

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,57}[a-z0-9])?")


class Manifests(msgspec.Struct, frozen=True):
    """What is made: `shared` unless there already, `secrets` for the machine, the machine itself."""

    machine: Object
    shared: tuple[Object, ...] = ()
    secrets: tuple[Object, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> list[Object]:
        """Every object, in the order of creation."""
        return [*self.shared, *self.secrets, self.machine]

    @property
    def installs(self) -> bool:
        """Whether an installer boots first and `stead create` finishes the job."""
        return boot.AFTER_INSTALL in self.machine["metadata"].get("annotations", {})


def check_name(name: str) -> str:
    """The machine's name, which is also its label and host name. Raises Refusal that offers one that fits."""
    if _NAME.fullmatch(name):
        return name
    better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:59].strip("-")
    hint = f"; {better} would do" if better else ""
    raise Refusal(f"--name {name[:80]!r}: small letters, digits and `-`, at most 59 characters{hint}")


def build(line: Line, facts: Facts) -> Manifests:
    """The manifests that a line means. Raises Refusal."""
    _check_flags(line)
    if not line.has("--name"):
        raise Refusal("--name is missing: how is the machine to be called?")
    plan = Plan(check_name(line.text("--name")), facts)
    disks.add_disks(line, plan)
    networks.add_networks(line, plan)
    compute.add_compute(line, plan)
    devices.add_devices(line, plan)
    boot.add_boot(line, plan)
    _add_system(line, plan)
    cloudinit.add_cloud_init(line, plan)
    return Manifests(
        machine=_machine(line, plan),
        shared=tuple(plan.shared),
        secrets=tuple(plan.secrets),
        warnings=tuple(plan.warnings),
        notes=tuple(plan.notes),
    )


def _check_flags(line: Line) -> None:
    for flag, texts in line.texts.items():
        if flag in REFUSED:
            raise Refusal(f"{flag} is refused: {REFUSED[flag]}")
        if flag not in BY_FLAG:
            raise Refusal(f"{flag} is not an option of virt-install that Stead knows")
        for text in texts:
            if len(text) > MAX_TEXT or "\0" in text:
                raise Refusal(f"{flag}: the value is too long or holds a NUL character")
    connect = line.text("--connect")
    if connect and connect not in ("qemu:///system", "qemu"):
        raise Refusal(f"--connect {connect[:80]} is refused: --kubeconfig, before `create`, says which API is meant")
    for text in line.texts.get("--check", ()):
        _check_checks(text)


def _check_checks(text: str) -> None:
    given = read(BY_FLAG["--check"], text)
    for name in given.values:
        given.switch(name)


def _add_system(line: Line, plan: Plan) -> None:
    if line.has("--preference"):
        plan.preference = {"kind": "VirtualMachineClusterPreference", "name": line.text("--preference")}
    elif line.has("--image") and not line.has("--osinfo"):
        plan.preference = {"inferFromVolume": "rootdisk", "inferFromVolumeFailurePolicy": "Ignore"}
    else:
        detected = plan.facts.tree.system if plan.facts.tree else ""
        name, warning = systems.chosen(line.last("--osinfo"), detected)
        plan.warn(warning)
        plan.preference = {"kind": "VirtualMachineClusterPreference", "name": name}
        if boot.is_import(line):
            boot.keep_bios(plan, name)
    compute.check_needs(plan, plan.preference.get("name", ""))
    compute.fit_topology(plan, systems.topology_of(plan.preference.get("name", "")))
    if line.has("--image") and "memory" not in plan.domain and plan.instancetype is None:
        plan.instancetype = {"inferFromVolume": "rootdisk"}
    for field, matcher in (("--preference", plan.preference), ("--instancetype", plan.instancetype)):
        name = str((matcher or {}).get("name", "x"))
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", name):
            raise Refusal(f"{field} {name[:60]!r}: this is no name of an object")


def _strategy(line: Line) -> str:
    if line.has("--autostart"):
        return "Halted" if line.no_start else "Always"
    return "Manual" if line.no_start else "RerunOnFailure"


def _machine(line: Line, plan: Plan) -> Object:
    meta = plan.meta(plan.name)
    spec: Object = {"runStrategy": _strategy(line)}
    if line.has("--noreboot") and line.has("--cdrom"):
        plan.domain["rebootPolicy"] = "Terminate"
    if plan.domain.get("rebootPolicy") == "Terminate":
        after = "Always" if line.has("--autostart") else "RerunOnFailure"
        plan.annotations[boot.AFTER_INSTALL] = "Manual" if line.has("--noreboot") else after
        spec["runStrategy"] = "Manual" if line.no_start else "Once"
    if plan.annotations:
        meta["annotations"] = dict(sorted(plan.annotations.items()))
    if plan.instancetype:
        spec["instancetype"] = plan.instancetype
    if plan.preference:
        spec["preference"] = plan.preference
    if plan.templates:
        spec["dataVolumeTemplates"] = plan.templates
    devices_made: Object = dict(plan.devices)
    if plan.disks:
        devices_made["disks"] = plan.disks
    if plan.interfaces:
        devices_made["interfaces"] = plan.interfaces
    instance: Object = {**plan.spec, "domain": {**plan.domain, "devices": devices_made}}
    if plan.networks:
        instance["networks"] = plan.networks
    if plan.volumes:
        instance["volumes"] = plan.volumes
    spec["template"] = {"spec": instance}
    return {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": meta, "spec": spec}


def console_of(line: Line) -> str:
    """What is connected after creation: `text`, `graphical` or `none`. Raises Refusal."""
    if line.has("--noautoconsole"):
        return "none"
    kind = line.text("--autoconsole")
    if kind in ("none", "text"):
        return kind
    if kind == "graphical":
        return "graphical"
    if kind and kind != "default":
        raise Refusal(f"--autoconsole {kind[:40]} is not offered; text, graphical and none are")
    return "text"


def wait_minutes(line: Line) -> int | None:
    """--wait: None = not given, -1 = without limit, else minutes. Raises Refusal."""
    if not line.has("--wait"):
        return None
    text = line.text("--wait").strip()
    if text in ("", "-1") or text.startswith("-"):
        return -1
    if not (text.isascii() and text.isdigit()) or int(text[:9]) > 100_000 or len(text) > 9:
        raise Refusal(f"--wait {text[:40]}: minutes are meant, or -1 for no limit")
    return int(text)
