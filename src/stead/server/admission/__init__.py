"""Admission: the last word on what may be stored. The server calls `admit` once for each write.

It fills defaults and refuses what KubeVirt and CDI would refuse, in their words. It gets objects that the schema step
has pruned, defaulted and type-checked, and returns new ones; nothing it was given is changed. All modules here are pure
functions over plain JSON (but for random UUIDs and the clock that stamps a first phase). Kinds without rules pass as
they are. The reference is KubeVirt's webhooks as recorded; see `tests/wire/test_oracle_admission.py` for the score.
"""

from __future__ import annotations

from datetime import UTC, datetime

from stead.kinds import register
from stead.server.admission import (
    rules_backup,
    rules_cdi,
    rules_clone,
    rules_instance,
    rules_instancetype,
    rules_machine,
    rules_migration,
    rules_snapshot,
    rules_update,
)
from stead.server.admission.cluster import Cluster, cluster_from_lookup
from stead.server.admission.contract import AdmissionRequest, Json, Lookup
from stead.server.admission.defaults_instance import instance_with_defaults
from stead.server.admission.defaults_machine import machine_with_defaults
from stead.server.admission.findings import Findings

__all__ = ["Admission", "AdmissionRequest", "Lookup", "admit"]

_PREFERENCES = (register.PREFERENCE.kind, register.CLUSTER_PREFERENCE.kind)


class Admission:
    """`admit` bound to a lookup: what the server's verbs hold."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def admit(self, request: AdmissionRequest) -> Json:
        """The object to store. Raises ApiError."""
        return admit(request, self._lookup)[0]

    def warnings(self, obj: Json) -> list[str]:
        """What the client is told about an object that was admitted."""
        return warnings_of(obj)


def warnings_of(obj: Json) -> list[str]:
    """Deprecations in an object, by its kind."""
    if obj.get("kind") == register.VIRTUAL_MACHINE.kind:
        return rules_machine.warnings_of_machine(obj)
    if obj.get("kind") in _PREFERENCES:
        return rules_instancetype.warnings_of_preference(obj.get("spec") or {})
    return []


def admit(request: AdmissionRequest, lookup: Lookup) -> tuple[Json, list[str]]:
    """The object to store and the warnings for the client. Raises ApiError with upstream's reason, text and causes."""
    if request.operation == "DELETE":
        return request.obj, []
    cluster = cluster_from_lookup(lookup)
    kind = request.resource.kind
    if kind == register.VIRTUAL_MACHINE.kind:
        return _admit_machine(request, cluster)
    if kind == register.VIRTUAL_MACHINE_INSTANCE.kind:
        return _admit_instance(request, cluster), []
    findings = Findings()
    if kind == register.MACHINE_CLONE.kind and not request.subresource:
        made = rules_clone.clone_with_defaults(request.obj)
        rules_clone.check_clone(made, request.old, lookup, findings)
        findings.refuse_if_any()
        return made, []
    if kind in _PREFERENCES:
        rules_instancetype.check_preference(request.obj.get("spec") or {}, findings)
    elif request.subresource:
        return request.obj, []
    elif kind == register.MIGRATION.kind:
        return rules_migration.admitted_migration(request, cluster), []
    elif kind == register.MIGRATION_POLICY.kind:
        rules_migration.check_policy(request.obj.get("spec") or {}, findings)
    elif kind == register.DATA_VOLUME.kind:
        rules_cdi.check_data_volume(request.obj, request.old, lookup, request.namespace, findings)
    elif kind == register.DATA_SOURCE.kind:
        rules_cdi.check_data_source(request.obj, findings)
    elif kind == register.DATA_IMPORT_CRON.kind:
        rules_cdi.check_import_cron(request.obj, request.old, findings)
    elif kind in (register.VIRTUAL_MACHINE_BACKUP.kind, register.VIRTUAL_MACHINE_BACKUP_TRACKER.kind):
        rules_backup.check_kubevirt(request, cluster, lookup)
    elif kind == register.BACKUP_REPOSITORY.kind:
        rules_backup.check_repository(request.obj, findings)
    else:
        _check_copies(request, lookup, findings)
    findings.refuse_if_any()
    return request.obj, warnings_of(request.obj)


def _check_copies(request: AdmissionRequest, lookup: Lookup, findings: Findings) -> None:
    """Snapshots, restores and exports."""
    kind = request.resource.kind
    if kind == register.MACHINE_SNAPSHOT.kind:
        rules_snapshot.check_snapshot(request.obj, request.old, lookup, findings)
    elif kind == register.MACHINE_RESTORE.kind:
        rules_snapshot.check_restore(request.obj, request.old, lookup, request.namespace, findings)
    elif kind == register.MACHINE_EXPORT.kind:
        rules_clone.check_export(request.obj, request.old, findings)
    elif kind == register.VOLUME_SNAPSHOT.kind:
        rules_snapshot.check_volume_snapshot(request.obj, request.old, findings)
    elif kind == register.VOLUME_SNAPSHOT_CLASS.kind:
        rules_snapshot.check_volume_snapshot_class(request.obj, findings)


def _admit_machine(request: AdmissionRequest, cluster: Cluster) -> tuple[Json, list[str]]:
    if request.subresource == "status":
        findings = Findings()
        rules_machine.check_machine_status(request.obj, findings)
        findings.refuse_if_any()
        return request.obj, []
    made = machine_with_defaults(request.obj, request.old, cluster, request.namespace)
    rules_machine.check_machine(made, request.old, request.is_own_account, cluster)
    return made, rules_machine.warnings_of_machine(made)


def _admit_instance(request: AdmissionRequest, cluster: Cluster) -> Json:
    if request.operation == "CREATE":
        made = instance_with_defaults(request.obj, cluster, _now())
        findings = Findings()
        rules_instance.check_instance(made, request.is_own_account, cluster, findings)
        findings.refuse_if_any()
        return made
    old = request.old or {}
    made = request.obj if request.is_own_account else rules_update.instance_with_old_status(request.obj, old)
    rules_update.check_instance_update(made, old, request.is_own_account)
    return made


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
