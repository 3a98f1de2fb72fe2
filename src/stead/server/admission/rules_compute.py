"""Rules about CPU, memory, huge pages, NUMA and real time of a machine's spec.

Texts are KubeVirt's, spelling included (notes 6.2, recordings `reject-vmi-core`). `field` is the path of the spec. Text
that is no quantity is the schema step's to refuse; here it counts as unset. Pure.
"""

from __future__ import annotations

from fractions import Fraction

from stead.kube import quantity
from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json
from stead.server.admission.findings import NOT_SUPPORTED, REQUIRED, Findings

_LEAST_MEMORY = 1_000_000
_POLICIES = ("force", "require", "optional", "disable", "forbid", "")
_ZERO = quantity.Quantity(0)


def _amount(holder: Json | None, key: str) -> quantity.Quantity:
    """A quantity of a mapping; 0 if absent or not a quantity."""
    text = (holder or {}).get(key)
    return quantity.parse(text) if quantity.is_quantity(text) else _ZERO


def check_memory(field: str, spec: Json, cluster: Cluster, findings: Findings) -> None:
    """Requests, limits, huge pages and, when changes wait for a restart, guest memory against the limit."""
    domain: Json = spec["domain"]
    resources: Json = domain.get("resources") or {}
    asked, most = _amount(resources.get("requests"), "memory"), _amount(resources.get("limits"), "memory")
    request_field = f"{field}.domain.resources.requests.memory"
    limit_field = f"{field}.domain.resources.limits.memory"
    if asked < _ZERO:
        findings.add(request_field, f"{request_field} '{asked}': must be greater than or equal to 0.")
    elif asked and int(asked) < _LEAST_MEMORY:
        findings.add(request_field, f"{request_field} '{asked}': must be greater than or equal to 1M.")
    if most < _ZERO:
        findings.add(limit_field, f"{limit_field} '{most}': must be greater than or equal to 0.")
    if most and asked > most:
        findings.add(request_field, f"{request_field} '{asked}' is greater than {limit_field} '{most}'")
    memory: Json = domain.get("memory") or {}
    _check_huge_pages(field, memory, asked, findings)
    guest = _amount(memory, "guest")
    if not cluster.live_update and most and guest > most:
        here = f"{field}.domain.memory.guest"
        text = f"{here} '{guest}' must be equal to or less than the memory limit {limit_field} '{most}'"
        findings.add(here, text)


def _check_huge_pages(field: str, memory: Json, asked: quantity.Quantity, findings: Findings) -> None:
    pages = memory.get("hugepages")
    if pages is None:
        return
    here, page_field = f"{field}.domain.resources.requests.memory", f"{field}.domain.memory.hugepages.pageSize"
    text = str(pages.get("pageSize") or "")
    try:
        page = quantity.parse(text)
    except ValueError as error:
        findings.add(page_field, f"{page_field} '{text}': {error}")
        return
    size = _amount(memory, "guest") if memory.get("guest") is not None else asked
    # The request is named even when guest memory is what is wrong: upstream's text (note 24).
    if size < page:
        findings.add(here, f"{here} '{asked}' must be equal to or larger than page size {page_field} '{text}'")
    elif page and size.value % page.value:
        findings.add(here, f"{here} '{asked}' is not a multiple of the page size {page_field} '{text}'")


