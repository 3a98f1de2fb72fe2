"""CPU, memory, chipset, features, clock, identity: what the machine is apart from its devices. Pure."""

from __future__ import annotations

import re
import uuid
from typing import Any

from stead.cli.virt_install import systems
from stead.cli.virt_install.plan import Line, Object, Plan, amount, choice, size_of
from stead.cli.virt_install.suboptions import Given, Refusal, whole

_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "s390x": "s390x"}
_FEATURE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MODEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}")
_POLICIES = ("force", "require", "optional", "disable", "forbid")


def add_compute(line: Line, plan: Plan) -> None:
    """Everything of this topic. Raises Refusal."""
    if line.has("--instancetype"):
        for flag in ("--memory", "--vcpus"):
            if line.has(flag):
                raise Refusal(f"{flag} and --instancetype exclude each other: an instancetype says both sizes")
        plan.instancetype = {"kind": "VirtualMachineClusterInstancetype", "name": line.text("--instancetype")}
    else:
        _add_memory(line, plan)
        _add_cpus(line, plan)
    _add_model(line, plan)
    _add_identity(line, plan)
    _add_platform(line, plan)
    features = line.last("--features")
    if features:
        _merge(plan, "features", _features(features))
    clock = line.last("--clock")
    if clock:
        plan.domain["clock"] = _clock(clock)


def _merge(plan: Plan, key: str, value: Object) -> None:
    plan.domain[key] = {**plan.domain.get(key, {}), **value}


def _add_memory(line: Line, plan: Plan) -> None:
    given = line.last("--memory")
    if given is None:
        if plan.instancetype is None and not line.has("--image"):
            raise Refusal("--memory is missing: say how much, in MiB or as 4Gi, or name an --instancetype")
        return
    size = amount("--memory", given.get("memory"), unit="Mi")
    memory: Object = {"guest": size}
    if given.get("maxmemory"):
        most = amount("--memory maxmemory", given.get("maxmemory"), unit="Mi")
        if size_of(most) < size_of(size):
            raise Refusal(f"--memory maxmemory={most} is less than the {size} at the start")
        memory["maxGuest"] = most
    backing = line.last("--memorybacking")
    if backing and backing.switch("hugepages") is not False and (backing.get("hugepages") or backing.get("size")):
        memory["hugepages"] = {"pageSize": amount("--memorybacking size", backing.get("size", "2Mi"), unit="Ki")}
    plan.domain["memory"] = memory


def _add_cpus(line: Line, plan: Plan) -> None:
    given = line.last("--vcpus")
    cpu = line.last("--cpu")
    if given is None and "memory" not in plan.domain:
        return  # an image's own instancetype says it
    parts: dict[str, int | None] = {}
    for name in ("sockets", "cores", "threads"):
        parts[name] = given.number(name, most=1024) if given else None
        if parts[name] is None and cpu:
            parts[name] = cpu.number(f"topology.{name}", most=1024)
    count = given.number("vcpus", most=1024) if given else None
    cores, threads = parts["cores"] or 1, parts["threads"] or 1
    most = given.number("maxvcpus", most=1024) if given else None
    if count is None:
        count = most if most and not parts["sockets"] else (parts["sockets"] or 1) * cores * threads
    sockets, rest = divmod(count, cores * threads)
    named = parts["sockets"]
    if rest or not sockets or (named and named != sockets and most is None):
        raise Refusal(f"--vcpus {count} does not fit {named or 'whole'} sockets of {cores} cores and {threads} threads")
    topology: Object = {"sockets": sockets, "cores": cores, "threads": threads}
    if most is not None and most != count:
        if most < count or most % (cores * threads):
            raise Refusal(f"--vcpus maxvcpus={most} does not fit {count} CPUs of {cores} cores and {threads} threads")
        topology["maxSockets"] = most // (cores * threads)
    _merge(plan, "cpu", topology)
    plan.has_open_topology = not any(parts.values())


def check_needs(plan: Plan, preference: str) -> None:
    """The sizes satisfy the preference, which the API would refuse in other words. Raises Refusal."""
    memory, cpus = systems.needs_of(preference)
    given = plan.domain.get("memory", {}).get("guest", "")
    hint = f"that {preference} needs; give more, or another --preference such as linux"
    if memory and given and size_of(given) < size_of(memory):
        raise Refusal(f"--memory {given} is less than the {memory} {hint}")
    cpu = plan.domain.get("cpu", {})
    if "sockets" in cpu and cpu["sockets"] * cpu["cores"] * cpu["threads"] < cpus:
        raise Refusal(f"--vcpus is less than the {cpus} {hint}")


def fit_topology(plan: Plan, wanted: str) -> None:
    """CPUs without a topology on the line take the one that the preference wants: sockets, as libvirt, or cores."""
    cpu = plan.domain.get("cpu", {})
    if wanted != "cores" or not plan.has_open_topology or cpu.get("maxSockets", 0) % cpu.get("sockets", 1):
        return
    most = cpu.pop("maxSockets", 0) // cpu["sockets"]
    cpu |= {"sockets": 1, "cores": cpu["sockets"], "threads": 1, **({"maxSockets": most} if most > 1 else {})}


