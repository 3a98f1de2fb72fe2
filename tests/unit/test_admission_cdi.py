"""What a user sees when a DataVolume, DataSource or DataImportCron cannot be stored."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.admission_world import Objects, send, thing

from stead.kube.errors import ApiError

SIZE = {"resources": {"requests": {"storage": "1Gi"}}}


def volume(**spec: Any) -> dict[str, Any]:
    body = {"source": {"blank": {}}, "storage": SIZE, **spec}
    return thing("DataVolume", "disk", {k: v for k, v in body.items() if v is not None})


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"source": {"http": {"url": "https://images.example/os.qcow2", "checksum": "sha256:" + "a" * 64}}},
        {"source": {"registry": {"url": "docker://registry.example/os:1"}}},
        {"source": {"pvc": {"name": "a", "namespace": "b"}}, "storage": {}},
        {"source": None, "sourceRef": {"kind": "DataSource", "name": "golden"}, "storage": {}},
        {"storage": None, "pvc": {**SIZE, "accessModes": ["ReadWriteOnce"]}},
    ],
)
def test_good_volumes_are_stored_as_sent(spec: dict[str, Any]) -> None:
    sent = volume(**spec)
    assert send(sent) == sent


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"source": None}, "spec.source"),
        ({"source": {}}, "spec.source"),
        ({"source": {"blank": {}, "upload": {}}}, "spec.source"),
        ({"source": {"http": {"url": "ftp://x.example/a"}}}, "spec.source.http.url"),
        ({"source": {"http": {"url": "file:///etc/shadow"}}}, "spec.source.http.url"),
        ({"source": {"http": {"url": "http://x.example/a", "checksum": "md5:1"}}}, "spec.source.http.checksum"),
        ({"storage": None}, "spec.PVC"),
        ({"pvc": SIZE}, "spec.PVC"),
        ({"storage": {}}, "spec.storage.resources.requests.storage"),
        ({"storage": {"resources": {"requests": {"storage": "0"}}}}, "spec.storage.resources.requests.storage"),
        ({"storage": None, "pvc": SIZE}, "spec.pvc.accessModes"),
        ({"sourceRef": {"kind": "DataSource", "name": "golden"}}, "spec.source"),
    ],
)
def test_what_cannot_be_filled_is_refused(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(ApiError) as caught:
        send(volume(**spec))
    assert caught.value.code == 422
    assert [c["field"] for c in caught.value.details["causes"]] == [field]


def test_the_spec_of_a_volume_does_not_change() -> None:
    changed = volume()
    changed["spec"]["source"] = {"upload": {}}
    with pytest.raises(ApiError, match="Cannot update DataVolume Spec"):
        send(changed, volume())
    relabelled = copy.deepcopy(volume())
    relabelled["metadata"]["labels"] = {"a": "b"}
    assert send(relabelled, volume()) == relabelled


def test_a_claim_of_that_name_is_only_adopted_when_allowed() -> None:
    world = Objects(thing("PersistentVolumeClaim", "disk"))
    with pytest.raises(ApiError, match="Destination PVC prod/disk already exists"):
        send(volume(), world=world)
    adopting = volume()
    adopting["metadata"]["annotations"] = {"cdi.kubevirt.io/allowClaimAdoption": "true"}
    send(adopting, world=world)


def test_an_import_cron_needs_a_source_and_a_data_source() -> None:
    template = {"spec": {"source": {"registry": {"url": "docker://registry.example/os"}}}}
    good = thing("DataImportCron", "os", {"schedule": "0 3 * * *", "managedDataSource": "os", "template": template})
    assert send(good) == good
    bad = thing("DataImportCron", "os", {"schedule": "often", "template": {"spec": {}}})
    with pytest.raises(ApiError) as caught:
        send(bad)
    assert len(caught.value.details["causes"]) == 3
