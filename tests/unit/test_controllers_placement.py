"""Placement says where and, for each host, why not; capacity, taints, affinity, pools."""

from __future__ import annotations

from typing import Any

import pytest

from fake_agent import ready_node
from stead.controllers.placement import MIB, Demand, Use, place, why_not
from stead.kinds.machine_needs import machine_cpu_milli, machine_memory

Object = dict[str, Any]


def demand(**rest: Any) -> Demand:
    return Demand(**{"cpu_milli": 100, "memory": 256 * MIB, **rest})


def host(name: str = "h", *, taints: list[Object] | None = None, **rest: Any) -> Object:
    node = ready_node(name, **rest)
    if taints:
        node["spec"] = {"taints": taints}
    return node


def in_zone(operator: str, *values: str) -> Object:
    expression: Object = {"key": "zone", "operator": operator, "values": list(values)}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("reason", "wanted", "node"),
    [
        ("", demand(), host()),
        ("insufficient memory", demand(memory=17 * 1024 * MIB), host()),
        ("insufficient cpu", demand(cpu_milli=4001), host()),
        ("nodeSelector", demand(node_selector={"a": "b"}), host()),
        ("", demand(node_selector={"a": "b"}), host(labels={"a": "b"})),
        ("schedulable", demand(), host(labels={"kubevirt.io/schedulable": "false"})),
        ("untolerated taint", demand(), host(taints=[TAINT])),
        ("", demand(tolerations=({"key": "gpu", "operator": "Exists"},)), host(taints=[TAINT])),
        ("", demand(tolerations=({"key": "gpu", "value": "yes", "effect": "NoSchedule"},)), host(taints=[TAINT])),
        ("untolerated", demand(tolerations=({"key": "gpu", "value": "no"},)), host(taints=[TAINT])),
        ("", demand(), host(taints=[{**TAINT, "effect": "PreferNoSchedule"}])),
        ("node affinity", demand(affinity=in_zone("In", "x")), host()),
        ("", demand(affinity=in_zone("In", "x", "y")), host(labels={"zone": "y"})),
        ("", demand(affinity=in_zone("NotIn", "x")), host()),
        ("node affinity", demand(affinity=in_zone("Exists")), host()),
        ("", demand(affinity=in_zone("Gt", "3")), host(labels={"zone": "4"})),
        ("has no pool", demand(pools=("fast",)), host()),
        ("", demand(pools=("fast",)), host(labels={"pool.stead.io/fast": "u"})),
        ("being made on other", demand(pinned_hosts=("other",)), host()),
        (
            "another host",
            demand(
                volume_affinities=(
                    {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["z"]}]}
                        ]
                    },
                )
            ),
            host(),
        ),
    ],
)
def test_filters(reason: str, wanted: Demand, node: Object) -> None:
    said = why_not(wanted, node, Use())
    assert (said == "") if not reason else (reason in said)


def test_a_silent_host_gets_nothing() -> None:
    node = host()
    node["status"]["conditions"][0]["status"] = "Unknown"
    assert place(demand(), [node], {}).message() == "0/1 hosts are available\nh: host is not ready"
    assert place(demand(), [], {}).message() == "no host is registered"


def test_the_emptier_host_wins_and_preference_beats_it() -> None:
    hosts = [host("a"), host("b", labels={"ssd": "yes"})]
    assert place(demand(), hosts, {"a": Use(0, 2048 * MIB)}).host == "b"
    assert place(demand(), hosts, {"b": Use(0, 2048 * MIB)}).host == "a"
    likes = [{"weight": 10, "preference": {"matchExpressions": [{"key": "ssd", "operator": "Exists"}]}}]
    wish = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": likes}}
    assert place(demand(affinity=wish), hosts, {"b": Use(0, 2048 * MIB)}).host == "b"
    assert place(demand(), hosts, {}).host == "a"


def test_what_a_machine_needs() -> None:
    domain: Object = {"cpu": {"sockets": 2, "cores": 2}, "memory": {"guest": "1Gi"}, "devices": {}}
    vmi = {"spec": {"domain": domain}}
    assert machine_cpu_milli(vmi) == 400
    assert machine_memory(vmi) == 1024 * MIB + (60 + 32 + 32 + 2) * MIB
    domain["cpu"]["dedicatedCpuPlacement"] = True
    assert machine_cpu_milli(vmi) == 4000
    domain["memory"]["hugepages"] = {"pageSize": "2Mi"}
    assert machine_memory(vmi) < 1024 * MIB
