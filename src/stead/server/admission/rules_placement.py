"""Rules about names, DNS, probes, scheduling and strategies of a machine's spec: what is not hardware.

Texts and field paths are KubeVirt's and Kubernetes' (notes 6.2, 21-25). `field` is the path of the spec. Pure.
"""

from __future__ import annotations

from stead.server.admission import names
from stead.server.admission.contract import Json
from stead.server.admission.findings import REQUIRED, Findings
from stead.server.admission.rules_networks import has_pod_network

_EVICTION_STRATEGIES = ("None", "LiveMigrate", "LiveMigrateIfPossible", "External")
_PROBES = ("tcpSocket", "exec", "httpGet", "guestAgentPing")
_MOST_NAMESERVERS, _MOST_SEARCHES, _LONGEST_SEARCHES = 3, 6, 256


def check_names(field: str, spec: Json, findings: Findings) -> None:
    """Hostname and subdomain."""
    for key, rule, faults in (
        ("hostname", "DNS_LABEL", names.label_faults),
        ("subdomain", "DNS_SUBDOMAIN", names.subdomain_faults),
    ):
        found = faults(str(spec[key])) if spec.get(key) else []
        if found:
            here = f"{field}.{key}"
            findings.add(here, f"{here} does not conform to the kubernetes {rule} rules : {', '.join(found)}")


def check_start_strategy(field: str, spec: Json, findings: Findings) -> None:
    """Started or paused; a liveness probe would kill what starts paused."""
    strategy = spec.get("startStrategy")
    if strategy is None:
        return
    here = f"{field}.startStrategy"
    if strategy != "Paused":
        findings.add(here, f"{here} is set with an unrecognized option: {strategy}")
    elif spec.get("livenessProbe") is not None:
        probe = f"{field}.livenessProbe"
        text = f"either {here} or {probe} should be provided.Pausing VMI with LivenessProbe is not supported"
        findings.add(here, text)


def check_eviction_strategy(field: str, spec: Json, findings: Findings) -> None:
    """What a drain does."""
    strategy = spec.get("evictionStrategy")
    if strategy is not None and strategy not in _EVICTION_STRATEGIES:
        here = f"{field}.evictionStrategy"
        findings.add(here, f"{here} is set with an unrecognized option: {strategy}")


def check_probes(field: str, spec: Json, findings: Findings) -> None:
    """Readiness and liveness probes: exactly one way of asking, over the pod network where it needs one."""
    probes = [(key, spec[key]) for key in ("readinessProbe", "livenessProbe") if spec.get(key) is not None]
    for key, probe in probes:
        here = f"{field}.{key}"
        count = sum(probe.get(kind) is not None for kind in _PROBES)
        if count > 1:
            findings.add(here, f"{here} must have exactly one probe type set")
        elif count == 0:
            ways = f"{here}.tcpSocket, {here}.exec or {here}.httpGet"
            findings.add(here, f"either {ways} must be set if a {here} is specified", REQUIRED)
    if has_pod_network(spec):
        return
    for key, probe in probes:
        for kind in ("httpGet", "tcpSocket"):
            if probe.get(kind) is not None:
                here = f"{field}.{key}.{kind}"
                findings.add(here, f"{here} is only allowed if the Pod Network is attached")


def check_dns(field: str, spec: Json, findings: Findings) -> None:
    """DNS policy and configuration. Field paths are bare words, as upstream's."""
    config = spec.get("dnsConfig")
    if spec.get("dnsPolicy") == "None":
        if config is None:
            text = "must provide `dnsConfig` when `dnsPolicy` is None"
            findings.add(f"{field}.dnsConfig", text, REQUIRED)
        elif not config.get("nameservers"):
            text = "must provide at least one DNS nameserver when `dnsPolicy` is None"
            findings.add("nameservers", text, REQUIRED)
    if config is None:
        return
    servers = [str(s) for s in config.get("nameservers") or ()]
    if len(servers) > _MOST_NAMESERVERS:
        text = f"must not have more than {_MOST_NAMESERVERS} nameservers: [{' '.join(servers)}]"
        findings.add("nameservers", text)
    for server in servers:
        if not names.is_ip(server):
            findings.add("nameservers", f"must be valid IP address: {server}")
    searches = [str(s) for s in config.get("searches") or ()]
    if len(searches) > _MOST_SEARCHES:
        findings.add("searchDomains", f"must not have more than {_MOST_SEARCHES} search paths")
    if len(" ".join(searches)) > _LONGEST_SEARCHES:
        text = f"must not have more than {_LONGEST_SEARCHES} characters (including spaces) in the search list"
        findings.add("searchDomains", text)
    for search in searches:
        for fault in names.subdomain_faults(search.removesuffix(".")):
            findings.add("searchDomains", fault)
    if any(not option.get("name") for option in config.get("options") or ()):
        findings.add("options", "Option.Name must not be empty")


def check_affinity(field: str, spec: Json, findings: Findings) -> None:
    """Node affinity, as Kubernetes validates it, with KubeVirt's paths."""
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    here = f"{field}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
    for index, term in enumerate(required.get("nodeSelectorTerms") or ()):
        _check_term(f"{here}[{index}]", term, findings)
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    for index, choice in enumerate(preferred):
        here = f"{field}.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[{index}].preference"
        _check_term(here, choice.get("preference") or {}, findings)


def _check_term(here: str, term: Json, findings: Findings) -> None:
    for index, expression in enumerate(term.get("matchExpressions") or ()):
        where = f"{here}.matchExpressions[{index}]"
        operator, values = expression.get("operator"), expression.get("values") or []
        fault = None
        if operator in ("In", "NotIn"):
            if not values:
                fault = "values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                fault = "values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
        elif operator in ("Gt", "Lt"):
            if len(values) != 1:
                fault = "values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'"
        else:
            fault = f'operator: Invalid value: "{operator}": not a valid selector operator'
        if fault:
            findings.add(f"{where}.{fault.partition(':')[0]}", f"{where}.{fault}")
