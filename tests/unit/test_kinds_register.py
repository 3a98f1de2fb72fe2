"""The register, the schemas behind it, and the definitions made from it."""

from __future__ import annotations

import msgspec
import pytest

from stead.kinds import register
from stead.kinds.core import Node
from stead.kinds.crds import custom_resource_definitions
from stead.kinds.events import core_from_events_v1, events_v1_from_core
from stead.kinds.machine import VirtualMachine
from stead.kinds.resource import Resource
from stead.kube import schema


def test_a_kind_is_found_by_name_and_by_any_served_version() -> None:
    assert register.resource_for("VirtualMachine", "kubevirt.io") is register.VIRTUAL_MACHINE
    for version in ("v1", "v1alpha3"):
        assert register.find("kubevirt.io", version, "virtualmachines") is register.VIRTUAL_MACHINE
    assert register.VIRTUAL_MACHINE.api_version == "kubevirt.io/v1"
    assert register.find("", "v1", "configmaps") is register.CONFIG_MAP


@pytest.mark.parametrize(
    ("group", "version", "plural"),
    [
        ("kubevirt.io", "v1", "virtualmachineinstancereplicasets"),
        ("export.kubevirt.io", "v1alpha1", "virtualmachineexports"),
        ("instancetype.kubevirt.io", "v1", "virtualmachineinstancetypes"),
        ("", "v1", "pods"),
        ("authentication.k8s.io", "v1", "tokenrequests"),
        ("kubevirt.io", "v2", "virtualmachines"),
    ],
)
def test_what_is_not_served_is_not_found(group: str, version: str, plural: str) -> None:
    assert register.find(group, version, plural) is None


def test_an_unknown_kind_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        register.resource_for("VirtualMachinePool", "pool.kubevirt.io")


def test_groups_name_every_version_with_the_preferred_one_first() -> None:
    groups = register.groups()
    assert groups["kubevirt.io"] == ("v1", "v1alpha3")
    assert groups["cdi.kubevirt.io"] == ("v1beta1",)
    assert groups["upload.cdi.kubevirt.io"] == ("v1beta1",)
    assert groups[""] == ("v1",)


def test_no_two_kinds_share_a_path_or_a_short_name() -> None:
    paths = [(r.group, v, r.plural) for r in register.ALL for v in r.versions]
    assert len(paths) == len(set(paths))
    stored = [r for r in register.ALL if r is not register.EVENTS_EVENT]
    names = [name for r in stored for name in {*r.short_names, r.singular, r.plural}]
    assert len(names) == len(set(names))


def test_paths_follow_scope_and_group() -> None:
    assert register.NODE.path(None, "h1") == "/api/v1/nodes/h1"
    vm = register.VIRTUAL_MACHINE
    assert vm.path("a", "b", "status") == "/apis/kubevirt.io/v1/namespaces/a/virtualmachines/b/status"


def test_an_instance_has_no_status_subresource_and_a_machine_has() -> None:
    assert register.VIRTUAL_MACHINE.status_subresource
    assert not register.VIRTUAL_MACHINE_INSTANCE.status_subresource


@pytest.mark.parametrize("resource", register.ALL, ids=lambda r: f"{r.kind}.{r.group}")
def test_every_kind_has_a_schema_that_describes_itself(resource: Resource) -> None:
    made = schema.schema_from_struct(resource.struct)
    assert made["description"]
    assert {"apiVersion", "kind", "metadata"} <= set(made["properties"])
    assert resource.kind in resource.struct.__name__ or resource is register.EVENTS_EVENT


