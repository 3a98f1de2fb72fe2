"""The register of kinds: one `Resource` for each kind that Stead serves, found by kind or by path.

Everyone asks this module; nobody spells a plural, a short name or a verb by hand. Names, scopes, verbs and columns
follow the recorded discovery of KubeVirt 1.8, CDI 1.6x and Kubernetes 1.36. Kinds that are not here are not served: a
manifest that names one is refused with 404, never stored and ignored. Immutable after import; safe from every thread.
"""

from __future__ import annotations

from stead.kinds.register.copies import (
    BACKUP,
    BACKUP_REPOSITORY,
    BACKUP_SCHEDULE,
    MACHINE_CLONE,
    MACHINE_EXPORT,
    MACHINE_RESTORE,
    MACHINE_SNAPSHOT,
    MACHINE_SNAPSHOT_CONTENT,
    VIRTUAL_MACHINE_BACKUP,
    VIRTUAL_MACHINE_BACKUP_TRACKER,
    VOLUME_SNAPSHOT,
    VOLUME_SNAPSHOT_CLASS,
)
from stead.kinds.register.disks import (
    CDI,
    CDI_CONFIG,
    DATA_IMPORT_CRON,
    DATA_SOURCE,
    DATA_VOLUME,
    STORAGE_PROFILE,
    UPLOAD_TOKEN_REQUEST,
)
from stead.kinds.register.kubernetes import (
    CLUSTER_ROLE,
    CLUSTER_ROLE_BINDING,
    CONFIG_MAP,
    CONTROLLER_REVISION,
    CUSTOM_RESOURCE_DEFINITION,
    EVENT,
    EVENTS_EVENT,
    LEASE,
    LIMIT_RANGE,
    LOCAL_SUBJECT_ACCESS_REVIEW,
    NAMESPACE,
    NODE,
    PERSISTENT_VOLUME,
    PERSISTENT_VOLUME_CLAIM,
    PRIORITY_CLASS,
    RESOURCE_QUOTA,
    ROLE,
    ROLE_BINDING,
    SECRET,
    SELF_SUBJECT_ACCESS_REVIEW,
    SELF_SUBJECT_REVIEW,
    SELF_SUBJECT_RULES_REVIEW,
    SERVICE_ACCOUNT,
    STORAGE_CLASS,
    SUBJECT_ACCESS_REVIEW,
    TOKEN_REQUEST,
    TOKEN_REVIEW,
)
from stead.kinds.register.machines import (
    ADDRESS_CLAIM,
    CLUSTER_INSTANCETYPE,
    CLUSTER_PREFERENCE,
    INSTANCETYPE,
    JOIN,
    KUBEVIRT,
    MIGRATION,
    MIGRATION_POLICY,
    NETWORK_ATTACHMENT_DEFINITION,
    PREFERENCE,
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_INSTANCE,
)
from stead.kinds.resource import Resource

__all__ = [
    "ADDRESS_CLAIM",
    "ALL",
    "BACKUP",
    "BACKUP_REPOSITORY",
    "BACKUP_SCHEDULE",
    "CDI",
    "CDI_CONFIG",
    "CLUSTER_INSTANCETYPE",
    "CLUSTER_PREFERENCE",
    "CLUSTER_ROLE",
    "CLUSTER_ROLE_BINDING",
    "CONFIG_MAP",
    "CONTROLLER_REVISION",
    "CUSTOM_RESOURCE_DEFINITION",
    "DATA_IMPORT_CRON",
    "DATA_SOURCE",
    "DATA_VOLUME",
    "EVENT",
    "EVENTS_EVENT",
    "INSTANCETYPE",
    "JOIN",
    "KUBEVIRT",
    "LEASE",
    "LIMIT_RANGE",
    "LOCAL_SUBJECT_ACCESS_REVIEW",
    "MACHINE_CLONE",
    "MACHINE_EXPORT",
    "MACHINE_RESTORE",
    "MACHINE_SNAPSHOT",
    "MACHINE_SNAPSHOT_CONTENT",
    "MIGRATION",
    "MIGRATION_POLICY",
    "NAMESPACE",
    "NETWORK_ATTACHMENT_DEFINITION",
    "NODE",
    "PERSISTENT_VOLUME",
    "PERSISTENT_VOLUME_CLAIM",
    "PREFERENCE",
    "PRIORITY_CLASS",
    "RESOURCE_QUOTA",
    "ROLE",
    "ROLE_BINDING",
    "SECRET",
    "SELF_SUBJECT_ACCESS_REVIEW",
    "SELF_SUBJECT_REVIEW",
    "SELF_SUBJECT_RULES_REVIEW",
    "SERVICE_ACCOUNT",
    "STORAGE_CLASS",
    "STORAGE_PROFILE",
    "SUBJECT_ACCESS_REVIEW",
    "TOKEN_REQUEST",
    "TOKEN_REVIEW",
    "UPLOAD_TOKEN_REQUEST",
    "VIRTUAL_MACHINE",
    "VIRTUAL_MACHINE_BACKUP",
    "VIRTUAL_MACHINE_BACKUP_TRACKER",
    "VIRTUAL_MACHINE_INSTANCE",
    "VOLUME_SNAPSHOT",
    "VOLUME_SNAPSHOT_CLASS",
    "find",
    "groups",
    "resource_for",
]

