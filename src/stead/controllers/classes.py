"""StorageClasses for the pools of the hosts: one for each pool that a Node carries, so that claims can ask for it.

Started by `controllers.start`. Pool `default` has the class `local`, which `bootstrap` makes; every other pool has a
class of its own name. A class is made while a host has the pool, and never changed or removed: claims may still name
it. A name that is taken by a class of something else is told once, on the Node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from stead.client.informer import Key
from stead.controllers.conditions import labels_of
from stead.controllers.runner import Controller, Source, World
from stead.controllers.volume_needs import PROVISIONER
from stead.controllers.writes import create_if_absent
from stead.kinds.register import NODE, STORAGE_CLASS

Object = dict[str, Any]

POOL_LABEL = "pool.stead.io/"
DEFAULT_POOL = "default"
#: the only key: all hosts are looked at together
_ALL = Key("", "pools")


class Plan(msgspec.Struct, frozen=True):
    """Classes to make, and (host, pool, provisioner) of pools whose class name is taken."""

    make: tuple[Object, ...] = ()
    taken: tuple[tuple[str, str, str], ...] = ()


def pools_of(host: Object) -> list[str]:
    """Names of a host's pools."""
    return sorted(name.removeprefix(POOL_LABEL) for name in labels_of(host) if name.startswith(POOL_LABEL))


def build_class(pool: str) -> Object:
    """The class of a pool: bound at once, removed with its claim, may grow, as `local`."""
    return {
        "apiVersion": STORAGE_CLASS.api_version,
        "kind": STORAGE_CLASS.kind,
        "metadata": {"name": pool},
        "provisioner": PROVISIONER,
        "parameters": {"pool": pool},
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
        "allowVolumeExpansion": True,
    }


def local_class() -> Object:
    """`local`, the default class, of the pool that every host has."""
    made = build_class(DEFAULT_POOL)
    made["metadata"] = {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}
    return made


def decide_classes(hosts: Iterable[Object], classes: Iterable[Object]) -> Plan:
    """What is missing, for the hosts and classes that there are."""
    known = {c["metadata"]["name"]: c for c in classes}
    make: dict[str, Object] = {}
    taken = []
    for host in sorted(hosts, key=lambda h: str(h["metadata"]["name"])):
        for pool in pools_of(host):
            found = known.get(pool)
            if pool == DEFAULT_POOL:
                continue
            if found is None:
                make[pool] = build_class(pool)
            elif (found.get("provisioner"), (found.get("parameters") or {}).get("pool")) != (PROVISIONER, pool):
                taken.append((host["metadata"]["name"], pool, str(found.get("provisioner", ""))))
    return Plan(tuple(make[name] for name in sorted(make)), tuple(taken))


class Classes:
    """The controller's hands."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._nodes, self._classes = world.informers.of(NODE), world.informers.of(STORAGE_CLASS)
        self._told: set[tuple[str, str]] = set()

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (Source(self._nodes, self._changed), Source(self._classes, lambda _class: [_ALL]))
        return Controller("class", self.reconcile, sources, workers=1)

    def _changed(self, host: Object) -> list[Key]:
        """Heartbeats change Nodes all the time; only pools without a class are of interest."""
        known = {c["metadata"]["name"] for c in self._classes.objects()}
        return [_ALL] if set(pools_of(host)) - known - {DEFAULT_POOL} else []

    async def reconcile(self, _key: Key) -> float | None:
        """Make what is missing."""
        plan = decide_classes(self._nodes.objects(), self._classes.objects())
        for made in plan.make:
            await create_if_absent(self._world.client, STORAGE_CLASS, made)
        for host, pool, provisioner in plan.taken:
            if (host, pool) not in self._told:
                self._told.add((host, pool))
                text = f"pool {pool} has no StorageClass: the name is taken by a class of provisioner {provisioner}"
                node = self._nodes.get(None, host)
                if node is not None:
                    self._world.recorder.event(node, "Warning", "StorageClassNameTaken", text)
        return None
