"""On which terms a machine migrates: the KubeVirt object's configuration, and over it the policy that fits best.

Pure; asked by `controllers.migration`. A policy fits when the namespace and the instance have all labels that it names;
of several the one that names most wins, then the first by name. Defaults and rules: KubeVirt's (notes 4.10).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from stead.controllers.conditions import labels_of, spec_of

Object = dict[str, Any]

DEFAULTS: Object = {
    "nodeDrainTaintKey": "kubevirt.io/drain",
    "parallelMigrationsPerCluster": 5,
    "parallelOutboundMigrationsPerNode": 2,
    "allowAutoConverge": False,
    "bandwidthPerMigration": "0",
    "completionTimeoutPerGiB": 150,
    "progressTimeout": 150,
    "unsafeMigrationOverride": False,
    "allowPostCopy": False,
}
_OF_POLICY = (
    "allowAutoConverge", "allowPostCopy", "allowWorkloadDisruption", "bandwidthPerMigration", "completionTimeoutPerGiB",
    "maxDowntimeMs",
)  # fmt: skip


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The terms of one migration. `policy`: whose they are, "" = the cluster's."""

    configuration: Object = {}
    policy: str = ""

    @property
    def per_cluster(self) -> int:
        """How many may be under way at the same time."""
        return int(self.configuration.get("parallelMigrationsPerCluster") or DEFAULTS["parallelMigrationsPerCluster"])

    @property
    def per_node(self) -> int:
        """And how many of them out of one host."""
        found = self.configuration.get("parallelOutboundMigrationsPerNode")
        return int(found or DEFAULTS["parallelOutboundMigrationsPerNode"])


def terms_for(
    kubevirt: Object | None, policies: Iterable[Object], vmi: Object | None, namespace: Object | None
) -> Terms:
    """The terms of an instance's migration."""
    configured = (spec_of(kubevirt).get("configuration") or {}).get("migrations") or {}
    configuration = {**DEFAULTS, **configured}
    policy = best_policy(policies, vmi, namespace)
    if policy is not None:
        spec = spec_of(policy)
        configuration |= {key: spec[key] for key in _OF_POLICY if spec.get(key) is not None}
    configuration.setdefault("allowWorkloadDisruption", configuration["allowPostCopy"])
    return Terms(configuration=configuration, policy=policy["metadata"]["name"] if policy else "")


def best_policy(policies: Iterable[Object], vmi: Object | None, namespace: Object | None) -> Object | None:
    """The policy that fits with most labels; None when none fits. One without any label fits nothing."""
    best: tuple[int, str] | None = None
    found = None
    for policy in policies:
        selectors = spec_of(policy).get("selectors") or {}
        wanted = selectors.get("namespaceSelector") or {}, selectors.get("virtualMachineInstanceSelector") or {}
        count = len(wanted[0]) + len(wanted[1])
        if not count or not _has(namespace, wanted[0]) or not _has(vmi, wanted[1]):
            continue
        order = (-count, str(policy["metadata"]["name"]))
        if best is None or order < best:
            best, found = order, policy
    return found


def _has(obj: Object | None, wanted: dict[str, str]) -> bool:
    labels = labels_of(obj)
    return all(labels.get(key) == value for key, value in wanted.items())
