"""A host freezes: its machines are told of and stay, until the fencer has made sure that it is off."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from simulated_hosts import Cluster, simulated_hosts
from stead.kinds import register

pytestmark = pytest.mark.asyncio
Object = dict[str, Any]


async def test_machines_of_a_lost_host_wait_for_certainty_and_then_start_elsewhere() -> None:
    with tempfile.TemporaryDirectory(prefix="stead-fencer-") as folder:
        Path(folder).chmod(0o755)
        fencer = Path(folder) / "fencer"
        fencer.write_text(f"#!/bin/sh\ntest -e {folder}/off-$1\n")  # off is what the test says is off
        fencer.chmod(0o755)
        more: Object = {"host_grace_seconds": 12, "fencer_command": [str(fencer)]}
        async with simulated_hosts(("first", "second"), **more) as cluster:
            await cluster.first.stead("host", "cordon", "first")
            await cluster.machine("moves")
            assert await cluster.host_of("moves") == "second"
            await cluster.first.stead("host", "uncordon", "first")
            before = await _uid(cluster, "moves")
            second = cluster.hosts[1]
            second.signal(signal.SIGSTOP)
            await cluster.until_ready("second", "Unknown")
            await cluster.until(lambda: _reason(cluster, "moves", "FencingRequired"), "the machine is told of")
            _, text = await cluster.first.stead("host", "list")
            assert "Unknown for" in text
            await cluster.until(lambda: _said(cluster, "FencingFailed"), "the fencer was asked in vain")
            assert await _uid(cluster, "moves") == before  # and nothing started anywhere
            second.signal(signal.SIGKILL)
            Path(folder, "off-second").touch()
            await cluster.until(lambda: _is_elsewhere(cluster, "moves", "first"), "it runs elsewhere", 90)
            assert await _uid(cluster, "moves") != before
            _, text = await cluster.first.stead("host", "list")
            assert "ConfirmedDead" in text


async def _vmi(cluster: Cluster, name: str) -> Object:
    return await cluster.client.get(register.VIRTUAL_MACHINE_INSTANCE, "default", name)


async def _uid(cluster: Cluster, name: str) -> str:
    return str((await _vmi(cluster, name))["metadata"]["uid"])


async def _reason(cluster: Cluster, name: str, reason: str) -> bool:
    conditions = (await _vmi(cluster, name))["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c.get("reason") == reason for c in conditions)


async def _said(cluster: Cluster, reason: str) -> bool:
    return any(event.get("reason") == reason for event in (await cluster.client.list(register.EVENT)).items)


async def _is_elsewhere(cluster: Cluster, name: str, host: str) -> bool:
    status = (await _vmi(cluster, name))["status"]
    return status.get("phase") == "Running" and status.get("nodeName") == host
