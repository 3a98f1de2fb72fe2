"""Snapshots, restores, clones and exports on a whole control plane with one host's volume workers, without guests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.import_world import HOST, World, condition, import_world

from stead.agent.exports import Exports
from stead.agent.snapshots import Snapshots
from stead.agent.streams import Server
from stead.client.contract import Selection
from stead.client.direct import DirectClient
from stead.client.kubeconfig import load
from stead.controllers import clone as cloning
from stead.controllers import machine_locks, restore_plan
from stead.controllers import restore as restoring
from stead.controllers import snapshot as snapshots
from stead.controllers.volume_needs import transfer_of
from stead.kinds import exported, register
from stead.kube.errors import ApiError
from stead.storage.instant import Copy, Instant
from stead.storage.pools import Pool, PoolError, VolumeSpec

Object = dict[str, Any]
VS, PVC, VM = register.VOLUME_SNAPSHOT, register.PERSISTENT_VOLUME_CLAIM, register.VIRTUAL_MACHINE
SNAPSHOT, CONTENT, RESTORE = register.MACHINE_SNAPSHOT, register.MACHINE_SNAPSHOT_CONTENT, register.MACHINE_RESTORE


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with import_world(tmp_path) as made:
        taking = Snapshots(made.client, made.pools.values(), HOST, lambda _path: None)
        task = asyncio.create_task(taking.run())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def named(resource: Any, name: str, spec: Object) -> Object:
    metadata = {"namespace": "default", "name": name}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "spec": spec}


def machine_reference(name: str) -> Object:
    return {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": name}


async def a_machine(world: World, name: str = "web", disks: tuple[str, ...] = ("root", "data")) -> Object:
    """A stopped machine with filled disks."""
    for disk in disks:
        await world.data_volume(f"{name}-{disk}", {"blank": {}})
        await world.phase(f"{name}-{disk}", "Succeeded")
        (await world.disk(f"{name}-{disk}")).write_bytes(f"{name} {disk}".encode().ljust(8 << 20, b"\0"))
    volumes = [{"name": d, "dataVolume": {"name": f"{name}-{d}"}} for d in disks]
    volumes.append({"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config"}})
    domain = {"memory": {"guest": "64Mi"}, "devices": {"disks": [{"name": v["name"]} for v in volumes]}}
    spec = {"runStrategy": "Halted", "template": {"spec": {"domain": domain, "volumes": volumes}}}
    return await world.client.create(VM, named(VM, name, spec))


async def take(world: World, name: str, source: str = "web", **spec: Any) -> Object:
    await world.client.create(SNAPSHOT, named(SNAPSHOT, name, {"source": machine_reference(source), **spec}))
    return await world.until(SNAPSHOT, name, lambda s: (s.get("status") or {}).get("phase") in ("Succeeded", "Failed"))


async def gone(world: World, resource: Any, name: str) -> None:
    for _ in range(400):
        try:
            await world.client.get(resource, "default", name)
        except ApiError as error:
            if error.code == 404:
                return
            raise
        await asyncio.sleep(0.05)
    raise AssertionError(f"{resource.kind} {name} is still there")


async def test_a_volume_snapshot_does_not_depend_on_its_volume(world: World) -> None:
    await world.data_volume("data", {"blank": {}})
    await world.phase("data", "Succeeded")
    path = await world.disk("data")
    path.write_bytes(b"then".ljust(8 << 20, b"\0"))
    await world.client.create(VS, named(VS, "then", {"source": {"persistentVolumeClaimName": "data"}}))
    ready = await world.until(VS, "then", lambda s: (s.get("status") or {}).get("readyToUse"))
    assert (ready["status"]["restoreSize"], ready["spec"]["volumeSnapshotClassName"]) == ("8Mi", "stead")
    path.write_bytes(b"now".ljust(8 << 20, b"\0"))
    await world.client.delete(register.DATA_VOLUME, "default", "data")
    await gone(world, PVC, "data")
    await world.data_volume("back", {"snapshot": {"name": "then", "namespace": "default"}}, size="16Mi")
    await world.phase("back", "Succeeded")
    found = await world.disk("back")
    assert (found.read_bytes()[:4], found.stat().st_size) == (b"then", 16 << 20)
    claim = named(PVC, "plain", {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Mi"}},
        "dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "then"},
    })  # fmt: skip
    await world.client.create(PVC, claim)
    await world.until(PVC, "plain", lambda c: transfer_of(c).get("phase") == "Succeeded")
    assert (await world.disk("plain")).read_bytes()[:4] == b"then"
    await world.client.delete(VS, "default", "then")
    await gone(world, VS, "then")
    assert not [v for v in world.pools["default"].volumes() if v.snapshot]


async def test_a_snapshot_of_what_is_not_there_says_so_and_takes_place_when_it_comes(world: World) -> None:
    await world.client.create(VS, named(VS, "early", {"source": {"persistentVolumeClaimName": "data"}}))
    told = await world.until(VS, "early", lambda s: (s.get("status") or {}).get("error"))
    assert told["status"]["error"]["message"] == "claim data not found"
    await world.data_volume("data", {"blank": {}})
    ready = await world.until(VS, "early", lambda s: (s.get("status") or {}).get("readyToUse"))
    assert "error" not in ready["status"]


async def test_a_stopped_machine_is_kept_restored_and_let_go(world: World) -> None:
    await a_machine(world)
    taken = await take(world, "first")
    status = taken["status"]
    assert (status["phase"], "indications" in status) == ("Succeeded", False)
    assert status["snapshotVolumes"] == {"includedVolumes": ["root", "data"], "excludedVolumes": ["seed"]}
    assert condition(taken, "Ready")["reason"] == "Operation complete"
    vm = await world.until(VM, "web", lambda m: "snapshotInProgress" not in m["status"])
    told = {s["name"]: s["enabled"] for s in vm["status"]["volumeSnapshotStatuses"]}
    assert told == {"root": True, "data": True, "seed": False}

    (await world.disk("web-data")).write_bytes(b"overwritten".ljust(8 << 20, b"\0"))
    patches = ['{"op": "add", "path": "/metadata/annotations/restored", "value": "yes:it is"}']
    spec = {"target": machine_reference("web"), "virtualMachineSnapshotName": "first", "patches": patches}
    overrides = [{"volumeName": "root", "restoreName": "new-root", "labels": {"a": "b"}}]
    await world.client.create(RESTORE, named(RESTORE, "back", {**spec, "volumeRestoreOverrides": overrides}))
    restored = await world.until(RESTORE, "back", lambda r: (r.get("status") or {}).get("complete"))
    names = {r["volumeName"]: r["persistentVolumeClaim"] for r in restored["status"]["restores"]}
    assert names == {"root": "new-root", "data": f"restore-{restored['metadata']['uid']}-data"}
    assert (await world.disk(names["data"])).read_bytes()[:8] == b"web data"
    vm = await world.until(VM, "web", lambda m: "restoreInProgress" not in m["status"])
    assert vm["metadata"]["annotations"]["restored"] == "yes:it is"
    claim = await world.client.get(PVC, "default", "new-root")
    assert claim["metadata"]["labels"]["a"] == "b"
    assert claim["metadata"]["ownerReferences"][0]["uid"] == vm["metadata"]["uid"]
    # what was there before is not of the machine's templates, and stays
    assert (await world.disk("web-data")).read_bytes()[:11] == b"overwritten"

    await world.client.delete(VM, "default", "web")
    await gone(world, PVC, "new-root")
    await world.client.create(RESTORE, named(RESTORE, "other", {
        "target": machine_reference("other"), "virtualMachineSnapshotName": "first",
        "volumeRestorePolicy": "PrefixTargetName", "volumeOwnershipPolicy": "None",
    }))  # fmt: skip
    await world.until(RESTORE, "other", lambda r: (r.get("status") or {}).get("complete"))
    assert (await world.disk("other-root")).read_bytes()[:8] == b"web root"
    assert not (await world.client.get(PVC, "default", "other-root"))["metadata"].get("ownerReferences")

    await world.client.delete(SNAPSHOT, "default", "first")
    await gone(world, SNAPSHOT, "first")
    for _ in range(200):
        if not [v for v in world.pools["default"].volumes() if v.snapshot]:
            break
        await asyncio.sleep(0.05)
    assert not [v for v in world.pools["default"].volumes() if v.snapshot]


async def test_in_place_keeps_the_names_and_loses_nothing_of_other_machines(world: World) -> None:
    await a_machine(world)
    await take(world, "first", deletionPolicy="Retain")
    (await world.disk("web-data")).write_bytes(b"overwritten".ljust(8 << 20, b"\0"))
    before = (await world.client.get(PVC, "default", "web-data"))["metadata"]["uid"]
    spec = {"target": machine_reference("web"), "virtualMachineSnapshotName": "first", "volumeRestorePolicy": "InPlace"}
    await world.client.create(RESTORE, named(RESTORE, "back", spec))
    await world.until(RESTORE, "back", lambda r: (r.get("status") or {}).get("complete"))
    claim = await world.client.get(PVC, "default", "web-data")
    assert claim["metadata"]["uid"] != before
    assert (await world.disk("web-data")).read_bytes()[:8] == b"web data"
    await world.client.delete(SNAPSHOT, "default", "first")
    await gone(world, SNAPSHOT, "first")
    contents = (await world.client.list(CONTENT, Selection("default"))).items
    assert len(contents) == 1, "retained content"


async def test_a_snapshot_that_cannot_be_taken_fails_at_its_deadline_and_leaves_nothing(world: World) -> None:
    await a_machine(world, disks=("root",))
    # its claim is there, its disk is not: the host tries again and again
    path = await world.disk("web-root")
    path.rename(path.with_name("hidden"))
    taken = await take(world, "late", failureDeadline="2s")
    assert taken["status"]["phase"] == "Failed"
    assert taken["status"]["error"]["message"].startswith("snapshot deadline exceeded")
    vm = await world.until(VM, "web", lambda m: "snapshotInProgress" not in m["status"])
    assert vm["spec"]["runStrategy"] == "Halted"
    for _ in range(200):
        left = [*(await world.client.list(VS)).items, *(await world.client.list(CONTENT)).items]
        if not left and not world.pools["default"].partials():
            break
        await asyncio.sleep(0.05)
    assert not left
    assert not world.pools["default"].partials()


async def test_a_clone_filters_and_renames(world: World) -> None:
    source = await a_machine(world, disks=("root",))
    labels = {"keep/a": "1", "drop/b": "2"}
    await world.client.patch(VM, "default", "web", {"metadata": {"labels": labels}})
    spec = {"source": machine_reference("web"), "target": machine_reference("twin"), "labelFilters": ["*", "!drop/*"]}
    await world.client.create(register.MACHINE_CLONE, named(register.MACHINE_CLONE, "twins", spec))
    made = await world.until(
        register.MACHINE_CLONE, "twins", lambda c: (c.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    )
    assert made["status"]["phase"] == "Succeeded", made["status"]
    twin = await world.client.get(VM, "default", "twin")
    assert "keep/a" in twin["metadata"]["labels"]
    assert "drop/b" not in twin["metadata"]["labels"]
    ours, theirs = (m["spec"]["template"]["spec"]["domain"]["firmware"] for m in (source, twin))
    assert ours["uuid"] != theirs["uuid"]
    claim = twin["spec"]["template"]["spec"]["volumes"][0]["dataVolume"]["name"]
    assert (await world.disk(claim)).read_bytes()[:8] == b"web root"
    for _ in range(200):
        left = [*(await world.client.list(SNAPSHOT)).items, *(await world.client.list(RESTORE)).items]
        if not left:
            break
        await asyncio.sleep(0.05)
    assert not left


async def test_an_export_is_pending_while_its_claim_is_missing_and_goes_in_time(world: World) -> None:
    export = register.MACHINE_EXPORT
    source = {"apiGroup": "", "kind": "PersistentVolumeClaim", "name": "data"}
    await world.client.create(export, named(export, "out", {"source": source, "ttlDuration": "4s"}))
    found = await world.until(export, "out", lambda e: (e.get("status") or {}).get("phase") == "Pending")
    assert condition(found, "Ready")["reason"] == "NotFound"
    await world.data_volume("data", {"blank": {}})
    found = await world.until(export, "out", lambda e: (e.get("status") or {}).get("phase") == "Ready")
    formats = {f["format"] for f in found["status"]["links"]["external"]["volumes"][0]["formats"]}
    assert formats == {"raw", "gzip"}
    await gone(world, export, "out")
    await gone(world, register.SECRET, "export-token-out")


async def test_a_disk_and_its_manifests_are_downloaded_with_the_token_only(world: World, tmp_path: Path) -> None:
    """As `virtctl vmexport` does it; where VIRTCTL names one, that program too."""
    await a_machine(world, disks=("root",))
    wanted = (await world.disk("web-root")).read_bytes()
    in_use: set[str] = set()
    server = Server(NoMachines(), exports=Exports(world.pools.values(), in_use.__contains__))
    port = await server.open("127.0.0.1", 0, None)
    try:
        address: Object = {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}
        address["addresses"] = [{"type": "InternalIP", "address": "127.0.0.1"}]
        await world.client.patch(register.NODE, None, HOST, {"status": address}, "status")
        export = register.MACHINE_EXPORT
        await world.client.create(export, named(export, "out", {"source": machine_reference("web")}))
        found = await world.until(export, "out", lambda e: (e.get("status") or {}).get("phase") == "Ready")
        secret = await world.client.get(register.SECRET, "default", found["status"]["tokenSecretRef"])
        own = {"x-kubevirt-export-token": base64.b64decode(secret["data"]["token"]).decode()}
        client = DirectClient(load(world.kubeconfig))
        try:
            for headers in ({"x-kubevirt-export-token": "wrong"}, {}):
                with pytest.raises(ApiError) as refused:
                    await fetched(client, disk_path(found, "raw"), headers)
                assert refused.value.code == 401
            assert await fetched(client, disk_path(found, "raw"), own) == wanted
            assert gzip.decompress(await fetched(client, disk_path(found, "gzip"), own)) == wanted
            listed = yaml.safe_load(await fetched(client, exported.path_of(found, "external/manifests/all"), own))
            assert [item["kind"] for item in listed["items"]] == ["ConfigMap", "VirtualMachine", "DataVolume"]
            in_use.add(str(await world.disk("web-root")))
            with pytest.raises(ApiError, match="in use"):
                await fetched(client, disk_path(found, "raw"), own)
            in_use.clear()
        finally:
            await client.close()
        if "VIRTCTL" in os.environ:
            target = tmp_path / "root.img.gz"
            await virtctl(world, "vmexport", "download", "out", "--volume", "web-root", "--output", str(target))
            assert gzip.decompress(target.read_bytes()) == wanted
    finally:
        await server.close()


class NoMachines:
    """A host without machines, for the agent's server."""

    knows_machines = True

    def machine(self, namespace: str, name: str) -> None:
        return None

    async def metrics(self) -> bytes:
        return b""


