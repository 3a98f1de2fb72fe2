"""What admission may look up: objects in memory, the cluster's configuration and its feature gates.

Made by `verbs`; implements `admission.contract.Lookup` over the registry. Synchronous, never blocks.
"""

from __future__ import annotations

from typing import Any

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.server.admission.gates import enabled_gates
from stead.server.registry import Registry

Json = dict[str, Any]


class MemoryLookup:
    """See the module's prose."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def get(self, resource: Resource, namespace: str, name: str) -> Json | None:
        """One object, or None."""
        return self._registry.peek(resource, namespace, name)

    def list(self, resource: Resource, namespace: str) -> list[Json]:
        """All objects of a kind in a namespace ("" = all)."""
        return self._registry.peek_all(resource, namespace)

    def configuration(self) -> Json:
        """`spec.configuration` of the KubeVirt object."""
        for obj in self._registry.peek_all(register.KUBEVIRT):
            found: Json = (obj.get("spec") or {}).get("configuration") or {}
            return found
        return {}

    def gates(self) -> frozenset[str]:
        """Names of the enabled feature gates."""
        return frozenset(enabled_gates(self.configuration()))
