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