def check_cpu(field: str, spec: Json, findings: Findings) -> None:
    """Requests and limits, pinning, NUMA, emulator thread, features, sockets and real time."""
    domain: Json = spec["domain"]
    cpu: Json = domain.get("cpu") or {}
    resources: Json = domain.get("resources") or {}
    asked, most = _amount(resources.get("requests"), "cpu"), _amount(resources.get("limits"), "cpu")
    request_field = f"{field}.domain.resources.requests.cpu"
    limit_field = f"{field}.domain.resources.limits.cpu"
    for here, amount in ((request_field, asked), (limit_field, most)):
        if amount < _ZERO:
            findings.add(here, f"{here} '{amount}': must be greater than or equal to 0.")
    if most > _ZERO and asked > most:
        findings.add(request_field, f"{request_field} '{asked}' is greater than {limit_field} '{most}'")
    if cpu.get("dedicatedCpuPlacement"):
        _check_pinning(field, cpu, resources, findings)
    _check_numa(field, domain, cpu, findings)
    if cpu.get("isolateEmulatorThread") and not cpu.get("dedicatedCpuPlacement"):
        text = "IsolateEmulatorThread should be only set in combination with DedicatedCPUPlacement"
        findings.add(f"{field}.domain.cpu.isolateEmulatorThread", text)
    for index, feature in enumerate(cpu.get("features") or ()):
        policy = feature.get("policy") or ""
        if policy not in _POLICIES:
            text = f"CPU feature {feature.get('name', '')} uses policy {policy} that is not supported."
            findings.add(f"{field}.domain.cpu.features[{index}].policy", text, NOT_SUPPORTED)
    check_sockets(field, cpu, findings)
    _check_realtime(field, cpu, findings)


def check_sockets(field: str, cpu: Json, findings: Findings) -> None:
    """Sockets within `maxSockets`. A machine's template is asked twice, as upstream does."""
    if cpu.get("maxSockets") and (cpu.get("sockets") or 0) > cpu["maxSockets"]:
        text = "Number of sockets in CPU topology is greater than the maximum sockets allowed"
        findings.add(f"{field}.domain.cpu.sockets", text)


def _check_pinning(field: str, cpu: Json, resources: Json, findings: Findings) -> None:
    base = f"{field}.domain.resources"
    pairs = {
        name: (_amount(resources.get("requests"), name), _amount(resources.get("limits"), name))
        for name in ("memory", "cpu")
    }
    for name, (asked, most) in pairs.items():
        request_field, limit_field = f"{base}.requests.{name}", f"{base}.limits.{name}"
        if name == "cpu":
            for here, what, amount in ((request_field, "requests", asked), (limit_field, "limits", most)):
                if amount.value != Fraction(int(amount)):
                    findings.add(here, f"provided resources CPU {what} must be an interger")
        if asked and most and asked != most:
            text = f"{request_field} or {limit_field} must be equal when DedicatedCPUPlacement is true"
            findings.add(request_field, text)
    asked, most = pairs["cpu"]
    vcpus = 1
    for key in ("sockets", "cores", "threads"):
        vcpus *= int(cpu.get(key) or 1)
    amount = most or asked
    if amount and int(amount) != vcpus:
        where = f"{base}.limits.cpu" if most else f"{base}.requests.cpu"
        text = (
            f"{where} must not be provided at the same time with {field}.domain.cpu when DedicatedCPUPlacement is true"
        )
        findings.add(where, text)
    threads = int(cpu.get("threads") or 0)
    if threads > 2:
        here = f"{field}.domain.cpu.threads"
        text = f"Not more than two threads must be provided at {here} (got {threads})"
        findings.add(here, f"{text} when DedicatedCPUPlacement is true")


def _check_numa(field: str, domain: Json, cpu: Json, findings: Findings) -> None:
    if (cpu.get("numa") or {}).get("guestMappingPassthrough") is None:
        return
    here = f"{field}.domain.cpu.numa.guestMappingPassthrough"
    if not cpu.get("dedicatedCpuPlacement"):
        need = f"{field}.domain.cpu.dedicatedCpuPlacement must be set to true"
        findings.add(here, f"{need} when NUMA topology strategy is set in {here}")
    if (domain.get("memory") or {}).get("hugepages") is None:
        need = f"{field}.domain.memory.hugepages must be requested"
        findings.add(here, f"{need} when NUMA topology strategy is set in {here}")


def _check_realtime(field: str, cpu: Json, findings: Findings) -> None:
    if cpu.get("realtime") is None:
        return
    here = f"{field}.domain.cpu"
    if not cpu.get("dedicatedCpuPlacement"):
        where = f"{here}.dedicatedCpuPlacement"
        findings.add(where, f"{where} must be set to true when {here}.realtime is used", REQUIRED)
    if (cpu.get("numa") or {}).get("guestMappingPassthrough") is None:
        where = f"{here}.numa.guestMappingPassthrough"
        findings.add(where, f"{where} must be defined when {here}.realtime is used", REQUIRED)
