"""A little world for admission's unit tests: objects in a dictionary, and short ways to make machines."""

from __future__ import annotations

from typing import Any

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.server.admission import AdmissionRequest, admit
from stead.server.admission.gates import enabled_gates

Json = dict[str, Any]
NAMESPACE = "prod"
_KINDS = {r.kind: r for r in register.ALL}
OWN = "system:serviceaccount:kubevirt:kubevirt-controller"


class Objects:
    """The `Lookup` of the tests."""

    def __init__(self, *objects: Json, configuration: Json | None = None) -> None:
        self.objects = list(objects)
        self.settings = configuration or {}

    def get(self, resource: Resource, namespace: str, name: str) -> Json | None:
        for obj in self.list(resource, namespace):
            if obj["metadata"]["name"] == name:
                return obj
        return None

    def list(self, resource: Resource, namespace: str) -> list[Json]:
        return [
            o for o in self.objects
            if o["kind"] == resource.kind and o["metadata"].get("namespace", "") in ("", namespace)
        ]  # fmt: skip

    def configuration(self) -> Json:
        return self.settings

    def gates(self) -> frozenset[str]:
        return enabled_gates(self.settings)


def thing(kind: str, name: str, spec: Json | None = None, **metadata: Any) -> Json:
    """An object of the tests' namespace."""
    return {"kind": kind, "metadata": {"name": name, "namespace": NAMESPACE, **metadata}, "spec": spec or {}}


def machine(spec: Json | None = None, **template_spec: Any) -> Json:
    """A VirtualMachine; `template_spec` are fields of its template's spec."""
    body = {"domain": {"devices": {}, "memory": {"guest": "1Gi"}}, **template_spec}
    return thing("VirtualMachine", "web", {"runStrategy": "Always", "template": {"spec": body}, **(spec or {})})


def instance(**spec: Any) -> Json:
    """A VirtualMachineInstance; `spec` are fields of its spec."""
    body = {"domain": {"devices": {}, "memory": {"guest": "1Gi"}}, **spec}
    return thing("VirtualMachineInstance", "web", body)


def send(obj: Json, old: Json | None = None, *, world: Objects | None = None, user: str = "ann", sub: str = "") -> Json:
    """What is stored of an object that `user` creates, or updates if there is an `old` one."""
    request = AdmissionRequest(
        operation="UPDATE" if old else "CREATE", resource=_KINDS[obj["kind"]], namespace=NAMESPACE,
        obj=obj, old=old, user=user, subresource=sub,
    )  # fmt: skip
    return admit(request, world or Objects())[0]