#: every served kind, in the order in which a user would look for them
ALL: tuple[Resource, ...] = (
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_INSTANCE,
    KUBEVIRT,
    MIGRATION,
    MIGRATION_POLICY,
    INSTANCETYPE,
    CLUSTER_INSTANCETYPE,
    PREFERENCE,
    CLUSTER_PREFERENCE,
    DATA_VOLUME,
    DATA_SOURCE,
    DATA_IMPORT_CRON,
    STORAGE_PROFILE,
    CDI,
    CDI_CONFIG,
    UPLOAD_TOKEN_REQUEST,
    MACHINE_SNAPSHOT,
    MACHINE_SNAPSHOT_CONTENT,
    MACHINE_RESTORE,
    MACHINE_CLONE,
    MACHINE_EXPORT,
    VOLUME_SNAPSHOT,
    VOLUME_SNAPSHOT_CLASS,
    JOIN,
    NAMESPACE,
    NODE,
    PERSISTENT_VOLUME_CLAIM,
    PERSISTENT_VOLUME,
    STORAGE_CLASS,
    SECRET,
    CONFIG_MAP,
    EVENT,
    EVENTS_EVENT,
    SERVICE_ACCOUNT,
    RESOURCE_QUOTA,
    LIMIT_RANGE,
    PRIORITY_CLASS,
    ROLE,
    CLUSTER_ROLE,
    ROLE_BINDING,
    CLUSTER_ROLE_BINDING,
    LEASE,
    CONTROLLER_REVISION,
    CUSTOM_RESOURCE_DEFINITION,
    NETWORK_ATTACHMENT_DEFINITION,
    ADDRESS_CLAIM,
    VIRTUAL_MACHINE_BACKUP,
    VIRTUAL_MACHINE_BACKUP_TRACKER,
    BACKUP_REPOSITORY,
    BACKUP,
    BACKUP_SCHEDULE,
    SUBJECT_ACCESS_REVIEW,
    SELF_SUBJECT_ACCESS_REVIEW,
    SELF_SUBJECT_RULES_REVIEW,
    LOCAL_SUBJECT_ACCESS_REVIEW,
    SELF_SUBJECT_REVIEW,
    TOKEN_REVIEW,
    TOKEN_REQUEST,
)

_BY_KIND = {(r.group, r.kind): r for r in ALL}

_BY_PATH = {(r.group, v, r.plural): r for r in ALL if r is not TOKEN_REQUEST for v in r.versions}


def resource_for(kind: str, group: str = "") -> Resource:
    """The kind of that name. Raises KeyError when Stead does not serve it."""
    return _BY_KIND[(group, kind)]


def find(group: str, version: str, plural: str) -> Resource | None:
    """What a URL path names, in any served version; None when Stead does not serve it."""
    return _BY_PATH.get((group, version, plural))


def groups() -> dict[str, tuple[str, ...]]:
    """Every served group ("" is the core group) with its versions, preferred first."""
    found: dict[str, list[str]] = {}
    for resource in ALL:
        versions = found.setdefault(resource.group, [])
        versions.extend(v for v in resource.versions if v not in versions)
    return {group: tuple(versions) for group, versions in found.items()}