def disk_path(export: Object, format: str) -> str:
    """The path of its only disk."""
    (volume,) = export["status"]["links"]["external"]["volumes"]
    url = next(f["url"] for f in volume["formats"] if f["format"] == format)
    return str(url[url.index("/api/") :])


async def fetched(client: DirectClient, path: str, headers: Object) -> bytes:
    return b"".join([chunk async for chunk, _ in client.download(path, headers)])


async def virtctl(world: World, *words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        os.environ["VIRTCTL"], *words, "--insecure", "--keep-vme",
        env={"KUBECONFIG": str(world.kubeconfig), "HOME": str(world.kubeconfig.parent), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert await asyncio.wait_for(process.wait(), 60) == 0


# pure parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "key", "kept"),
    [
        ([], "a/b", True),
        (["a/*"], "a/b", True),
        (["a/*"], "c", False),
        (["*", "!a/*"], "a/b", False),
        (["!x"], "y", True),
    ],
)  # fmt: skip
def test_filters_of_a_clone(filters: list[str], key: str, kept: bool) -> None:
    assert cloning.is_selected(key, filters) is kept


@pytest.mark.parametrize(
    ("policy", "age", "action"),
    [
        ("StopTarget", 0, "stop-target"), ("FailImmediate", 0, "fail"), ("WaitEventually", 10_000, "wait"),
        ("WaitGracePeriod", 0, "wait"), ("WaitGracePeriod", 299, "wait"), ("WaitGracePeriod", 301, "fail"),
    ],
)  # fmt: skip
def test_what_a_restore_does_while_its_target_runs(policy: str, age: int, action: str) -> None:
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    made = (now - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%SZ")
    restore = {
        "metadata": {"name": "r", "uid": "u", "namespace": "d", "creationTimestamp": made},
        "spec": {"target": machine_reference("m"), "virtualMachineSnapshotName": "s", "targetReadinessPolicy": policy},
        "status": {"restores": []},
    }
    view = restoring.View(
        restore=restore, snapshot={"status": {"readyToUse": True}}, content={"spec": {}}, now=now,
        target={"metadata": {}, "status": {machine_locks.RESTORE: "r"}}, instance={"metadata": {}},
    )  # fmt: skip
    assert restoring.decide_step(view).action == action


def test_one_lock_at_a_time_and_whoever_has_it_keeps_it() -> None:
    def obj(kind: str, name: str, made: str, **status: Any) -> Object:
        field = "source" if kind == "s" else "target"
        metadata = {"name": name, "namespace": "d", "creationTimestamp": made}
        return {"metadata": metadata, "spec": {field: machine_reference("web")}, "status": status}

    vm: Object = {"metadata": {"namespace": "d", "name": "web"}, "status": {}}
    old, new = obj("s", "old", "1"), obj("s", "new", "2")
    restore = obj("r", "back", "0")
    assert machine_locks.machine_locks(vm, [new, old], []) == {"snapshotInProgress": "old"}
    assert machine_locks.machine_locks(vm, [new, obj("s", "old", "1", phase="Failed")], []) == {
        "snapshotInProgress": "new"
    }
    held = {**vm, "status": {"restoreInProgress": "back"}}
    assert machine_locks.machine_locks(held, [old], [restore]) == {"restoreInProgress": "back"}
    assert machine_locks.machine_locks(held, [old], [obj("r", "back", "0", complete=True)]) == {
        "snapshotInProgress": "old"
    }


def test_a_restored_machine_keeps_its_strategy_for_later_and_refuses_patches_that_do_not_fit() -> None:
    kept = {"metadata": {"uid": "u", "name": "web"}, "spec": {"runStrategy": "Always", "template": {"spec": {}}}}
    content = {"spec": {"source": {"virtualMachine": kept}}}
    restore: Object = {
        "metadata": {"name": "r", "uid": "x", "namespace": "d"},
        "spec": {"target": machine_reference("other")},
        "status": {"restores": []},
    }
    made = restore_plan.restored_machine(restore, content, None, set())
    assert made["spec"]["runStrategy"] == "Halted"
    assert made["metadata"]["annotations"][restore_plan.RUN_STRATEGY] == "Always"
    restore["spec"]["patches"] = ['{"op": "remove", "path": "/spec/template/spec/nothing"}']
    with pytest.raises(ValueError, match=r"spec\.patches"):
        restore_plan.restored_machine(restore, content, None, set())


def test_the_deadline_is_five_minutes_or_as_said_or_never() -> None:
    def made(**spec: Any) -> Object:
        return {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec}

    begun = datetime(2026, 1, 1, tzinfo=UTC)
    assert snapshots.deadline_of(made()) == begun + timedelta(minutes=5)
    assert snapshots.deadline_of(made(failureDeadline="1m30s")) == begun + timedelta(seconds=90)
    assert snapshots.deadline_of(made(failureDeadline="0")) is None


def test_copies_are_given_up_before_what_they_write_is_taken_away(tmp_path: Path) -> None:
    """Who discards waits for the thread that copies: a descriptor closed under it could be another file's."""
    pool = Pool(tmp_path / "pool")
    source = pool.create(VolumeSpec(uid="v", size_bytes=8 << 20))
    source.path.write_bytes(bytes([1]) * (8 << 20))
    stop, asked = threading.Event(), threading.Event()

    def is_stopped() -> bool:
        asked.set()
        return stop.wait(5)

    made = Instant([Copy(pool, source, VolumeSpec(uid="s", size_bytes=8 << 20, snapshot=True))], is_stopped)
    made.begin()
    with ThreadPoolExecutor() as threads:
        taking = threads.submit(made.take)
        assert asked.wait(5)
        discarding = threads.submit(made.discard)
        assert not discarding.done()
        stop.set()
        assert isinstance(taking.exception(10), PoolError)
        discarding.result(10)
    assert not pool.partials()


def test_copies_of_one_moment_are_all_or_none(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool")
    sources = [pool.create(VolumeSpec(uid=f"v{n}", size_bytes=1 << 20)) for n in range(3)]
    for number, source in enumerate(sources):
        source.path.write_bytes(bytes([number]) * (1 << 20))
    specs = [VolumeSpec(uid=f"s{n}", size_bytes=1 << 20, snapshot=True) for n in range(3)]
    copies = [Copy(pool, source, spec) for source, spec in zip(sources, specs, strict=True)]
    given_up = Instant(copies, lambda: True)
    given_up.begin()
    with contextlib.suppress(PoolError):
        given_up.take()
    given_up.discard()
    assert not pool.partials()
    made = Instant(copies)
    made.begin()
    made.take()
    assert [v.path.read_bytes()[0] for v in made.publish()] == [0, 1, 2]
    assert pool.usage().promised_bytes == (3 << 20) + sum(v.allocated_bytes for v in pool.volumes() if v.snapshot)
