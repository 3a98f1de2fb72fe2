"""What may be declared about backups: KubeVirt's gate and its one backup at a time; places of ours. Pure."""

from __future__ import annotations

import re
from typing import Any

from stead.kinds import register
from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import AdmissionRequest, Lookup
from stead.server.admission.findings import Findings, bad_request, refuse

Json = dict[str, Any]

_DURATION = re.compile(r"[-+]?((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+|0")


def check_kubevirt(request: AdmissionRequest, cluster: Cluster, lookup: Lookup) -> None:
    """VirtualMachineBackup and VirtualMachineBackupTracker, as KubeVirt's webhooks answer. Raises ApiError."""
    if request.operation != "CREATE":
        return
    if not cluster.has("IncrementalBackup"):
        raise bad_request("IncrementalBackup feature gate not enabled")
    if request.resource.kind != register.VIRTUAL_MACHINE_BACKUP.kind:
        return
    spec = request.obj.get("spec") or {}
    if (duration := spec.get("ttlDuration")) and not _DURATION.fullmatch(str(duration)):
        raise bad_request(f'time: invalid duration "{duration}"')
    for other in lookup.list(register.VIRTUAL_MACHINE_BACKUP, request.namespace):
        same = (other.get("spec") or {}).get("source") == spec.get("source")
        if same and not is_done(other):
            text = f'VirtualMachineBackup "{other["metadata"]["name"]}" in progress for source'
            raise refuse("spec.source", text)


def is_done(backup: Json) -> bool:
    """Whether a VirtualMachineBackup has come to its end."""
    conditions = (backup.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Done" and c.get("status") == "True" for c in conditions)


def check_repository(repository: Json, findings: Findings) -> None:
    """Exactly one place, named so that it can be nothing else."""
    spec = repository.get("spec") or {}
    places = [name for name in ("directory", "s3") if spec.get(name) is not None]
    if len(places) != 1:
        findings.add("spec", "exactly one of directory and s3 is required")
    path = str((spec.get("directory") or {}).get("path") or "")
    if "directory" in places and (not path.startswith("/") or ".." in path.split("/")):
        findings.add("spec.directory.path", "must be an absolute path without '..'")
    bucket = spec.get("s3") or {}
    if "s3" in places and not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+/?", str(bucket.get("endpoint") or "")):
        findings.add("spec.s3.endpoint", "must be a URL of a host, without a path")
    if "s3" in places and not re.fullmatch(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]", str(bucket.get("bucket") or "")):
        findings.add("spec.s3.bucket", "is no name of a bucket")