MACHINE = {
    "apiVersion": "kubevirt.io/v1",
    "kind": "VirtualMachine",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "runStrategy": "Always",
        "dataVolumeTemplates": [
            {
                "metadata": {"name": "root", "labels": {"a": "b"}},
                "spec": {
                    "source": {"http": {"url": "https://x/y.img", "checksum": "sha256:00"}},
                    "storage": {"resources": {"requests": {"storage": "10Gi"}}},
                },
            }
        ],
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "domain": {
                    "cpu": {"cores": 2, "dedicatedCpuPlacement": True},
                    "memory": {"guest": "1Gi"},
                    "devices": {
                        "disks": [{"name": "root", "disk": {"bus": "virtio"}, "dedicatedIOThread": True}],
                        "interfaces": [{"name": "default", "masquerade": {}, "ports": [{"port": 80}]}],
                        "tpm": {},
                    },
                    "firmware": {"bootloader": {"efi": {"secureBoot": False}}},
                },
                "networks": [{"name": "default", "pod": {"vmIPv6NetworkCIDR": "fd10:0:2::/120"}}],
                "volumes": [{"name": "root", "dataVolume": {"name": "root"}}],
                "livenessProbe": {"httpGet": {"port": "http"}},
            },
        },
    },
}


def test_a_machine_with_all_sorts_of_fields_is_kept_whole() -> None:
    made = schema.schema_from_struct(VirtualMachine)
    kept, unknown = schema.prune(made, MACHINE)
    assert unknown == []
    assert kept == MACHINE
    assert schema.validate(made, schema.default(made, kept)) == []


def test_an_unknown_field_is_named_and_a_wrong_type_refused() -> None:
    made = schema.schema_from_struct(VirtualMachine)
    domain = {"devices": {}, "cpu": {"cores": "2"}}
    spec = {"runStrategy": "Always", "sped": 1, "template": {"spec": {"domain": domain}}}
    _, unknown = schema.prune(made, {"spec": spec})
    assert unknown == ["spec.sped"]
    causes = schema.validate(made, {"spec": spec})
    assert any(c["field"] == "spec.template.spec.domain.cpu.cores" for c in causes)


def test_a_typed_view_reads_awkward_names_and_ignores_strangers() -> None:
    view = msgspec.convert(MACHINE | {"stranger": 1}, VirtualMachine)
    assert view.spec.template.spec is not None
    networks = view.spec.template.spec.networks
    assert networks
    assert networks[0].pod
    assert networks[0].pod.vm_ipv6_network_cidr == "fd10:0:2::/120"
    node = msgspec.convert({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 6444}}}}, Node)
    assert node.status
    assert node.status.daemon_endpoints
    assert node.status.daemon_endpoints.kubelet_endpoint
    assert node.status.daemon_endpoints.kubelet_endpoint.port == 6444


def test_lists_of_built_in_kinds_say_how_they_merge() -> None:
    conditions = schema.schema_from_struct(Node)["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-patch-merge-key"] == "type"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_definitions_stand_for_our_own_stored_kinds_only() -> None:
    definitions = custom_resource_definitions(schema.schema_from_struct)
    names = [d["metadata"]["name"] for d in definitions]
    assert "virtualmachines.kubevirt.io" in names
    assert "network-attachment-definitions.k8s.cni.cncf.io" in names
    assert not any(n.startswith(("configmaps", "nodes", "uploadtokenrequests")) for n in names)
    assert names == sorted(names)


def test_the_machines_definition_has_both_versions_and_stores_one() -> None:
    definitions = custom_resource_definitions(schema.schema_from_struct)
    machine = next(d for d in definitions if d["metadata"]["name"] == "virtualmachines.kubevirt.io")
    versions = {v["name"]: v for v in machine["spec"]["versions"]}
    assert [name for name, v in versions.items() if v["storage"]] == ["v1"]
    assert versions["v1alpha3"]["deprecated"]
    assert versions["v1"]["subresources"] == {"status": {}}
    assert [c["name"] for c in versions["v1"]["additionalPrinterColumns"]] == ["Age", "Status", "Ready"]
    established = [c for c in machine["status"]["conditions"] if c["type"] == "Established"]
    assert established[0]["status"] == "True"


def test_an_event_survives_the_way_through_its_other_face() -> None:
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "VirtualMachine", "name": "web"},
        "message": "hello",
        "source": {"component": "c"},
        "count": 3,
        "reportingComponent": "c",
    }
    other = events_v1_from_core(event)
    assert other["regarding"]["name"] == "web"
    assert other["note"] == "hello"
    assert "message" not in other
    assert core_from_events_v1(other) == event
