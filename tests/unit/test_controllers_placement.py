"""Placement says where and, for each host, why not; capacity, taints, affinity, pools."""

from __future__ import annotations

from typing import Any

import pytest

from fake_agent import ready_node
from stead.controllers.machine_demand import Surroundings, bridges_of, demand_from
from stead.controllers.placement import MACHINES, MIB, Demand, Use, use_of
from stead.controllers.placement_book import Book, place
from stead.controllers.placement_terms import Neighbour
from stead.kinds.hosts import OUT_OF_SERVICE_TAINT
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
    book = Book()
    book.put_host(node)
    said = book.why_not(wanted, node["metadata"]["name"])
    assert (book.place(wanted).host is None) == bool(said)
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


@pytest.mark.parametrize(
    ("reason", "wanted", "node"),
    [
        ("insufficient hugepages-2Mi: needs 4, 0 of 0 left", demand(extra={"hugepages-2Mi": 4}), host()),
        ("CPU model Skylake", demand(offers=(("m", "Skylake", "CPU model"),)), host(labels={"m/Haswell": "true"})),
        ("", demand(offers=(("m", "Skylake", "CPU model"),)), host()),  # a host that tells nothing decides itself
        ("", demand(offers=(("m", "Skylake", "CPU model"),)), host(labels={"m/Skylake": "true"})),
        ("host is confirmed dead", demand(tolerations=({"operator": "Exists"},)), host(taints=[OUT_OF_SERVICE_TAINT])),
    ],
)
def test_filters_of_what_a_host_offers(reason: str, wanted: Demand, node: Object) -> None:
    book = Book()
    book.put_host(node)
    said = book.why_not(wanted, "h")
    assert said == "" if not reason else reason in said


def test_bridges_features_devices_and_how_many_machines_fit() -> None:
    node = host()
    node["metadata"]["annotations"] = {"stead.io/capabilities": '{"features": ["tpm"]}'}
    node["status"]["allocatable"] |= {"bridge.network.kubevirt.io/br0": "1k", "nvidia.com/A100": "1", MACHINES: "2"}
    book = Book()
    book.put_host(node)
    assert book.why_not(demand(bridges=("br0",)), "h") == ""
    assert book.why_not(demand(bridges=("br0", "br1")), "h") == "host has no bridge br1"
    assert "does not offer firmware.efi" in book.why_not(demand(features=("tpm", "firmware.efi")), "h")
    gpu = demand(extra={"nvidia.com/A100": 1})
    assert book.why_not(gpu, "h") == ""
    book.put_machine("a", use_of(gpu), Neighbour("h", "default", {}))
    assert "insufficient nvidia.com/A100" in book.why_not(gpu, "h")
    book.put_machine("b", Use(), Neighbour("h", "default", {}))
    assert book.why_not(demand(), "h") == "the host is full: 2 machines of 2"
    book.drop_machine("b")
    assert book.place(demand()).host == "h"


def test_of_many_hosts_a_message_names_some_and_counts_the_rest() -> None:
    hosts = [host(f"h{at:03}", taints=[TAINT]) for at in range(100)]
    lines = place(demand(), hosts, {}).message().splitlines()
    assert len(lines) == 42
    assert lines[0] == "0/100 hosts are available"
    assert lines[-1] == "and 60 more: untolerated taint {gpu"


def test_preferred_neighbours_soft_spreading_and_soft_taints() -> None:
    book = Book()
    for name, zone in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        book.put_host(host(name, labels={"zone": zone}))
    vmi: Object = {"metadata": {"name": "m", "namespace": "default", "uid": "u", "labels": {"app": "web"}}}
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}
    book.put_machine("1", Use(), Neighbour("a1", "default", {"app": "web"}))
    likes = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "podAffinityTerm": term}]}

    def placed(**spec: Object | list[Object]) -> str | None:
        asked = {**vmi, "spec": {"domain": {}, **spec}}
        return book.place(demand_from(asked, Surroundings(), lambda _: frozenset())).host

    assert placed(affinity={"podAntiAffinity": likes}) == "b1"
    assert placed(affinity={"podAffinity": likes}) in ("a1", "a2")
    assert placed(topologySpreadConstraints=[{**term, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}]) == "b1"
    book.put_host(host("b1", labels={"zone": "b"}, taints=[{**TAINT, "effect": "PreferNoSchedule"}]))
    assert placed() == "a1"


def test_what_a_spec_demands() -> None:
    domain: Object = {
        "cpu": {"model": "Haswell", "features": [{"name": "aes"}, {"name": "x", "policy": "optional"}]},
        "machine": {"type": "q35"}, "memory": {"guest": "1Gi", "hugepages": {"pageSize": "2Mi"}},
        "firmware": {"bootloader": {"efi": {"secureBoot": False}}},
        "devices": {"tpm": {"persistent": True}, "gpus": [{"deviceName": "g"}, {"deviceName": "g"}]},
    }  # fmt: skip
    vmi: Object = {"metadata": {"name": "m", "namespace": "n"}, "spec": {"domain": domain}}
    wanted = demand_from(vmi, Surroundings(), lambda _: frozenset())
    assert wanted.extra == {"hugepages-2Mi": 1024 * MIB, "g": 2}
    assert [name for _, name, _ in wanted.offers] == ["Haswell", "aes", "q35"]
    assert wanted.features == ("firmware.efi", "tpm", "tpm_state")
    configurations = {("n", "lan"): '{"type": "bridge", "bridge": "br0"}', ("o", "p"): '{"plugins": [{"type": "x"}]}'}
    vmi["spec"]["networks"] = [{"multus": {"networkName": "lan"}}, {"multus": {"networkName": "o/p"}}, {"pod": {}}]
    assert bridges_of(vmi, lambda where, name: configurations.get((where, name), "no JSON")) == ("br0",)