def _add_model(line: Line, plan: Plan) -> None:
    given = line.last("--cpu")
    if given is None:
        return
    model = {"host": "host-passthrough", "host-copy": "host-model"}.get(given.get("model"), given.get("model"))
    if model in ("none", "hypervisor-default", "maximum", "qemu64", "hv"):
        model = ""
    if model and not _MODEL.fullmatch(model):
        raise Refusal(f"--cpu {model[:60]}: this is no name of a CPU model")
    if model in ("host-passthrough", "host-model"):
        model = _host_model(model, plan)
    if model:
        _merge(plan, "cpu", {"model": model})
    features = [_feature(word) for word in given.words]
    for policy in _POLICIES:
        if given.get(policy):
            features.append(_feature(given.get(policy), policy))
    if features:
        _merge(plan, "cpu", {"features": features})


def _host_model(model: str, plan: Plan) -> str:
    if plan.facts.kvm is None:
        plan.warn(f"whether the hosts have KVM is not known from here; --cpu {model} is kept")
        return model
    if plan.facts.kvm:
        return model
    plan.warn(f"--cpu {model}: no KVM on every host, so the best CPU that can be emulated is used; guests run slowly")
    return ""


def _feature(word: str, policy: str = "") -> Object:
    sign, name = (word[0], word[1:]) if word[:1] in "+-" else ("", word)
    if not _FEATURE.fullmatch(name) or (not sign and not policy):
        raise Refusal(f"--cpu {word[:60]}: a feature is written +NAME, -NAME or policy=NAME")
    return {"name": name, "policy": policy or ("require" if sign == "+" else "disable")}


def _add_identity(line: Line, plan: Plan) -> None:
    metadata = line.last("--metadata")
    title = metadata.get("title") if metadata else ""
    description = line.text("--description") or (metadata.get("description") if metadata else "")
    identity = line.text("--uuid") or (metadata.get("uuid") if metadata else "")
    if title:
        plan.annotations["stead.io/title"] = title
    if description:
        plan.annotations["stead.io/description"] = description
    if identity:
        try:
            _merge(plan, "firmware", {"uuid": str(uuid.UUID(identity))})
        except ValueError:
            raise Refusal(f"--uuid {identity[:60]}: this is no UUID") from None


def _add_platform(line: Line, plan: Plan) -> None:
    machine = line.last("--machine")
    if machine:
        kind = machine.get("type")
        if kind != "q35" and not re.fullmatch(r"pc-q35-[0-9a-z.-]{1,20}", kind):
            raise Refusal(f"--machine {kind[:60]} is not offered; q35 and pc-q35-VERSION are")
        plan.domain["machine"] = {"type": kind}
    if line.has("--arch"):
        architecture = _ARCHITECTURES.get(line.text("--arch"))
        if architecture is None:
            raise Refusal(f"--arch {line.text('--arch')[:40]} is not offered; x86_64, aarch64 and s390x are")
        plan.spec["architecture"] = architecture
    kind = line.text("--virt-type")
    if line.has("--virt-type") and kind not in ("kvm", "qemu"):
        raise Refusal(f"--virt-type {kind[:40]} is not offered; kvm and qemu are")
    if kind == "kvm" and plan.facts.kvm is False:
        plan.warn("--virt-type kvm: not every host has KVM, so the machine may be emulated and slow")
    if kind == "qemu" and plan.facts.kvm:
        raise Refusal("--virt-type qemu is refused: the hosts have KVM, and Stead always uses it; leave the option out")
    threads = line.last("--iothreads")
    if threads:
        count = whole("--iothreads", threads.get("iothreads"), most=64)
        plan.domain["ioThreadsPolicy"] = "supplementalPool"
        plan.domain["ioThreads"] = {"supplementalPoolThreadCount": count}


def _features(given: Given) -> Object:
    found: Object = {}
    hyperv: Object = {}
    for name in given.values:
        path = name.split(".")
        if name == "hyperv.spinlocks.retries":
            spinlocks = hyperv.setdefault("spinlocks", {"enabled": True})
            spinlocks["spinlocks"] = given.number(name, least=4096, most=2**32 - 1)
        elif path[0] == "hyperv":
            hyperv.setdefault(path[1], {})["enabled"] = given.switch(name)
        elif path[0] == "kvm":
            found["kvm"] = {"hidden": given.switch(name)}
        else:
            found[path[0]] = {"enabled": given.switch(name)}
    return {**found, "hyperv": hyperv} if hyperv else found


def _clock(given: Given) -> Object:
    offset = given.get("offset")
    if offset == "localtime":
        raise Refusal("--clock offset=localtime is not offered; name the zone: --clock offset=timezone,timezone=ZONE")
    choice(given, "offset", ("utc", "timezone"))
    clock: dict[str, Any] = {}
    zone = given.get("timezone")
    if zone:
        if not _ZONE.fullmatch(zone):
            raise Refusal(f"--clock timezone={zone[:60]}: this is no time zone")
        clock["timezone"] = zone
    elif offset == "timezone":
        raise Refusal("--clock offset=timezone needs timezone=ZONE")
    else:
        clock["utc"] = {}
    timer: Object = {}
    for name, key in (("hpet", "hpet"), ("rtc", "rtc"), ("pit", "pit"), ("kvmclock", "kvm"), ("hypervclock", "hyperv")):
        present = given.switch(f"{name}_present") if f"{name}_present" in given.values else None
        if present is not None:
            timer.setdefault(key, {})["present"] = present
    pit = choice(given, "pit_tickpolicy", ("delay", "catchup", "discard"))
    rtc = choice(given, "rtc_tickpolicy", ("delay", "catchup"))
    if pit:
        timer.setdefault("pit", {})["tickPolicy"] = pit
    if rtc:
        timer.setdefault("rtc", {})["tickPolicy"] = rtc
    if timer:
        clock["timer"] = timer
    return clock
