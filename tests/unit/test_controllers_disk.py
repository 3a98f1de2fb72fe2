"""DataVolumes, claims, volumes, DataSources and import crons on a fake API and an instant agent."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from controller_world import Plane, machine, plane
from fake_client import now
from stead.controllers import cron
from stead.controllers.importcron import decide_imports
from stead.kinds.register import (
    DATA_IMPORT_CRON,
    DATA_SOURCE,
    DATA_VOLUME,
    PERSISTENT_VOLUME,
    PERSISTENT_VOLUME_CLAIM,
    STORAGE_CLASS,
    STORAGE_PROFILE,
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_INSTANCE,
)

Object = dict[str, Any]
HTTP = {"http": {"url": "http://images.example/a.qcow2", "checksum": "sha256:00"}}


def data_volume(name: str = "dv1", source: Object | None = None, namespace: str = "default", **spec: Any) -> Object:
    wanted = {"resources": {"requests": {"storage": "1Gi"}}}
    filled = {"source": source} if source is not None else {}
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"storage": wanted, **filled, **spec},
    }


def phase_is(phase: str) -> Any:
    return lambda o: o.get("status", {}).get("phase") == phase


def condition(obj: Object, kind: str) -> Object:
    return next((c for c in obj.get("status", {}).get("conditions", []) if c["type"] == kind), {})


async def events(p: Plane, name: str) -> list[str]:
    await p.settle()
    return [e["reason"] for e in p.client.of("events") if e["involvedObject"]["name"] == name]


async def import_one(p: Plane, name: str = "dv1", **rest: Any) -> Object:
    await p.client.create(DATA_VOLUME, data_volume(name, HTTP, **rest))
    return await p.until(DATA_VOLUME, name, phase_is("Succeeded"), namespace=rest.get("namespace", "default"))


async def test_import_is_followed_to_the_end() -> None:
    async with plane() as p:
        p.agent.hold_transfers.add("dv1")
        await p.client.create(DATA_VOLUME, data_volume("dv1", HTTP))
        seen = await p.until(DATA_VOLUME, "dv1", phase_is("ImportInProgress"))
        assert seen["status"]["progress"] == "42.10%"
        assert condition(seen, "Running")["status"] == "True"
        assert condition(seen, "Ready")["status"] == "False"
        p.agent.hold_transfers.clear()
        p.agent.poke()
        done = await p.until(DATA_VOLUME, "dv1", phase_is("Succeeded"))
        assert done["status"]["progress"] == "100.0%"
        assert condition(done, "Ready")["status"] == "True"
        assert condition(done, "Bound") | {"lastTransitionTime": "", "lastHeartbeatTime": ""} == {
            "type": "Bound",
            "status": "True",
            "reason": "Bound",
            "message": "PVC dv1 Bound",
            "lastTransitionTime": "",
            "lastHeartbeatTime": "",
        }
        claim = await p.client.get(PERSISTENT_VOLUME_CLAIM, "default", "dv1")
        assert json.loads(claim["metadata"]["annotations"]["stead.io/source"]) == {"kind": "http", **HTTP["http"]}
        assert claim["status"] == {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}
        volume = await p.client.get(PERSISTENT_VOLUME, None, claim["spec"]["volumeName"])
        assert volume["spec"]["csi"]["volumeHandle"] == f"pool-of-host1/{claim['metadata']['uid']}"
        assert volume["status"]["phase"] == "Bound"
        reasons = await events(p, "dv1")
        assert {"ImportInProgress", "ImportSucceeded"} <= set(reasons)


async def test_an_ordinary_error_stays_in_progress_and_says_why() -> None:
    async with plane() as p:
        message = "Unable to connect to http data source: expected status code 200, got 404"
        p.agent.fail_transfers["dv1"] = ("Error", message)
        await p.client.create(DATA_VOLUME, data_volume("dv1", HTTP))
        seen = await p.until(DATA_VOLUME, "dv1", lambda o: o.get("status", {}).get("restartCount") == 1)
        assert seen["status"]["phase"] == "ImportInProgress"
        assert (condition(seen, "Running")["reason"], condition(seen, "Running")["message"]) == ("Error", message)
        assert "ImportFailed" in await events(p, "dv1")
        p.agent.fail_transfers.clear()
        p.agent.poke()
        await p.until(DATA_VOLUME, "dv1", phase_is("Succeeded"))


async def test_a_wrong_checksum_fails_for_good() -> None:
    async with plane() as p:
        p.agent.fail_transfers["dv1"] = ("ChecksumError", "checksum mismatch")
        await p.client.create(DATA_VOLUME, data_volume("dv1", HTTP))
        seen = await p.until(DATA_VOLUME, "dv1", phase_is("Failed"))
        assert condition(seen, "Running")["reason"] == "ChecksumError"


async def test_upload_and_blank() -> None:
    async with plane() as p:
        p.agent.hold_transfers.add("up")
        await p.client.create(DATA_VOLUME, data_volume("up", {"upload": {}}))
        await p.until(DATA_VOLUME, "up", phase_is("UploadReady"))
        p.agent.hold_transfers.clear()
        p.agent.poke()
        await p.until(DATA_VOLUME, "up", phase_is("Succeeded"))
        await p.client.create(DATA_VOLUME, data_volume("empty", {"blank": {}}))
        await p.until(DATA_VOLUME, "empty", phase_is("Succeeded"))


def golden(name: str = "debian12", claim: str = "golden") -> Object:
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataSource",
        "metadata": {
            "namespace": "kubevirt-os-images",
            "name": name,
            "labels": {"instancetype.kubevirt.io/default-instancetype": "u1.small"},
        },
        "spec": {"source": {"pvc": {"namespace": "kubevirt-os-images", "name": claim}}},
    }


async def test_a_machine_waits_for_its_data_source_and_boots_once_it_appears() -> None:
    async with plane() as p:
        template = {
            "metadata": {"name": "root"},
            "spec": {
                "sourceRef": {"kind": "DataSource", "name": "debian12", "namespace": "kubevirt-os-images"},
                "storage": {"resources": {"requests": {"storage": "30Gi"}}},
            },
        }
        vm = machine(dataVolumeTemplates=[template])
        vm["spec"]["template"]["spec"]["volumes"] = [{"name": "rootdisk", "dataVolume": {"name": "root"}}]
        await p.client.create(VIRTUAL_MACHINE, vm)
        named = "DataSource kubevirt-os-images/debian12 not found"
        told = await p.until(
            VIRTUAL_MACHINE, "vm1", lambda o: named in condition(o, "DataVolumesReady").get("message", "")
        )
        assert told["status"]["printableStatus"] == "Provisioning"
        waiting = await p.client.get(DATA_VOLUME, "default", "root")
        assert waiting["status"]["phase"] == "Pending"
        assert condition(waiting, "Running")["message"] == named
        await import_one(p, "golden", namespace="kubevirt-os-images")
        await p.client.create(DATA_SOURCE, golden())
        await p.until_printable("vm1", "Running")
        source = await p.until(
            DATA_SOURCE,
            "debian12",
            lambda o: condition(o, "Ready").get("status") == "True",
            namespace="kubevirt-os-images",
        )
        assert source["status"]["source"]["pvc"]["name"] == "golden"
        claim = await p.client.get(PERSISTENT_VOLUME_CLAIM, "default", "root")
        concrete = json.loads(claim["metadata"]["annotations"]["stead.io/source"])
        assert concrete == {"kind": "pvc", "namespace": "kubevirt-os-images", "name": "golden"}
        assert claim["spec"]["resources"]["requests"]["storage"] == "30Gi"
        assert claim["metadata"]["labels"]["instancetype.kubevirt.io/default-instancetype"] == "u1.small"
        vmi = await p.client.get(VIRTUAL_MACHINE_INSTANCE, "default", "vm1")
        assert [d["name"] for d in vmi["spec"]["domain"]["devices"]["disks"]] == ["rootdisk"]
        assert "CloneSucceeded" in await events(p, "root")
        await p.client.delete(VIRTUAL_MACHINE, "default", "vm1")
        for resource in (VIRTUAL_MACHINE, DATA_VOLUME, PERSISTENT_VOLUME_CLAIM):
            await p.until_gone(resource, "vm1" if resource is VIRTUAL_MACHINE else "root")
        await p.until_gone(PERSISTENT_VOLUME, claim["spec"]["volumeName"])


async def test_a_chain_of_data_sources_ends_after_one_step() -> None:
    async with plane() as p:
        await import_one(p, "golden", namespace="kubevirt-os-images")
        await p.client.create(DATA_SOURCE, golden())
        for name, target in (("stable", "debian12"), ("far", "stable")):
            pointing = golden(name)
            pointing["spec"]["source"] = {"dataSource": {"namespace": "kubevirt-os-images", "name": target}}
            await p.client.create(DATA_SOURCE, pointing)
        await p.until(
            DATA_SOURCE,
            "stable",
            lambda o: condition(o, "Ready").get("status") == "True",
            namespace="kubevirt-os-images",
        )
        await p.until(
            DATA_SOURCE,
            "far",
            lambda o: condition(o, "Ready").get("reason") == "MaxReferenceDepthReached",
            namespace="kubevirt-os-images",
        )


async def test_clone_waits_for_its_source_takes_its_size_and_refuses_a_smaller_one() -> None:
    async with plane() as p:
        clone = data_volume("copy", {"pvc": {"namespace": "default", "name": "dv1"}})
        clone["spec"]["storage"] = {}
        await p.client.create(DATA_VOLUME, clone)
        seen = await p.until(DATA_VOLUME, "copy", phase_is("Pending"))
        assert "default/dv1" in condition(seen, "Running")["message"]
        await import_one(p)
        await p.until(DATA_VOLUME, "copy", phase_is("Succeeded"))
        claim = await p.client.get(PERSISTENT_VOLUME_CLAIM, "default", "copy")
        assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"
        small = data_volume("small", {"pvc": {"namespace": "default", "name": "dv1"}})
        small["spec"]["storage"]["resources"]["requests"]["storage"] = "1Mi"
        await p.client.create(DATA_VOLUME, small)
        seen = await p.until(DATA_VOLUME, "small", phase_is("Pending"))
        assert "smaller than the source" in condition(seen, "Running")["message"]


async def test_clone_of_a_disk_in_use_waits_until_the_machine_stops() -> None:
    async with plane() as p:
        await import_one(p)
        vm = machine()
        vm["spec"]["template"]["spec"]["volumes"] = [{"name": "d", "dataVolume": {"name": "dv1"}}]
        await p.client.create(VIRTUAL_MACHINE, vm)
        await p.until_printable("vm1", "Running")
        await p.client.create(DATA_VOLUME, data_volume("copy", {"pvc": {"namespace": "default", "name": "dv1"}}))
        seen = await p.until(DATA_VOLUME, "copy", phase_is("Pending"))
        assert "in use by virtual machine instance vm1" in condition(seen, "Running")["message"]
        await p.client.patch(VIRTUAL_MACHINE, "default", "vm1", {"spec": {"runStrategy": "Halted"}})
        await p.until(DATA_VOLUME, "copy", phase_is("Succeeded"))


async def test_missing_claim_and_failing_import_show_on_the_machine() -> None:
    async with plane() as p:
        vm = machine("novol")
        vm["spec"]["template"]["spec"]["volumes"] = [{"name": "d", "persistentVolumeClaim": {"claimName": "nope"}}]
        await p.client.create(VIRTUAL_MACHINE, vm)
        told = await p.until_printable("novol", "ErrorPvcNotFound")
        assert "default/nope" in condition(told, "Synchronized")["message"]
        p.agent.fail_transfers["bad"] = ("Error", "boom")
        await p.client.create(DATA_VOLUME, data_volume("bad", HTTP))
        vm = machine("baddisk")
        vm["spec"]["template"]["spec"]["volumes"] = [{"name": "d", "dataVolume": {"name": "bad"}}]
        await p.client.create(VIRTUAL_MACHINE, vm)
        told = await p.until_printable("baddisk", "DataVolumeError")
        assert "boom" in condition(told, "DataVolumesReady")["message"]
        plain = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": "default", "name": "nope"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        await p.client.create(PERSISTENT_VOLUME_CLAIM, plain)
        await p.until_printable("novol", "Running")


async def test_wait_for_first_consumer_places_the_volume_with_the_machine() -> None:
    async with plane() as p:
        late: Object = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "late"},
            "provisioner": "stead.io",
            "volumeBindingMode": "WaitForFirstConsumer",
        }
        await p.client.create(STORAGE_CLASS, late)
        await p.until(STORAGE_PROFILE, "late", lambda o: o.get("status", {}).get("claimPropertySets"))
        wanted = data_volume("dv1", HTTP)
        wanted["spec"]["storage"]["storageClassName"] = "late"
        await p.client.create(DATA_VOLUME, wanted)
        await p.until(DATA_VOLUME, "dv1", phase_is("WaitForFirstConsumer"))
        vm = machine()
        vm["spec"]["template"]["spec"]["volumes"] = [{"name": "d", "dataVolume": {"name": "dv1"}}]
        await p.client.create(VIRTUAL_MACHINE, vm)
        await p.until_printable("vm1", "Running")
        claim = await p.client.get(PERSISTENT_VOLUME_CLAIM, "default", "dv1")
        assert claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"] == "host1"


async def test_a_used_claim_is_protected_until_the_machine_is_gone() -> None:
    async with plane() as p:
        await import_one(p)
        vm = machine()
        vm["spec"]["template"]["spec"]["volumes"] = [{"name": "d", "dataVolume": {"name": "dv1"}}]
        await p.client.create(VIRTUAL_MACHINE, vm)
        await p.until_printable("vm1", "Running")
        await p.client.delete(DATA_VOLUME, "default", "dv1")
        await p.settle()
        claim = await p.client.get(PERSISTENT_VOLUME_CLAIM, "default", "dv1")
        assert claim["metadata"]["deletionTimestamp"]
        await p.client.delete(VIRTUAL_MACHINE, "default", "vm1")
        await p.until_gone(PERSISTENT_VOLUME_CLAIM, "dv1")
        await p.until_gone(PERSISTENT_VOLUME, claim["spec"]["volumeName"])


async def test_retained_volume_is_released_and_growing_a_claim_is_told() -> None:
    async with plane() as p:
        await import_one(p)
        claim = await p.client.get(PERSISTENT_VOLUME_CLAIM, "default", "dv1")
        name = claim["spec"]["volumeName"]
        more = {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}
        await p.client.patch(PERSISTENT_VOLUME_CLAIM, "default", "dv1", more)
        await p.until(PERSISTENT_VOLUME_CLAIM, "dv1", lambda o: condition(o, "Resizing").get("status") == "True")
        done = {
            "phase": "Succeeded",
            "progress": "100.0%",
            "restarts": 0,
            "reason": "",
            "message": "",
            "virtualSize": 2 << 30,
        }
        p.agent.node["metadata"]["name"] = "elsewhere"
        p.agent.host = "elsewhere"  # the instant agent must not put its own report back
        note = {"metadata": {"annotations": {"stead.io/transfer": json.dumps(done)}}}
        await p.client.patch(PERSISTENT_VOLUME_CLAIM, "default", "dv1", note)
        grown = await p.until(PERSISTENT_VOLUME_CLAIM, "dv1", lambda o: o["status"]["capacity"]["storage"] == "2Gi")
        assert not condition(grown, "Resizing")
        await p.until(PERSISTENT_VOLUME, name, lambda o: o["spec"]["capacity"]["storage"] == "2Gi")
        keep = {"spec": {"persistentVolumeReclaimPolicy": "Retain"}}
        await p.client.patch(PERSISTENT_VOLUME, None, name, keep)
        await p.client.delete(DATA_VOLUME, "default", "dv1")
        await p.until(PERSISTENT_VOLUME, name, phase_is("Released"))


async def test_import_cron_brings_an_image_and_moves_the_data_source() -> None:
    async with plane() as p:
        wanted: Object = {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "DataImportCron",
            "metadata": {"namespace": "kubevirt-os-images", "name": "debian-cron"},
            "spec": {
                "managedDataSource": "debian",
                "schedule": "0 3 * * 1",
                "template": {
                    "spec": data_volume("x", {"registry": {"url": "docker://registry.example/debian:12"}})["spec"]
                },
            },
        }
        await p.client.create(DATA_IMPORT_CRON, wanted)
        source = await p.until(
            DATA_SOURCE,
            "debian",
            lambda o: condition(o, "Ready").get("status") == "True",
            namespace="kubevirt-os-images",
        )
        done = await p.until(
            DATA_IMPORT_CRON,
            "debian-cron",
            lambda o: condition(o, "UpToDate").get("status") == "True",
            namespace="kubevirt-os-images",
        )
        imported = done["status"]["lastImportedPVC"]["name"]
        assert source["spec"]["source"]["pvc"]["name"] == imported
        assert imported.startswith("debian-")
        await p.settle()
        assert len(p.client.of("datavolumes")) == 1


async def test_import_cron_says_why_it_cannot() -> None:
    async with plane() as p:
        wanted: Object = {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "DataImportCron",
            "metadata": {"namespace": "default", "name": "c"},
            "spec": {"managedDataSource": "img", "template": {"spec": data_volume("x", HTTP)["spec"]}},
        }
        digest = "ab" * 32
        wanted["spec"]["template"]["spec"]["source"] = {"registry": {"url": f"docker://r.example/i@sha256:{digest}"}}
        p.agent.fail_transfers[f"img-{digest[:12]}"] = ("ImagePullFailed", "registry r.example: name not known")
        await p.client.create(DATA_IMPORT_CRON, wanted)
        seen = await p.until(
            DATA_IMPORT_CRON, "c", lambda o: "name not known" in condition(o, "UpToDate").get("message", "")
        )
        assert condition(seen, "UpToDate")["status"] == "False"
        p.agent.fail_transfers.clear()
        p.agent.poke()
        await p.until(DATA_IMPORT_CRON, "c", lambda o: condition(o, "UpToDate").get("status") == "True")


# pure ----------------------------------------------------------------------------------------------------------------


def imports(*names: str) -> list[Object]:
    return [
        {"metadata": {"name": n, "creationTimestamp": f"2026-01-0{i + 1}T00:00:00Z"}, "status": {"phase": "Succeeded"}}
        for i, n in enumerate(names)
    ]


def test_old_imports_go_beyond_those_to_keep() -> None:
    wanted = {
        "metadata": {"namespace": "n", "name": "c", "creationTimestamp": now()},
        "spec": {"managedDataSource": "d", "importsToKeep": 2, "schedule": "@daily", "template": {}},
        "status": {"lastExecutionTimestamp": "2026-01-05T00:00:00Z"},
    }
    plan = decide_imports(wanted, imports("a", "b", "c", "e"), datetime(2026, 1, 5, 1, tzinfo=UTC))
    assert plan.remove == ("a", "b")
    assert plan.point_to == "e"
    assert not plan.start
    due = decide_imports(wanted, imports("a"), datetime(2026, 1, 6, 1, tzinfo=UTC))
    assert due.start == "d-202601060000"
    after_a_long_sleep = decide_imports(wanted, imports("a"), datetime(2026, 3, 6, 1, tzinfo=UTC))
    assert after_a_long_sleep.start == "d-202603060000"


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        ("*/15 * * * *", "2026-01-01T00:07:30", "2026-01-01T00:15:00"),
        ("0 3 * * 1", "2026-01-01T00:00:00", "2026-01-05T03:00:00"),
        ("0 0 31 * *", "2026-01-31T00:00:00", "2026-03-31T00:00:00"),
        ("0 0 29 2 *", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("0 0 1 * sun", "2026-01-01T00:00:00", "2026-01-04T00:00:00"),
        ("30 5 * jan-mar 7", "2026-01-01T00:00:00", "2026-01-04T05:30:00"),
        ("@daily", "2026-12-31T23:59:59", "2027-01-01T00:00:00"),
    ],
)
def test_cron_schedules(text: str, after: str, expected: str) -> None:
    found = cron.parse(text).after(datetime.fromisoformat(after).replace(tzinfo=UTC))
    assert found == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "* * * *", "60 * * * *", "a * * * *", "*/0 * * * *", "5-1 * * * *", "* * 0 * *"])
def test_bad_cron_schedules_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cron"):
        cron.parse(text)


def test_a_schedule_that_never_comes_ends() -> None:
    assert cron.parse("0 0 31 2 *").after(datetime(2026, 1, 1, tzinfo=UTC)) is None
