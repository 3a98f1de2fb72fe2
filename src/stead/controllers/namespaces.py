"""Namespaces: what each one gets when it is made, and how one is emptied when it goes.

Started by `controllers.start` on rungs 1 and 2. Every namespace gets the ServiceAccount `default` and the ConfigMap
`kube-root-ca.crt`. One that is being deleted is emptied kind by kind; when nothing is left the finalizer `kubernetes`
is removed through the subresource `finalize`; until then its status says what remains. Rules K1, K2: Kubernetes'
namespace controller.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from stead.client.contract import Selection
from stead.client.informer import Key
from stead.controllers.conditions import condition, is_deleting, merge_conditions, spec_of, status_of, text_from_time
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import create_if_absent, delete_if_there, write_status
from stead.kinds.foreign import stored_resources
from stead.kinds.register import CONFIG_MAP, CUSTOM_RESOURCE_DEFINITION, NAMESPACE, SERVICE_ACCOUNT
from stead.kinds.resource import Resource

Object = dict[str, Any]

ROOT_CA = "kube-root-ca.crt"
EMPTYING_SECONDS = 1.0


class Namespaces:
    """The controller's hands. `resources`: all namespaced kinds of ours (users' follow from their definitions); `ca`:
    PEM text of the API's certificate authority."""

    def __init__(self, world: World, resources: tuple[Resource, ...], ca: str) -> None:
        self._client = world.client
        self._resources = tuple(r for r in resources if r.namespaced and {"list", "delete"} <= set(r.verbs))
        self._definitions = world.informers.of(CUSTOM_RESOURCE_DEFINITION)
        self._ca = ca
        self._namespaces = world.informers.of(NAMESPACE)
        self._accounts = world.informers.of(SERVICE_ACCOUNT)
        self._maps = world.informers.of(CONFIG_MAP)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""

        def made(name: str) -> Any:
            return lambda o: [Key("", o["metadata"]["namespace"])] if o["metadata"]["name"] == name else []

        sources = (
            Source(self._namespaces, own_key),
            Source(self._accounts, made("default")),
            Source(self._maps, made(ROOT_CA)),
        )
        return Controller("namespace", self.reconcile, sources, workers=2)

    async def reconcile(self, key: Key) -> float | None:
        """Furnish or empty one namespace."""
        namespace = self._namespaces.get(*key)
        if namespace is None:
            return None
        if is_deleting(namespace):
            return await self._empty(namespace)
        if self._accounts.get(key.name, "default") is None:
            account: Object = {"apiVersion": "v1", "kind": "ServiceAccount"}
            account["metadata"] = {"namespace": key.name, "name": "default"}
            await create_if_absent(self._client, SERVICE_ACCOUNT, account)
        await self._publish_ca(key.name)
        return None

    async def _publish_ca(self, name: str) -> None:
        known = self._maps.get(name, ROOT_CA)
        wanted = {"ca.crt": self._ca}
        if known is None:
            published: Object = {"apiVersion": "v1", "kind": "ConfigMap", "data": wanted}
            published["metadata"] = {"namespace": name, "name": ROOT_CA}
            await create_if_absent(self._client, CONFIG_MAP, published)
        elif known.get("data") != wanted:
            await self._client.update(CONFIG_MAP, {**known, "data": wanted})

    async def _empty(self, namespace: Object) -> float | None:
        name = namespace["metadata"]["name"]
        left: Counter[str] = Counter()
        finalizers: Counter[str] = Counter()
        foreign = (r for r in stored_resources(self._definitions.objects()) if r.namespaced)
        for resource in (*self._resources, *foreign):
            for obj in (await self._client.list(resource, Selection(namespace=name))).items:
                if not is_deleting(obj) and await delete_if_there(self._client, resource, obj) and not _pending(obj):
                    continue
                left[f"{resource.plural}.{resource.group}".rstrip(".")] += 1
                finalizers.update(obj["metadata"].get("finalizers") or ())
        if left:
            await self._tell(namespace, left, finalizers)
            return EMPTYING_SECONDS
        if "kubernetes" in (spec_of(namespace).get("finalizers") or ()):
            kept = [f for f in spec_of(namespace)["finalizers"] if f != "kubernetes"]
            emptied = {**namespace, "spec": {**spec_of(namespace), "finalizers": kept}}
            await self._client.update(NAMESPACE, emptied, "finalize")
        return None

    async def _tell(self, namespace: Object, left: Counter[str], finalizers: Counter[str]) -> None:
        content = ", ".join(f"{kind} has {n} resource instances" for kind, n in sorted(left.items()))
        waits = ", ".join(f"{f} in {n} resource instances" for f, n in sorted(finalizers.items()))
        done = ("ContentDeleted", "All content successfully deleted, may be waiting on finalization")
        wanted = [
            condition("NamespaceDeletionDiscoveryFailure", "False", "ResourcesDiscovered", "All resources discovered"),
            condition("NamespaceDeletionContentFailure", "False", *done),
            condition("NamespaceContentRemaining", "True", "SomeResourcesRemain", f"Some resources remain: {content}"),
        ]
        if waits:
            text = f"Some content in the namespace has finalizers remaining: {waits}"
            wanted.append(condition("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", text))
        status = status_of(namespace)
        dated = merge_conditions(status.get("conditions"), wanted, text_from_time(datetime.now(UTC)))
        await write_status(self._client, NAMESPACE, namespace, {**status, "phase": "Terminating", "conditions": dated})


def _pending(obj: Object) -> bool:
    """Whether a deleted object stays for its finalizers."""
    return bool(obj["metadata"].get("finalizers"))
