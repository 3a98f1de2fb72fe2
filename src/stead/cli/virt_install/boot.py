"""How the machine comes up: the installation method, firmware, boot order, kernels. Pure.

An installation by --location boots the tree's kernel and initrd, which the agent fetches from the URL in
`kernelBoot.container.image`; `rebootPolicy: Terminate` ends the instance when the installer reboots, and
`finished` is the same machine without the installer. An empty disk comes before CD-ROM and network in the boot order:
the firmware falls through it until something is installed there.
"""

from __future__ import annotations

import copy
import posixpath
from typing import Any

from stead.cli.virt_install import devices, systems
from stead.cli.virt_install.disks import locate
from stead.cli.virt_install.plan import Line, Object, Plan, choice
from stead.cli.virt_install.suboptions import Given, Refusal

#: the run strategy that the machine gets when its installation is over
AFTER_INSTALL = "stead.io/after-install"
_METHODS = ("--location", "--cdrom", "--import", "--pxe")
#: how installers of a family are told where their tree is
_METHOD_ARGUMENT = {"fedora": "inst.repo={}", "suse": "install={}"}


def add_boot(line: Line, plan: Plan) -> None:
    """Everything of this topic; disks and networks are in the plan already. Raises Refusal."""
    boot = line.last("--boot") or Given("--boot", {})
    install = line.last("--install") or Given("--install", {})
    method = _method(line, boot, install)
    _check_method(line, method, plan)
    order = _order(line, boot, install)
    if order:
        _set_order(order, plan)
    elif method == "--cdrom":
        _set_order(["hd", "cdrom"], plan)
    elif method == "--pxe":
        _set_order(["hd", "network"], plan)
    _add_firmware(boot, plan)
    if method == "--location":
        _add_installer(line, install, plan)
    elif line.has("--extra-args"):
        raise Refusal("--extra-args needs --location: they are arguments of its kernel")
    _add_kernel(boot, plan)
    _check_orders(plan)


def is_import(line: Line) -> bool:
    """Whether the first disk has a system that Stead did not choose."""
    install = line.last("--install")
    return line.has("--import") or bool(install and install.switch("no_install"))


def _method(line: Line, boot: Given, install: Given) -> str:
    found = [flag for flag in _METHODS if line.has(flag)]
    if install.switch("no_install") and "--import" not in found:
        found.append("--import")
    if len(found) > 1:
        raise Refusal(f"{found[0]} and {found[1]} exclude each other: one says how the system gets there")
    if found:
        return found[0]
    ready = ("kernel", "hd", "cdrom", "network")
    if line.has("--image") or any(name in boot.values for name in ready) or install.get("bootdev"):
        return "--boot"
    return ""


def _check_method(line: Line, method: str, plan: Plan) -> None:
    clones = any("sourceRef" in item["spec"] or "blank" not in item["spec"]["source"] for item in plan.templates)
    if not method and not clones and not any("cdrom" in entry for entry in plan.disks):
        raise Refusal(
            "how does the system get there? name one of --location URL, --cdrom ISO, --import, --pxe, --image NAME "
            "or --boot hd"
        )
    if method == "--import" and not plan.disks:
        raise Refusal("--import needs a --disk with a system on it")
    if method == "--location" and line.text("--serial") == "none" and not devices.has_graphics(line):
        raise Refusal("--serial none and no display leave the installer of --location without a console")


def _order(line: Line, boot: Given, install: Given) -> list[str]:
    for word in boot.words:
        raise Refusal(f"--boot {word[:60]} is not known; `stead create --boot=?` lists what is")
    order = [name for name in boot.values if name in ("hd", "cdrom", "network") and boot.switch(name)]
    device = choice(install, "bootdev", ("hd", "cdrom", "network"))
    return order or ([device] if device else [])


def _set_order(order: list[str], plan: Plan) -> None:
    entries = [*plan.disks, *plan.interfaces]
    place = max((entry.get("bootOrder", 0) for entry in entries), default=0)
    kinds: dict[str, list[Object]] = {
        "hd": [entry for entry in plan.disks if "disk" in entry and entry["name"] != "cloudinit"],
        "cdrom": [entry for entry in plan.disks if "cdrom" in entry],
        "network": plan.interfaces,
    }
    for word in order:
        for entry in kinds[word]:
            if "bootOrder" not in entry:
                place += 1
                entry["bootOrder"] = place


def _check_orders(plan: Plan) -> None:
    seen: dict[int, str] = {}
    for entry in (*plan.disks, *plan.interfaces):
        order = entry.get("bootOrder")
        if order in seen:
            raise Refusal(f"boot.order={order} is given to both {seen[order]} and {entry['name']}")
        if order:
            seen[order] = entry["name"]


