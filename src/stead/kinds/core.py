"""Kinds of Kubernetes' core group, and the small types that other modules borrow from it.

Read by every room as typed views; written by nobody here. Pure data. Source: Kubernetes API v1 (1.36).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import field

from stead.kinds.meta import (
    ATOMIC,
    MERGED_SET,
    Int32,
    Int64,
    IntOrString,
    KubernetesObject,
    MicroTime,
    Model,
    Quantity,
    RawObject,
    Time,
    described,
    keyed_by,
    merged_by,
)


class Namespace(KubernetesObject, kw_only=True):
    """A scope for names, roles and quotas. Deleting it deletes everything inside."""

    spec: NamespaceSpec | None = None
    status: NamespaceStatus | None = None


class NamespaceSpec(Model, kw_only=True):
    """What must happen before a namespace goes away."""

    finalizers: Annotated[
        list[str] | None, described("who must finish before the namespace is removed; `kubernetes` means its contents")
    ] = None


class NamespaceStatus(Model, kw_only=True):
    """How far the life of a namespace has come."""

    phase: Annotated[str | None, described("Active or Terminating")] = None
    conditions: Annotated[list[NamespaceCondition] | None, merged_by("type")] = None


class NamespaceCondition(Model, kw_only=True):
    """Why a namespace is not gone yet, or not healthy."""

    type: str
    status: Annotated[str, described("True, False or Unknown")]
    last_transition_time: Time | None = None
    reason: str | None = None
    message: str | None = None


class Node(KubernetesObject, kw_only=True):
    """A host that runs machines. Its agent creates it and keeps its status true."""

    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class NodeSpec(Model, kw_only=True):
    """What an administrator wants of a host."""

    pod_cidr: str | None = field(default=None, name="podCIDR")
    pod_cid_rs: Annotated[list[str] | None, described("address ranges routed to this host"), MERGED_SET] = field(
        default=None, name="podCIDRs"
    )
    provider_id: str | None = field(default=None, name="providerID")
    unschedulable: Annotated[bool | None, described("true keeps new machines away (cordon)")] = None
    taints: list[Taint] | None = None
    external_id: str | None = field(default=None, name="externalID")
    config_source: RawObject | None = None


class Taint(Model, kw_only=True):
    """Keeps machines that do not tolerate it off a host."""

    key: str
    effect: Annotated[str, described("NoSchedule, PreferNoSchedule or NoExecute")]
    value: str | None = None
    time_added: Time | None = None


class NodeStatus(Model, kw_only=True):
    """What a host reports about itself."""

    capacity: Annotated[dict[str, Quantity] | None, described("all that the host has, by resource name")] = None
    allocatable: Annotated[dict[str, Quantity] | None, described("what machines may use of it")] = None
    phase: str | None = None
    conditions: Annotated[list[NodeCondition] | None, merged_by("type")] = None
    addresses: Annotated[list[NodeAddress] | None, merged_by("type")] = None
    daemon_endpoints: NodeDaemonEndpoints | None = None
    node_info: NodeSystemInfo | None = None
    images: list[ContainerImage] | None = None
    volumes_in_use: list[str] | None = None
    volumes_attached: list[AttachedVolume] | None = None
    config: RawObject | None = None
    runtime_handlers: list[NodeRuntimeHandler] | None = None
    features: RawObject | None = None
    declared_features: list[str] | None = None


class NodeCondition(Model, kw_only=True):
    """One aspect of a host's health."""

    type: Annotated[
        str, described("Ready, MemoryPressure, DiskPressure, PIDPressure, NetworkUnavailable, or one of ours")
    ]
    status: str
    last_heartbeat_time: Time | None = None
    last_transition_time: Time | None = None
    reason: str | None = None
    message: str | None = None


class NodeAddress(Model, kw_only=True):
    """A way to reach a host."""

    type: Annotated[str, described("Hostname, InternalIP, ExternalIP, InternalDNS or ExternalDNS")]
    address: str


class NodeDaemonEndpoints(Model, kw_only=True):
    """Ports of the daemons on a host."""

    kubelet_endpoint: Annotated[DaemonEndpoint | None, described("the agent's HTTPS port")] = None


class DaemonEndpoint(Model, kw_only=True):
    """Port of one daemon."""

    port: Int32 = field(name="Port")


class NodeSystemInfo(Model, kw_only=True):
    """Versions and identity of a host."""

    machine_id: str | None = field(default=None, name="machineID")
    system_uuid: str | None = field(default=None, name="systemUUID")
    boot_id: str | None = field(default=None, name="bootID")
    kernel_version: str | None = None
    os_image: str | None = None
    container_runtime_version: Annotated[
        str | None, described("what runs the machines, for instance `libvirt://9.0.0`")
    ] = None
    kubelet_version: Annotated[str | None, described("version of the agent")] = None
    kube_proxy_version: str | None = None
    operating_system: str | None = None
    architecture: str | None = None
    swap: RawObject | None = None


class ContainerImage(Model, kw_only=True):
    """An image that a host keeps."""

    names: list[str] | None = None
    size_bytes: Int64 | None = None


class AttachedVolume(Model, kw_only=True):
    """A network volume attached to a host."""

    name: str
    device_path: str


class NodeRuntimeHandler(Model, kw_only=True):
    """A runtime handler that a host offers."""

    name: str | None = None
    features: RawObject | None = None


class Secret(KubernetesObject, kw_only=True):
    """Confidential data, base64 in the API."""

    data: Annotated[dict[str, str] | None, described("values, base64")] = None
    string_data: Annotated[dict[str, str] | None, described("values as plain text; write-only, merged into `data`")] = (
        None
    )
    type: Annotated[str | None, described("`Opaque` when empty; fixed after creation")] = None
    immutable: Annotated[bool | None, described("true forbids every later change of the data")] = None


