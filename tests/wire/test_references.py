"""Nobody reads a disk, a file or an annotation that is not theirs: references are authorised where they lead."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api_server import running_server

from stead.client.direct import DirectClient
from stead.client.kubeconfig import load
from stead.kinds import register
from stead.kube.errors import ApiError

Object = dict[str, Any]


def disk(name: str, spec: Object, annotations: dict[str, str] | None = None) -> Object:
    metadata = {"name": name, "namespace": "tenant", "annotations": annotations or {}}
    size = {"resources": {"requests": {"storage": "1Gi"}}}
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": metadata,
        "spec": {**spec, "storage": size},
    }


def machine(templates: list[Object], domain: Object | None = None) -> Object:
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "m", "namespace": "tenant"},
        "spec": {
            "runStrategy": "Halted",
            "dataVolumeTemplates": templates,
            "template": {
                "spec": {
                    "domain": {"memory": {"guest": "64Mi"}, "devices": {}, **(domain or {})},
                    "volumes": [{"name": "v", "dataVolume": {"name": each["metadata"]["name"]}} for each in templates],
                }
            },
        },
    }


def source(namespace: str) -> Object:
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataSource",
        "metadata": {"name": "s", "namespace": "tenant"},
        "spec": {"source": {"pvc": {"name": "secret", "namespace": namespace}}},
    }


def claim(annotations: dict[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "namespace": "tenant", "annotations": annotations},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }


PVC_ELSEWHERE = {"source": {"pvc": {"name": "secret", "namespace": "other"}}}
REF_ELSEWHERE = {"sourceRef": {"kind": "DataSource", "name": "s", "namespace": "other"}}
KERNEL = {"firmware": {"kernelBoot": {"container": {"image": "file:///pool/", "initrdPath": "/secret.qcow2"}}}}
TEMPLATE = {"metadata": {"name": "t"}, "spec": {**PVC_ELSEWHERE, "storage": {}}}


def content(kept: Object) -> Object:
    return {
        "apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineSnapshotContent",
        "metadata": {"name": "c", "namespace": "tenant"},
        "spec": {"source": {"virtualMachine": {"metadata": {}, "spec": kept["spec"]}}},
    }  # fmt: skip


def patching(resource: Any, patch: str) -> Object:
    """A restore or clone that patches the machine it makes."""
    target = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "t"}
    spec: Object = {"target": target, "virtualMachineSnapshotName": "s", "patches": [patch]}
    if resource is register.MACHINE_CLONE:
        spec = {"source": {**target, "name": "s"}, "target": target, "patches": [patch]}
    return {"apiVersion": resource.api_version, "kind": resource.kind,
            "metadata": {"name": "p", "namespace": "tenant"}, "spec": spec}  # fmt: skip


#: what our controllers would write in their own name, and therefore do not take from anybody
PATCHES = (
    '{"op": "add", "path": "/spec/template/spec/domain/firmware/kernelBoot", "value": {}}',
    '{"op": "add", "path": "/spec/template/spec/domain", "value": {"firmware": {"kernelBoot": {}}}}',
    '{"op": "add", "path": "/spec/dataVolumeTemplates", "value": []}',
    '{"op": "add", "path": "/spec/template/metadata/annotations/stead.io~1file", "value": "x"}',
    '{"op": "add", "path": "/spec/template", "value": {"metadata": {"annotations": {"stead.io/file": "x"}}}}',
)

REFUSED: list[tuple[str, Any, Object, str]] = [
    ("a disk of another namespace", register.DATA_VOLUME, disk("d", PVC_ELSEWHERE), "datavolumes/source"),
    ("a data source elsewhere", register.DATA_VOLUME, disk("d", REF_ELSEWHERE), "datavolumes/source"),
    ("a template's disk elsewhere", register.VIRTUAL_MACHINE, machine([TEMPLATE]), "datavolumes/source"),
    ("one's own data source that points elsewhere", register.DATA_SOURCE, source("other"), "datavolumes/source"),
    ("a file of a pool", register.DATA_VOLUME,
     disk("d", {"source": {"blank": {}}}, {"stead.io/file": "other-machine.qcow2", "stead.io/adopt": "true"}),
     "administrators"),
    ("a pool's file as a kernel", register.VIRTUAL_MACHINE, machine([], KERNEL), "administrators"),
    ("what only the plane says", register.PERSISTENT_VOLUME_CLAIM,
     claim({"stead.io/source": '{"kind":"pvc","namespace":"other","name":"secret"}'}), "administrators"),
    ("what only the agent says", register.PERSISTENT_VOLUME_CLAIM,
     claim({"stead.io/volume-handle": "pool/other"}), "administrators"),
    ("a snapshot that says of itself where it is", register.VOLUME_SNAPSHOT,
     {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
      "metadata": {"name": "s", "namespace": "tenant", "annotations": {"stead.io/host": "h1"}},
      "spec": {"source": {"persistentVolumeClaimName": "c"}}}, "administrators"),
    ("a kept machine whose restore would name a pool's file", register.MACHINE_SNAPSHOT_CONTENT,
     content(machine([], KERNEL)), "administrators"),
    ("a kept machine whose restore would copy another's disk", register.MACHINE_SNAPSHOT_CONTENT,
     content(machine([TEMPLATE])), "datavolumes/source"),
]  # fmt: skip


async def test_a_tenant_reads_only_what_is_theirs() -> None:
    async with running_server() as server:
        for name in ("tenant", "other"):
            await server.client.create(
                register.NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            )
        await server.client.create(register.ROLE_BINDING, binding("tenant", "admin"))
        client = DirectClient(load(server.kubeconfig_for(server.certificate("ann"), "ann")))
        try:
            for what, resource, obj, told in REFUSED:
                with pytest.raises(ApiError, match=told) as refused:
                    await client.create(resource, obj)
                assert refused.value.code == 403, what
            for resource in (register.MACHINE_RESTORE, register.MACHINE_CLONE):
                for patch in PATCHES:
                    with pytest.raises(ApiError, match="a patch may not touch") as refused:
                        await client.create(resource, patching(resource, patch))
                    assert refused.value.code == 422, patch
                harmless = '{"op": "add", "path": "/spec/template/spec/hostname", "value": "x"}'
                await client.create(resource, patching(resource, harmless))
            # The control: the same tenant, given the right at the source, may clone; within the namespace always.
            await client.create(
                register.DATA_VOLUME, disk("own", {"source": {"pvc": {"name": "x", "namespace": "tenant"}}})
            )
            await server.client.create(register.ROLE_BINDING, binding("other", "edit"))
            await client.create(register.DATA_VOLUME, disk("allowed", PVC_ELSEWHERE))
            await client.create(register.DATA_SOURCE, source("other"))
        finally:
            await client.close()


def binding(namespace: str, role: str) -> Object:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"ann-{role}", "namespace": namespace},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": "User", "name": "ann"}],
    }
