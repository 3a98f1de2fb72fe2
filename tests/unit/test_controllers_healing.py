"""Machines of a silent host: what is told, and that none starts elsewhere without certainty or from under its disks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller_world import machine, plane
from stead.controllers import fencing
from stead.controllers.fencing import Fencing
from stead.controllers.healing import Silence, decide_fate, kept_on, silence_of
from stead.kinds.hosts import OUT_OF_SERVICE_TAINT
from stead.kinds.register import NODE, VIRTUAL_MACHINE_INSTANCE

Object = dict[str, Any]
SINCE = "2026-01-01T00:00:00Z"


@given(st.booleans(), st.sampled_from(("", "its volume a lies on that host")))
def test_only_certainty_and_nothing_left_behind_start_a_machine_elsewhere(is_off: bool, kept: str) -> None:
    fate = decide_fate(Silence("h", SINCE, is_off), kept)
    assert fate.fails == (is_off and not kept)
    assert "h" in fate.message
    if not is_off:
        assert SINCE in fate.message
        assert fate.reason == ("HostUnknown" if kept else "FencingRequired")


def node(status: str, *taints: Object) -> Object:
    ready = {"type": "Ready", "status": status, "lastTransitionTime": SINCE}
    return {"metadata": {"name": "h"}, "spec": {"taints": list(taints)}, "status": {"conditions": [ready]}}


def test_a_host_that_is_heard_is_not_silent_whatever_its_taints_say() -> None:
    assert silence_of(None) is None
    assert silence_of(node("True", OUT_OF_SERVICE_TAINT)) is None
    assert silence_of(node("False")) is None  # its agent is there and says that the hypervisor is not
    assert silence_of(node("Unknown")) == Silence("h", SINCE, False)
    assert silence_of(node("Unknown", OUT_OF_SERVICE_TAINT)) == Silence("h", SINCE, True)


def on(*hosts: str) -> Object:
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(hosts)}
    return {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}


@pytest.mark.parametrize(
    ("spec", "affinity", "kept"),
    [
        ({"volumes": [{"name": "d", "dataVolume": {"name": "c"}}]}, on("h"), "volume d lies"),
        ({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]}, on("h", "i"), ""),
        ({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]}, {}, ""),
        ({"volumes": [{"name": "d", "containerDisk": {"image": "x"}}]}, on("h"), ""),
        ({"volumes": [{"name": "d", "hostDisk": {"path": "/x"}}]}, {}, "a file of that host"),
        ({"domain": {"devices": {"tpm": {"persistent": True}}}}, {}, "TPM or EFI"),
        ({"domain": {"firmware": {"bootloader": {"efi": {"persistent": True}}}}}, {}, "TPM or EFI"),
    ],
)
def test_what_of_a_machine_lies_on_its_host_alone(spec: Object, affinity: Object, kept: str) -> None:
    said = kept_on({"metadata": {}, "spec": spec}, "h", lambda _: affinity)
    assert said == "" if not kept else kept in said


async def _silence(client: Any, *taints: Object) -> None:
    found = await client.get(NODE, None, "host1")
    conditions = [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": SINCE}]
    await client.update(NODE, {**found, "spec": {"taints": list(taints)}})
    found = await client.get(NODE, None, "host1")
    await client.update(NODE, {**found, "status": {**found["status"], "conditions": conditions}}, "status")


async def test_a_machine_stays_until_its_host_is_surely_off_and_then_comes_back_elsewhere() -> None:
    from fake_agent import FakeAgent

    async with plane() as p:
        await p.client.create(register_machine()[0], register_machine()[1])
        first = await p.until(VIRTUAL_MACHINE_INSTANCE, "vm1", lambda v: v["status"].get("phase") == "Running")
        for task in p.agent._tasks:
            task.cancel()  # the host is frozen
        async with FakeAgent(p.client, "host2"):
            await _silence(p.client)
            told = await p.until(VIRTUAL_MACHINE_INSTANCE, "vm1", lambda v: ready(v).get("reason") == "FencingRequired")
            await p.settle()
            assert told["status"]["phase"] == "Running"
            now = await p.client.get(VIRTUAL_MACHINE_INSTANCE, "default", "vm1")
            assert now["metadata"]["uid"] == first["metadata"]["uid"]
            assert now["metadata"]["finalizers"]
            await _silence(p.client, OUT_OF_SERVICE_TAINT)
            again = await p.until(
                VIRTUAL_MACHINE_INSTANCE, "vm1",
                lambda v: v["status"].get("phase") == "Running" and v["status"]["nodeName"] == "host2", seconds=60,
            )  # fmt: skip
            assert again["metadata"]["uid"] != first["metadata"]["uid"]


def register_machine() -> tuple[Any, Object]:
    from stead.kinds.register import VIRTUAL_MACHINE

    return VIRTUAL_MACHINE, machine()


def ready(vmi: Object) -> Object:
    return next((c for c in vmi["status"].get("conditions", []) if c["type"] == "Ready"), {})


async def test_a_fencer_s_word_is_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "fencer"
    script.write_text(f"#!{sys.executable}\nimport sys, time\nprint('asked of', sys.argv[1:])\n"
                      "time.sleep(9 if sys.argv[1] == 'slow' else 0)\nsys.exit(sys.argv[2] != 'off')\n")  # fmt: skip
    script.chmod(0o755)

    def fencer(*command: str) -> Fencing:
        made = Fencing.__new__(Fencing)
        made._command = command
        return made

    assert await fencer(str(script), "quick")._ask("off") == (0, "asked of ['quick', 'off']")
    assert (await fencer(str(script), "quick")._ask("; true"))[0] == 1
    assert (await fencer(str(tmp_path / "absent"))._ask("off"))[0] == -1
    monkeypatch.setattr(fencing, "FENCE_SECONDS", 0.2)
    assert await fencer(str(script), "slow")._ask("off") == (-1, "no answer within 0 s")
