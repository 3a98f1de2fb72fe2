"""What admission takes and asks: the request, and a read-only view of the objects that the server holds in memory.

The server builds one `AdmissionRequest` per write, after pruning and schema defaults, and passes a `Lookup` over its
watch cache. Both are read only: the rules never write to an object that they were given. No I/O; callable from any
thread, as long as the lookup is.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from stead.kinds.resource import Resource

Json = dict[str, Any]

#: service accounts of KubeVirt itself: they may write status of an instance and change its spec
#: (kubevirt: pkg/util/webhooks, `IsKubeVirtServiceAccount`)
OWN_ACCOUNTS = frozenset(
    f"system:serviceaccount:kubevirt:{name}"
    for name in ("kubevirt-controller", "kubevirt-apiserver", "kubevirt-handler", "kubevirt-operator")
)


class Lookup(Protocol):
    """Synchronous reads from the server's memory. Objects are shared: do not change them."""

    def get(self, resource: Resource, namespace: str, name: str) -> Json | None:
        """One object, or None. `namespace` is "" for a cluster-scoped kind."""
        ...

    def list(self, resource: Resource, namespace: str) -> list[Json]:
        """All objects of a kind in a namespace ("" = all)."""
        ...

    def configuration(self) -> Json:
        """`spec.configuration` of the KubeVirt object ({} when there is none)."""
        ...

    def gates(self) -> frozenset[str]:
        """Names of the enabled feature gates (`gates.enabled_gates(configuration)`)."""
        ...


class AdmissionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One write. `operation` is CREATE, UPDATE or DELETE; `obj` is {} on DELETE, `old` None on CREATE.

    `subresource` is "" or e.g. "status". `user` and `groups` are the authenticated (or impersonated) identity.
    """

    operation: str
    resource: Resource
    namespace: str
    obj: Json
    old: Json | None = None
    user: str = ""
    groups: tuple[str, ...] = ()
    dry_run: bool = False
    subresource: str = ""

    @property
    def is_own_account(self) -> bool:
        """Whether the writer is the control plane or a host's agent, not a person.

        Stead's agents write as `system:node:<host>` where KubeVirt's handler has a service account.
        """
        return self.user in OWN_ACCOUNTS or "system:nodes" in self.groups
