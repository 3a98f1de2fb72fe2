"""Status: phases, conditions and lists as clients of KubeVirt read them, and silence when nothing changed."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.agent_stand_ins import CAPABILITIES

from stead.agent.guestinfo import GuestInfo, filesystems_from, interfaces_from, os_from, users_from
from stead.agent.prepared import Address, Prepared, PreparedVolume
from stead.agent.status import Ending, Problem, View, patch_from, status_from
from stead.hypervisor.contract import Observed, State, StopReason

UID = "11111111-2222-3333-4444-555555555555"
RUNNING = Observed(uid=UID, namespace="ns", name="web", state=State.RUNNING, machine_type="pc-q35-8.2", fingerprint="f")
PREPARED = Prepared(
    uid=1, gid=1, directory="/d", run_dir="/r", memory_overhead=1024**2,
    volumes=(PreparedVolume(name="root", kind="containerDisk", path="/d/x", digest="sha256:00000010ff"),),
    addresses=(Address(network="default", interface="eth0", mac="02:aa:bb:cc:dd:ee", ipv4="10.128.0.5"),),
)  # fmt: skip


def scheduled(**status: Any) -> dict[str, Any]:
    stamps = [{"phase": p, "phaseTransitionTimestamp": "t0"} for p in ("Pending", "Scheduling", "Scheduled")]
    body = {"phase": "Scheduled", "phaseTransitionTimestamps": stamps, "virtualMachineRevisionName": "rev-1"}
    spec = {"domain": {"memory": {"guest": "64Mi"}, "devices": {"disks": [{"name": "root", "disk": {}}]}}}
    metadata = {"name": "web", "namespace": "ns", "uid": UID, "resourceVersion": "7"}
    return {"metadata": metadata, "spec": spec, "status": body | status}


def view(**changes: Any) -> View:
    base = View(vmi=scheduled(), now="t1", host="h1", capabilities=CAPABILITIES, observed=RUNNING, prepared=PREPARED)
    return msgspec.structs.replace(base, **changes)


def condition(status: dict[str, Any], kind: str) -> dict[str, Any] | None:
    return next((c for c in status["conditions"] if c["type"] == kind), None)


def test_a_running_guest_is_running_ready_and_addressed() -> None:
    status = status_from(view())
    assert status["phase"] == "Running"
    assert [s["phase"] for s in status["phaseTransitionTimestamps"]] == [
        "Pending",
        "Scheduling",
        "Scheduled",
        "Running",
    ]
    assert condition(status, "Ready")["status"] == "True"
    assert condition(status, "Synchronized")["status"] == "True"
    assert condition(status, "SoftwareEmulation")["status"] == "True"
    assert condition(status, "LiveMigratable")["status"] == "False"
    assert condition(status, "AgentConnected") is None
    assert status["interfaces"][0] == {
        "name": "default", "mac": "02:aa:bb:cc:dd:ee", "infoSource": "domain", "queueCount": 1, "linkState": "up",
        "podInterfaceName": "eth0", "ipAddress": "10.128.0.5", "ipAddresses": ["10.128.0.5"],
    }  # fmt: skip
    assert status["volumeStatus"] == [{"name": "root", "target": "vda", "containerDiskVolume": {"checksum": 16}}]
    assert status["memory"]["guestCurrent"] == "64Mi"
    assert status["machine"] == {"type": "pc-q35-8.2"}
    assert status["activePods"] == {UID: "h1"}
    assert status["virtualMachineRevisionName"] == "rev-1"  # somebody else's field


def test_nothing_changed_nothing_written_and_times_stay() -> None:
    first = status_from(view())
    again = view(vmi=scheduled() | {"status": first}, now="t9")
    assert status_from(again) == first
    assert patch_from(again.vmi, status_from(again)) is None


def test_the_patch_is_refused_by_a_newer_object() -> None:
    patch = patch_from(scheduled(), status_from(view()))
    assert patch is not None
    assert patch[0] == {"op": "test", "path": "/metadata/resourceVersion", "value": "7"}


def test_pauses_tell_who_paused() -> None:
    user = msgspec.structs.replace(RUNNING, state=State.PAUSED, reason=StopReason.USER)
    paused = status_from(view(observed=user))
    assert condition(paused, "Paused")["reason"] == "PausedByUser"
    ready = condition(paused, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ReadinessGatesNotReady"), "as KubeVirt: no traffic for it"
    full = msgspec.structs.replace(RUNNING, state=State.PAUSED, reason=StopReason.IO_ERROR)
    halted = status_from(view(observed=full, io_error="root: enospc"))
    assert condition(halted, "Paused")["reason"] == "PausedIOError"
    assert "enospc" in condition(halted, "Paused")["message"]
    assert condition(halted, "Ready")["status"] == "False"
    resumed = status_from(view(vmi=scheduled() | {"status": halted}))
    assert condition(resumed, "Paused") is None
    assert condition(resumed, "Ready")["status"] == "True"


def test_an_ending_is_final_and_says_why() -> None:
    off = msgspec.structs.replace(RUNNING, state=State.OFF, reason=StopReason.CRASHED)
    ending = Ending(phase="Failed", reason="Crashed", message="it crashed")
    status = status_from(view(observed=off, ending=ending))
    assert (status["phase"], status["reason"]) == ("Failed", "Crashed")
    assert condition(status, "Ready") | {"lastTransitionTime": ""} == {
        "type": "Ready", "status": "False", "reason": "GuestNotRunning", "message": "it crashed",
        "lastProbeTime": None, "lastTransitionTime": "",
    }  # fmt: skip
    assert status["activePods"] == {}
    later = status_from(view(vmi=scheduled() | {"status": status}))
    assert later["phase"] == "Failed"  # a final phase never changes


def test_what_cannot_be_started_says_so_and_stays_scheduled() -> None:
    status = status_from(view(observed=None, prepared=None, problem=Problem("Unsupported", "spec.x: no")))
    assert status["phase"] == "Scheduled"
    assert condition(status, "Synchronized")["reason"] == "Unsupported"
    assert condition(status, "Ready")["status"] == "False"


def test_the_guests_own_word_is_joined_by_mac_and_bounded() -> None:
    links = interfaces_from(
        [
            {"name": "lo", "hardware-address": "00:00:00:00:00:00"},
            {"name": "enp1s0", "hardware-address": "02:AA:BB:CC:DD:EE", "ip-addresses": [
                {"ip-address-type": "ipv6", "ip-address": "fe80::1"},
                {"ip-address-type": "ipv4", "ip-address": "10.0.2.2"},
            ]},
            {"name": "docker0", "hardware-address": "02:00:00:00:00:01", "ip-addresses": [
                {"ip-address-type": "ipv4", "ip-address": "172.17.0.1"}]},
        ]
    )  # fmt: skip
    info = GuestInfo(interfaces=links, os=os_from({"id": "debian", "pretty-name": "Debian"}))
    connected = msgspec.structs.replace(RUNNING, agent_connected=True)
    status = status_from(view(observed=connected, guest=info))
    first, second = status["interfaces"]
    assert (first["interfaceName"], first["ipAddress"], first["infoSource"]) == (
        "enp1s0", "10.128.0.5", "domain, guest-agent",
    )  # fmt: skip
    assert second["interfaceName"] == "docker0"
    assert status["guestOSInfo"] == {"id": "debian", "prettyName": "Debian"}
    assert condition(status, "AgentConnected")["status"] == "True"


def test_a_hostile_agent_cannot_flood_status() -> None:
    assert len(interfaces_from([{"name": f"e{i}", "hardware-address": "x" * 10_000} for i in range(10_000)])) <= 256
    assert os_from({"id": "x" * 10_000})["id"] == "x" * 256
    assert os_from([1]) == {}
    assert users_from({"user": 1}) == ()
    assert filesystems_from("nonsense") == ()
    assert users_from([{"user": ["a"], "login-time": "never"}])[0]["userName"] == ""
