"""Three hosts as real processes: they join, get machines, are cordoned, drained, removed, and come back."""

from __future__ import annotations

import json

import pytest

from simulated_hosts import Cluster, simulated_hosts
from stead.kinds import register
from stead.kube.errors import ApiError

pytestmark = pytest.mark.asyncio


async def test_hosts_join_work_and_leave() -> None:
    async with simulated_hosts(("first", "second", "third")) as cluster:
        await _they_are_listed(cluster)
        await _machines_go_where_they_are_told(cluster)
        await _a_drained_host_is_empty(cluster)
        await _a_joined_host_tells_of_itself(cluster)
        await _a_removed_host_is_out(cluster)


async def _they_are_listed(cluster: Cluster) -> None:
    _, text = await cluster.first.stead("host", "list")
    lines = text.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["first", "Ready"], ["second", "Ready"], ["third", "Ready"]]
    _, text = await cluster.first.stead("host", "list", "-o", "name")
    assert text.split() == ["node/first", "node/second", "node/third"]
    _, text = await cluster.first.stead("host", "info", "second", "-o", "json")
    assert json.loads(text)["kind"] == "Node"
    code, text = await cluster.first.stead("host", "info", "nobody", check=False)
    assert (code, "there are: first, second, third" in text) == (1, True)
    _, text = await cluster.first.stead("token", "list")
    assert text == "No tokens.\n"  # each was good once


async def _machines_go_where_they_are_told(cluster: Cluster) -> None:
    await cluster.machine("pinned", nodeSelector={"kubernetes.io/hostname": "second"})
    assert await cluster.host_of("pinned") == "second"
    await cluster.first.stead("host", "cordon", "first")
    await cluster.first.stead("host", "cordon", "third")
    await cluster.machine("only")
    assert await cluster.host_of("only") == "second"
    for name in ("first", "third"):
        await cluster.first.stead("host", "uncordon", name)


async def _a_drained_host_is_empty(cluster: Cluster) -> None:
    await cluster.machine("stays", evictionStrategy="External", nodeSelector={"kubernetes.io/hostname": "second"})
    assert await cluster.host_of("stays") == "second"
    code, text = await cluster.first.stead("host", "drain", "second", "--timeout", "30", check=False)
    assert (code, "default/stays: stays: eviction strategy External" in text) == (1, True), text
    await cluster.client.delete(register.VIRTUAL_MACHINE, "default", "stays")
    _, text = await cluster.first.stead("host", "maintenance", "second", "--timeout", "30")
    assert "host second is empty" in text
    assert await cluster.host_of("only") in ("first", "third")
    pinned = await cluster.client.get(register.VIRTUAL_MACHINE_INSTANCE, "default", "pinned")
    assert not pinned["status"].get("nodeName")  # it may run on that host only, and waits
    _, text = await cluster.first.stead("host", "list")
    assert "Ready,Maintenance" in text
    await cluster.first.stead("host", "maintenance", "second", "--off")
    assert await cluster.host_of("pinned") == "second"


async def _a_joined_host_tells_of_itself(cluster: Cluster) -> None:
    second = cluster.hosts[1]
    _, text = await second.stead("status", "--wait", "30")
    assert "Hosts:     second Ready" in text
    assert "1 Running" in text
    code, text = await second.stead("uninstall", check=False)
    assert (code, "stead host drain second" in text) == (1, True), text
    code, text = await second.stead("join", "https://127.0.0.1:1", "--token", "x.y.z", check=False)
    assert (code, "belongs to" in text) == (1, True), text
    code, text = await cluster.first.stead("join", "https://127.0.0.1:1", "--token", "x.y.z", check=False)
    assert (code, "has a plane of its own" in text) == (1, True), text


async def _a_removed_host_is_out(cluster: Cluster) -> None:
    third = cluster.hosts[2]
    await cluster.first.stead("host", "maintenance", "third", "--timeout", "30")
    await cluster.first.stead("host", "remove", "third")
    code, text = await third.stead("status", check=False)
    assert (code, "`stead join` lets it in again" in text) == (1, True), text
    with pytest.raises(ApiError, match="not found"):
        await cluster.client.get(register.NODE, None, "third")
    _, line = await cluster.first.stead("token", "create", "-o", "name")
    url = third.settings.api_url
    await third.stead("join", url, "--token", line.strip(), "--no-start")
    await cluster.until_ready("third")  # the agent that never ended takes its new certificate up
