"""NUMA nodes and bridges from a sysfs of files; the labels by which KubeVirt's clients know a host's processors."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent_stand_ins import CAPABILITIES
from fake_client import FakeClient
from stead.agent import topology
from stead.agent.host import Facts, HostReporter, capacity_from, labels_from
from stead.agent.workshop import AgentSettings
from stead.kinds.register import NODE


def test_lists_of_processors() -> None:
    assert topology.cpus_from("0-3,8,10-11\n") == (0, 1, 2, 3, 8, 10, 11)
    assert topology.cpus_from("\n") == ()
    with pytest.raises(ValueError, match="invalid literal"):
        topology.cpus_from("a-b")


def test_numa_nodes_and_bridges_of_a_host(tmp_path: Path) -> None:
    for number, cpus in ((0, "0-1"), (1, "2-3"), (2, "nonsense")):
        folder = tmp_path / f"node{number}"
        pages = folder / "hugepages" / "hugepages-2048kB"
        pages.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus)
        (folder / "meminfo").write_text(f"Node {number} MemTotal:  1024 kB\nNode {number} MemFree: 1 kB\n")
        (pages / "nr_hugepages").write_text("7" if number else "0")
    nodes = topology.numa_nodes(tmp_path)
    assert [(node.id, node.cpus, node.memory) for node in nodes] == [(0, (0, 1), 1048576), (1, (2, 3), 1048576)]
    assert [node.hugepages for node in nodes] == [{}, {2097152: 7}]
    assert topology.numa_nodes(tmp_path / "absent") == ()
    for name in ("br0", "br1"):
        (tmp_path / "net" / name / "bridge").mkdir(parents=True)
    (tmp_path / "net" / "eth0").mkdir()
    assert topology.bridges(tmp_path / "net") == ("br0", "br1")
    assert topology.bridges(tmp_path / "absent") == ()


def test_a_node_tells_models_features_hypervisor_and_bridges(tmp_path: Path) -> None:
    told = msgspec.structs.replace(
        CAPABILITIES,
        cpu_features=("aes", "not a label!"),
        host_model_features=("hypervisor",),
        hyperv_features=("vapic",),
    )
    settings = AgentSettings(instance="x", host_name="h", machines_dir=tmp_path, run_dir=tmp_path, state_dir=tmp_path)
    labels = labels_from(settings, Facts(cpus=1, memory=1), told)
    for label in (
        "cpu-model.node.kubevirt.io/Nehalem", "cpu-model-migration.node.kubevirt.io/qemu64",
        "cpu-feature.node.kubevirt.io/aes", "host-model-cpu.node.kubevirt.io/qemu64",
        "host-model-required-features.node.kubevirt.io/hypervisor", "hyperv.node.kubevirt.io/vapic",
        "cpu-vendor.node.kubevirt.io/AMD", f"hypervisor.stead.io/{told.driver}",
    ):  # fmt: skip
        assert labels[label] == "true", label
    assert not any("not a label" in label for label in labels)
    capacity = capacity_from(Facts(cpus=1, memory=1, bridges=("br0",)), told)
    assert capacity["bridge.network.kubevirt.io/br0"] == "1000"


async def test_a_host_that_was_taken_for_silent_says_at_once_that_it_is_ready(tmp_path: Path) -> None:
    client = FakeClient()
    settings = AgentSettings(instance="x", host_name="h", machines_dir=tmp_path, run_dir=tmp_path, state_dir=tmp_path)
    reporter = HostReporter(client, settings)
    reporter.capabilities = CAPABILITIES
    await reporter.report()
    node = await client.get(NODE, None, "h")
    silent = [{**c, "status": "Unknown"} if c["type"] == "Ready" else c for c in node["status"]["conditions"]]
    await client.update(NODE, {**node, "status": {**node["status"], "conditions": silent}}, "status")
    await reporter.report()
    conditions = (await client.get(NODE, None, "h"))["status"]["conditions"]
    assert {c["type"]: c["status"] for c in conditions}["Ready"] == "True"