class ConfigMap(KubernetesObject, kw_only=True):
    """Configuration data that is not confidential."""

    data: dict[str, str] | None = None
    binary_data: Annotated[dict[str, str] | None, described("values, base64")] = None
    immutable: bool | None = None


class ServiceAccount(KubernetesObject, kw_only=True):
    """An identity for programs."""

    secrets: Annotated[list[ObjectReference] | None, merged_by("name")] = None
    image_pull_secrets: list[LocalObjectReference] | None = None
    automount_service_account_token: bool | None = None


class LocalObjectReference(Model, kw_only=True):
    """Names an object in the same namespace."""

    name: str | None = None


class ObjectReference(Model, kw_only=True):
    """Names any object, or a part of one."""

    kind: str | None = None
    namespace: str | None = None
    name: str | None = None
    uid: str | None = None
    api_version: str | None = None
    resource_version: str | None = None
    field_path: Annotated[
        str | None, described("the part that is meant, for instance `spec.domain.devices.disks[0]`")
    ] = None


class SecretReference(Model, kw_only=True):
    """Names a Secret in any namespace."""

    name: str | None = None
    namespace: str | None = None


class TypedLocalObjectReference(Model, kw_only=True):
    """Names an object of any kind in the same namespace."""

    kind: str
    name: str
    api_group: str | None = None


class TypedObjectReference(Model, kw_only=True):
    """Names an object of any kind, in another namespace if `namespace` is set."""

    kind: str
    name: str
    api_group: str | None = None
    namespace: str | None = None


class ExecAction(Model, kw_only=True):
    """Runs a command; exit code 0 is success."""

    command: list[str] | None = None


class HTTPGetAction(Model, kw_only=True):
    """Asks for a page; a code from 200 to 399 is success."""

    port: IntOrString
    path: str | None = None
    host: str | None = None
    scheme: str | None = None
    http_headers: list[HTTPHeader] | None = None


class HTTPHeader(Model, kw_only=True):
    """One request header."""

    name: str
    value: str


class TCPSocketAction(Model, kw_only=True):
    """Opens a connection; being accepted is success."""

    port: IntOrString
    host: str | None = None


class PodDNSConfig(Model, kw_only=True):
    """Name servers and search domains on top of, or instead of, those of `dnsPolicy`."""

    nameservers: Annotated[list[str] | None, described("at most 3 addresses")] = None
    searches: Annotated[list[str] | None, described("at most 6 domains")] = None
    options: list[PodDNSConfigOption] | None = None


class PodDNSConfigOption(Model, kw_only=True):
    """One option of resolv.conf."""

    name: str | None = None
    value: str | None = None


class PodResourceClaim(Model, kw_only=True):
    """A claim on a device that a resource driver hands out."""

    name: str
    resource_claim_name: str | None = None
    resource_claim_template_name: str | None = None


class ResourceRequirements(Model, kw_only=True):
    """Compute resources that are asked for and allowed."""

    limits: dict[str, Quantity] | None = None
    requests: dict[str, Quantity] | None = None
    claims: Annotated[list[ResourceClaim] | None, keyed_by("name")] = None


class ResourceClaim(Model, kw_only=True):
    """A device claim that is used here."""

    name: str
    request: str | None = None


class DownwardAPIVolumeFile(Model, kw_only=True):
    """A file made from a field of the machine."""

    path: str
    field_ref: Annotated[ObjectFieldSelector | None, ATOMIC] = None
    resource_field_ref: Annotated[ResourceFieldSelector | None, ATOMIC] = None
    mode: Int32 | None = None


class ObjectFieldSelector(Model, kw_only=True):
    """A field of an object."""

    field_path: str
    api_version: str | None = None


class ResourceFieldSelector(Model, kw_only=True):
    """A resource limit or request."""

    resource: str
    container_name: str | None = None
    divisor: Quantity | None = None


class Event(KubernetesObject, kw_only=True):
    """Something that happened to an object, for people to read. Kept for an hour."""

    involved_object: Annotated[ObjectReference, described("what it happened to"), ATOMIC]
    reason: Annotated[str | None, described("short, CamelCase, for programs")] = None
    message: str | None = None
    source: EventSource | None = None
    first_timestamp: Time | None = None
    last_timestamp: Time | None = None
    count: Int32 | None = None
    type: Annotated[str | None, described("Normal or Warning")] = None
    event_time: MicroTime | None = None
    series: EventSeries | None = None
    action: str | None = None
    related: Annotated[ObjectReference | None, ATOMIC] = None
    reporting_component: str | None = None
    reporting_instance: str | None = None


class EventSource(Model, kw_only=True):
    """Who saw it."""

    component: str | None = None
    host: str | None = None


class EventSeries(Model, kw_only=True):
    """How often it has happened again."""

    count: Int32 | None = None
    last_observed_time: MicroTime | None = None


class EventsV1Event(KubernetesObject, kw_only=True):
    """The same event as the events.k8s.io group words it."""

    event_time: MicroTime | None = None
    series: EventSeries | None = None
    reporting_controller: str | None = None
    reporting_instance: str | None = None
    action: str | None = None
    reason: str | None = None
    regarding: Annotated[ObjectReference | None, ATOMIC] = None
    related: Annotated[ObjectReference | None, ATOMIC] = None
    note: str | None = None
    type: str | None = None
    deprecated_source: EventSource | None = None
    deprecated_first_timestamp: Time | None = None
    deprecated_last_timestamp: Time | None = None
    deprecated_count: Int32 | None = None
