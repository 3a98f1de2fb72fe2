"""objectgraph: what a machine or an instance needs to exist elsewhere, as a tree.

Behind the gate ObjectGraph. Shape, order and labels are the recorded ones (`objectgraph-*`); a machine has no launcher
pod here, so an instance's tree starts with its volumes. Pure.
"""

from __future__ import annotations

from stead.server.admission.matchers import BOTH, resource_of
from stead.server.lifecycle.contract import Decision, Json, bad_request, found_instance, found_machine

_LABEL = "kubevirt.io/dependency-type"


def decide_machine_graph(name: str, machine: Json | None, enabled: bool) -> Decision:
    """The tree of a VirtualMachine."""
    _require(enabled)
    machine = found_machine(machine, name)
    namespace = str(machine["metadata"].get("namespace") or "")
    children = _matched(machine, namespace)
    children += _needed(machine["spec"]["template"].get("spec") or {}, namespace)
    return Decision(code=200, body=_node("kubevirt.io", "VirtualMachine", name, namespace, "compute", children))


def decide_instance_graph(name: str, instance: Json | None, enabled: bool) -> Decision:
    """The tree of a VirtualMachineInstance."""
    _require(enabled)
    instance = found_instance(instance, name)
    namespace = str(instance["metadata"].get("namespace") or "")
    children = _needed(instance["spec"], namespace)
    body = _node("kubevirt.io", "VirtualMachineInstance", name, namespace, "compute", children)
    return Decision(code=200, body=body)


def _require(enabled: bool) -> None:
    if not enabled:
        raise bad_request("ObjectGraph feature gate not enabled: Unable to return object graph.")


def _node(group: str, kind: str, name: str, namespace: str, role: str, children: list[Json] | None = None) -> Json:
    """One node; `namespace` "" for a cluster-scoped object."""
    reference = {"apiGroup": group, "kind": kind, "name": name, **({"namespace": namespace} if namespace else {})}
    node: Json = {"objectReference": reference, "labels": {_LABEL: role}}
    if children:
        node["children"] = children
    return node


def _matched(machine: Json, namespace: str) -> list[Json]:
    """Instancetype and preference with the revisions that pin them."""
    nodes: list[Json] = []
    status: Json = machine.get("status") or {}
    for matched in BOTH:
        matcher = machine["spec"].get(matched.field)
        resource = resource_of(matched, matcher) if matcher else None
        if not matcher or resource is None:
            continue
        home = namespace if resource.namespaced else ""
        node = _node(resource.group, resource.kind, str(matcher.get("name")), home, "config")
        nodes.append({**node, "optional": True})
        pinned = (status.get(f"{matched.field}Ref") or {}).get("controllerRevisionRef") or {}
        revision = pinned.get("name") or matcher.get("revisionName")
        if revision:
            nodes.append(_node("apps", "ControllerRevision", str(revision), namespace, "config"))
    return nodes


def _needed(spec: Json, namespace: str) -> list[Json]:
    """Secrets of access credentials, then what the volumes read from."""
    nodes: list[Json] = []
    for credential in spec.get("accessCredentials") or ():
        for body in credential.values():
            secret = ((body or {}).get("source") or {}).get("secret") or {}
            if secret.get("secretName"):
                nodes.append(_node("", "Secret", str(secret["secretName"]), namespace, "config"))
    sources = (
        ("dataVolume", "name", "cdi.kubevirt.io", "DataVolume", "storage"),
        ("persistentVolumeClaim", "claimName", "", "PersistentVolumeClaim", "storage"),
        ("configMap", "name", "", "ConfigMap", "config"),
        ("secret", "secretName", "", "Secret", "config"),
        ("serviceAccount", "serviceAccountName", "", "ServiceAccount", "config"),
    )
    for volume in spec.get("volumes") or ():
        for source, key, group, kind, role in sources:
            name = (volume.get(source) or {}).get(key)
            if name:
                nodes.append(_node(group, kind, str(name), namespace, role))
    return nodes
