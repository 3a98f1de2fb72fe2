"""What `kubectl get` shows of each kind."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from stead.kinds import register as kinds
from stead.kinds.columns import cells, human_duration, table_columns
from stead.kinds.resource import Resource

NOW = datetime.datetime(2026, 1, 1, 12, 0, tzinfo=datetime.UTC)
META = {"name": "x", "namespace": "d", "creationTimestamp": "2026-01-01T11:55:00Z"}


def shown(resource: Resource, obj: dict[str, Any]) -> dict[str, Any]:
    """Column name to cell, for an object that is five minutes old."""
    row = cells(resource, {"metadata": META, **obj}, NOW)
    names = [column.name for column in table_columns(resource)]
    assert len(row) == len(names)
    return dict(zip(names, row, strict=True))


@pytest.mark.parametrize("resource", kinds.ALL, ids=lambda r: f"{r.kind}.{r.group}")
def test_every_kind_fills_its_row_even_for_an_empty_object(resource: Resource) -> None:
    assert "Name" in shown(resource, {})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119.9, "119s"),
        (120, "2m"),
        (310, "5m10s"),
        (599, "9m59s"),
        (600, "10m"),
        (3 * 3600, "3h"),
        (5 * 3600 + 120, "5h2m"),
        (9 * 3600, "9h"),
        (47 * 3600, "47h"),
        (53 * 3600, "2d5h"),
        (10 * 86400, "10d"),
        (800 * 86400, "2y70d"),
        (3650 * 86400, "10y"),
    ],
)
def test_durations_read_as_kubectl_writes_them(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def test_a_machine_shows_age_status_and_readiness() -> None:
    status = {"printableStatus": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    assert shown(kinds.VIRTUAL_MACHINE, {"status": status}) == {
        "Name": "x", "Age": "5m", "Status": "Running", "Ready": "True",
    }  # fmt: skip
    assert shown(kinds.VIRTUAL_MACHINE, {})["Status"] is None


def test_an_instance_shows_its_first_address_and_hides_two_columns() -> None:
    row = shown(
        kinds.VIRTUAL_MACHINE_INSTANCE,
        {"status": {"phase": "Running", "nodeName": "h1", "interfaces": [{"ipAddress": "10.128.0.5"}]}},
    )
    assert (row["IP"], row["NodeName"], row["Ready"]) == ("10.128.0.5", "h1", None)
    wide = [c.name for c in table_columns(kinds.VIRTUAL_MACHINE_INSTANCE) if c.priority]
    assert wide == ["Live-Migratable", "Paused"]


def test_a_kind_without_columns_shows_name_and_age() -> None:
    assert shown(kinds.CLUSTER_INSTANCETYPE, {}) == {"Name": "x", "Age": "5m"}


def test_counts_are_numbers() -> None:
    assert shown(kinds.CONFIG_MAP, {"data": {"a": "1"}, "binaryData": {"b": "Mg=="}})["Data"] == 2
    assert shown(kinds.SECRET, {"type": "Opaque"}) == {"Name": "x", "Type": "Opaque", "Data": 0, "Age": "5m"}
    assert shown(kinds.DATA_VOLUME, {"status": {"restartCount": 3}})["Restarts"] == 3


def test_a_node_shows_its_state_roles_and_address() -> None:
    node = {
        "metadata": {"name": "h1", "labels": {"node-role.kubernetes.io/worker": ""}},
        "spec": {"unschedulable": True},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        },
    }
    row = shown(kinds.NODE, node)
    assert row["Status"] == "Ready,SchedulingDisabled"
    assert row["Roles"] == "worker"
    assert (row["Internal-IP"], row["External-IP"], row["OS-Image"]) == ("10.0.0.1", "<none>", "<unknown>")
    assert row["Age"] == "<unknown>"
    assert shown(kinds.NODE, {})["Status"] == "Unknown"


def test_a_claim_shows_what_it_got_once_it_is_bound() -> None:
    claim = {
        "spec": {"volumeName": "pv-1", "storageClassName": "local", "volumeMode": "Filesystem"},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]},
    }
    row = shown(kinds.PERSISTENT_VOLUME_CLAIM, claim)
    assert (row["Status"], row["Volume"], row["Capacity"], row["Access Modes"]) == ("Bound", "pv-1", "1Gi", "RWO,RWX")
    assert row["VolumeAttributesClass"] == "<unset>"


def test_deleting_shows_as_terminating() -> None:
    deleting = META | {"deletionTimestamp": "2026-01-01T11:59:00Z"}
    row = shown(kinds.PERSISTENT_VOLUME, {"metadata": deleting, "status": {"phase": "Released"}})
    assert row["Status"] == "Terminating"


def test_the_default_class_is_marked() -> None:
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"}
    row = shown(kinds.STORAGE_CLASS, {"metadata": {"name": "local", "annotations": annotations}, "provisioner": "p"})
    assert row["Name"] == "local (default)"
    assert row["AllowVolumeExpansion"] is False


def test_a_binding_lists_its_subjects_by_kind() -> None:
    binding = {
        "roleRef": {"kind": "ClusterRole", "name": "admin"},
        "subjects": [{"kind": "User", "name": "bob"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}],
    }
    row = shown(kinds.CLUSTER_ROLE_BINDING, binding)
    assert (row["Role"], row["Users"], row["ServiceAccounts"]) == ("ClusterRole/admin", "bob", "n/s")


def test_both_faces_of_an_event_print_the_same() -> None:
    core = {
        "involvedObject": {"kind": "VirtualMachine", "name": "web"},
        "type": "Normal",
        "reason": "Started",
        "message": "msg",
        "source": {"component": "ctl", "host": "h1"},
        "firstTimestamp": "2026-01-01T11:50:00Z",
        "lastTimestamp": "2026-01-01T11:59:30Z",
        "count": 2,
    }
    newer = {
        "regarding": {"kind": "VirtualMachine", "name": "web"},
        "type": "Normal",
        "reason": "Started",
        "note": "msg",
        "deprecatedSource": {"component": "ctl", "host": "h1"},
        "deprecatedFirstTimestamp": "2026-01-01T11:50:00Z",
        "deprecatedLastTimestamp": "2026-01-01T11:59:30Z",
        "deprecatedCount": 2,
    }
    row = shown(kinds.EVENT, core)
    assert row == shown(kinds.EVENTS_EVENT, newer)
    assert (row["Last Seen"], row["First Seen"], row["Count"]) == ("30s", "10m", 2)
    assert (row["Object"], row["Source"]) == ("virtualmachine/web", "ctl, h1")


def test_a_revision_names_its_controller() -> None:
    owner = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "web", "controller": True}
    row = shown(kinds.CONTROLLER_REVISION, {"metadata": META | {"ownerReferences": [owner]}, "revision": 1})
    assert row["Controller"] == "virtualmachine.kubevirt.io/web"