def _add_firmware(boot: Given, plan: Plan) -> None:
    kind = choice(boot, "firmware", ("efi", "bios"))
    uefi = boot.switch("uefi") if "uefi" in boot.values else ({"efi": True, "bios": False}.get(kind))
    secure = boot.switch("secure-boot")
    if choice(boot, "feature0.name", ("secure-boot",)):
        secure = boot.switch("feature0.enabled")
    if secure and uefi is False:
        raise Refusal("--boot secure-boot=on needs UEFI")
    serial = boot.switch("bios.useserial")
    loader: Object = {}
    if uefi or secure:
        if serial:
            raise Refusal("--boot bios.useserial=on needs a BIOS")
        loader = {"efi": {"secureBoot": bool(secure)}}
        if secure:
            plan.domain["features"] = {**plan.domain.get("features", {}), "smm": {"enabled": True}}
    elif uefi is False or serial:
        loader = {"bios": {"useSerial": True} if serial else {}}
    if loader:
        _firmware(plan)["bootloader"] = loader


def keep_bios(plan: Plan, preference: str) -> None:
    """An imported disk boots with BIOS unless the line says UEFI, as virt-install does it (Windows: its preference)."""
    if "bootloader" in plan.domain.get("firmware", {}) or preference.startswith("windows"):
        return
    if systems.wants_efi(preference):
        _firmware(plan)["bootloader"] = {"bios": {}}
        plan.warn("the imported disk boots with BIOS, as virt-install does it; add --boot uefi if it was made for UEFI")


def _firmware(plan: Plan) -> Object:
    found: Object = plan.domain.setdefault("firmware", {})
    return found


def _add_installer(line: Line, install: Given, plan: Plan) -> None:
    tree = plan.facts.tree
    if tree is None:
        raise Refusal(f"--location {line.text('--location')[:120]}: no installer was found there")
    arguments = []
    if tree.family in _METHOD_ARGUMENT:
        arguments.append(_METHOD_ARGUMENT[tree.family].format(f"{tree.url}/"))
    extra = " ".join(part for part in (line.text("--extra-args"), install.get("kernel_args")) if part)
    if len(extra) > 2000 or "\n" in extra or "\0" in extra:
        raise Refusal("--extra-args: one line of up to 2000 characters is meant")
    if "console=" not in extra and not (line.has("--graphics") and devices.has_graphics(line)):
        arguments.append("console=ttyS0")
    if extra.strip():
        arguments.append(extra.strip())
    boot: dict[str, Any] = {
        "container": {"image": f"{tree.url}/", "kernelPath": f"/{tree.kernel}", "initrdPath": f"/{tree.initrd}"}
    }
    if arguments:
        boot["kernelArgs"] = " ".join(arguments)
    _firmware(plan)["kernelBoot"] = boot
    plan.domain["rebootPolicy"] = "Terminate"


def _add_kernel(boot: Given, plan: Plan) -> None:
    kernel, initrd, arguments = boot.get("kernel"), boot.get("initrd"), boot.get("kernel_args")
    if not kernel:
        if initrd or arguments:
            raise Refusal("--boot initrd= and kernel_args= need kernel=")
        return
    if "kernelBoot" in _firmware(plan):
        raise Refusal("--boot kernel= and --location exclude each other")
    container: Object = {}
    for key, path in (("kernelPath", kernel), ("initrdPath", initrd)):
        if not path:
            continue
        if "://" in path:
            if not path.startswith(("http://", "https://")):
                raise Refusal(f"--boot {key.removesuffix('Path')}={path[:120]}: an http URL or a file is meant")
            base, _, file = path.rpartition("/")
        else:
            pool, file = locate("--boot", path, plan)
            base = f"file://{pool.path}"
        if not file or container.setdefault("image", f"{base}/") != f"{base}/":
            raise Refusal("--boot kernel= and initrd= lie in one directory")
        container[key] = posixpath.join("/", file)
    _firmware(plan)["kernelBoot"] = {"container": container, **({"kernelArgs": arguments} if arguments else {})}


def finished(machine: Object) -> Object | None:
    """The machine without its installer, started by the strategy that was meant for it; None when none is going on."""
    strategy = (machine["metadata"].get("annotations") or {}).get(AFTER_INSTALL)
    if not strategy:
        return None
    made = copy.deepcopy(machine)
    del made["metadata"]["annotations"][AFTER_INSTALL]
    domain = made["spec"]["template"]["spec"]["domain"]
    (domain.get("firmware") or {}).pop("kernelBoot", None)
    if not domain.get("firmware"):
        domain.pop("firmware", None)
    domain.pop("rebootPolicy", None)
    made["spec"].pop("running", None)
    made["spec"]["runStrategy"] = strategy
    return made
