"""Rules about DataVolume, DataSource and DataImportCron.

They follow CDI's validating webhooks (ecosystem notes 1.2 and 1.5): one source or a reference, one description of the
claim, a size, a spec that does not change. No recording covers them. Pure.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from stead.kinds import register
from stead.kube import quantity
from stead.server.admission.contract import Json, Lookup
from stead.server.admission.findings import REQUIRED, Findings

_SOURCES = (
    "http", "s3", "gcs", "registry", "pvc", "upload", "blank", "imageio", "vddk", "snapshot",
)  # fmt: skip
#: schemes that each source's URL may have; () = any
_SCHEMES = {
    "http": ("http", "https"), "registry": ("docker", "oci-archive"), "s3": (), "gcs": (), "imageio": (), "vddk": (),
}  # fmt: skip
#: sources that know their own size
_SIZED = ("pvc", "snapshot")
_LEAST_BYTES = 1 << 20
_ADOPTION = "cdi.kubevirt.io/allowClaimAdoption"
_CHECKSUM_LENGTHS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}


def check_data_volume(volume: Json, old: Json | None, lookup: Lookup, namespace: str, findings: Findings) -> None:
    """A DataVolume on creation, or on update against `old`."""
    spec: Json = volume.get("spec") or {}
    if old is not None:
        _check_unchanged(spec, old.get("spec") or {}, findings)
        return
    _check_source_choice(spec, findings)
    if spec.get("contentType") not in (None, "", "kubevirt", "archive"):
        findings.add("spec.contentType", "ContentType not one of: kubevirt, archive")
    source: Json = spec.get("source") or {}
    if spec.get("contentType") == "archive" and not any(source.get(k) is not None for k in ("http", "upload")):
        findings.add("spec.contentType", "contentType archive is only supported with source types http and upload")
    _check_target(spec, findings)
    name = str((volume.get("metadata") or {}).get("name") or "")
    if name and not findings.causes:
        _check_claim_free(name, volume, lookup, namespace, findings)


def _check_unchanged(spec: Json, old: Json, findings: Findings) -> None:
    """Only the checkpoints of a multi-stage import may be added to."""
    mutable = ("checkpoints", "finalCheckpoint")
    if {k: v for k, v in spec.items() if k not in mutable} != {k: v for k, v in old.items() if k not in mutable}:
        findings.add("spec", "Cannot update DataVolume Spec")


def _check_source_choice(spec: Json, findings: Findings) -> None:
    source, reference = spec.get("source"), spec.get("sourceRef")
    target = spec.get("pvc") or spec.get("storage") or {}
    populated = target.get("dataSource") is not None or target.get("dataSourceRef") is not None
    if source is not None and reference is not None:
        findings.add("spec.source", "Data volume should have either Source or SourceRef, not both")
    if source is None and reference is None and not populated:
        text = "Data volume should have either Source or SourceRef, or be externally populated"
        findings.add("spec.source", text)
    if reference is not None:
        if reference.get("kind") != "DataSource":
            text = f"SourceRef kind {reference.get('kind')} is not supported, must be DataSource"
            findings.add("spec.sourceRef.Kind", text)
        if not reference.get("name"):
            findings.add("spec.sourceRef.Name", "Missing sourceRef name")
    if source is not None:
        _check_source(source, findings)


def _check_source(source: Json, findings: Findings) -> None:
    given = [kind for kind in _SOURCES if source.get(kind) is not None]
    if len(given) != 1:
        text = "Multiple Data volume sources" if given else "Missing Data volume source"
        findings.add("spec.source", text)
        return
    kind = given[0]
    body: Json = source[kind]
    here = f"spec.source.{kind}"
    if kind in _SIZED and not body.get("name"):
        findings.add(f"{here}.name", f"{here}.name is required", REQUIRED)
    if kind not in _SCHEMES or (kind == "registry" and body.get("imageStream")):
        return
    url = str(body.get("url") or "")
    parts = urlsplit(url)
    allowed = _SCHEMES[kind]
    if not url:
        findings.add(f"{here}.url", f"spec.source Invalid source URL: {kind} source URL is empty")
    elif (allowed and parts.scheme not in allowed) or not (parts.netloc or parts.path):
        findings.add(f"{here}.url", f"spec.source Invalid source URL: {url}")
    checksum = body.get("checksum")
    if checksum:
        _check_checksum(f"{here}.checksum", str(checksum), findings)


def _check_checksum(field: str, checksum: str, findings: Findings) -> None:
    algorithm, _, digest = checksum.partition(":")
    if len(digest) != _CHECKSUM_LENGTHS.get(algorithm, -1) or not all(c in "0123456789abcdefABCDEF" for c in digest):
        known = ", ".join(_CHECKSUM_LENGTHS)
        findings.add(field, f"invalid checksum {checksum}: must be algorithm:hex, algorithm one of {known}")


def _check_target(spec: Json, findings: Findings) -> None:
    claim, storage = spec.get("pvc"), spec.get("storage")
    if claim is None and storage is None:
        findings.add("spec.PVC", "Missing Data volume PVC")
        return
    if claim is not None and storage is not None:
        text = "Duplicate storage definition, both target storage and target pvc defined"
        findings.add("spec.PVC", text)
        return
    target: Json = claim if claim is not None else storage or {}
    field = "spec.pvc" if claim is not None else "spec.storage"
    size = ((target.get("resources") or {}).get("requests") or {}).get("storage")
    source: Json = spec.get("source") or {}
    knows_size = storage is not None and (
        spec.get("sourceRef") is not None or any(source.get(kind) is not None for kind in _SIZED)
    )
    if size is None:
        if not knows_size:
            findings.add(f"{field}.resources.requests.storage", "PVC size is missing")
    elif int(quantity.parse(size)) <= 0:
        findings.add(f"{field}.resources.requests.storage", "PVC size can't be equal or less than zero")
    elif int(quantity.parse(size)) < _LEAST_BYTES:
        findings.add(f"{field}.resources.requests.storage", "PVC size is smaller than 1Mi")
    modes = target.get("accessModes") or []
    if claim is not None and not modes:
        findings.add(f"{field}.accessModes", "Required value: at least 1 access mode is required", REQUIRED)
    if claim is not None and len(modes) > 1:
        findings.add(f"{field}.accessModes", "PVC multiple accessModes")


def _check_claim_free(name: str, volume: Json, lookup: Lookup, namespace: str, findings: Findings) -> None:
    existing = lookup.get(register.PERSISTENT_VOLUME_CLAIM, namespace, name)
    if existing is None:
        return
    adopts = [((o.get("metadata") or {}).get("annotations") or {}).get(_ADOPTION) == "true" for o in (volume, existing)]
    populated = ((existing.get("metadata") or {}).get("annotations") or {}).get("cdi.kubevirt.io/storage.populatedFor")
    if not any(adopts) and populated != name:
        findings.add("", f"Destination PVC {namespace}/{name} already exists")


def check_data_source(source: Json, findings: Findings) -> None:
    """A DataSource: exactly one source (none is allowed: it may be set later by an import cron)."""
    body: Json = (source.get("spec") or {}).get("source") or {}
    given = [kind for kind in ("pvc", "snapshot", "dataSource") if body.get(kind) is not None]
    if len(given) > 1:
        findings.add("spec.source", "DataSource must have exactly one source")
    for kind in given:
        if not body[kind].get("name"):
            findings.add(f"spec.source.{kind}.name", f"DataSource source {kind} name is required", REQUIRED)


def check_import_cron(cron: Json, old: Json | None, findings: Findings) -> None:
    """A DataImportCron: a registry or claim source, a schedule, the DataSource that it manages, an unchanging spec."""
    spec: Json = cron.get("spec") or {}
    if old is not None and _fixed(spec) != _fixed(old.get("spec") or {}):
        findings.add("spec", "Cannot update DataImportCron Spec")
        return
    source: Json = ((spec.get("template") or {}).get("spec") or {}).get("source") or {}
    registry = source.get("registry")
    if registry is None and source.get("pvc") is None:
        findings.add("spec.template", "Missing source")
    if registry is not None and not registry.get("url") and not registry.get("imageStream"):
        findings.add("spec.template", "Missing registry source URL")
    if not spec.get("managedDataSource"):
        findings.add("spec.managedDataSource", "Illegal empty ManagedDataSource", REQUIRED)
    schedule = str(spec.get("schedule") or "")
    if schedule and not schedule.startswith("@") and len(schedule.split()) != 5:
        findings.add("spec.schedule", f"Illegal cron schedule {schedule}")
    retained = spec.get("importsToKeep")
    if retained is not None and retained < 0:
        findings.add("spec.importsToKeep", f"Illegal ImportsToKeep {retained}")


def _fixed(spec: Json) -> Json:
    """The part of a cron's spec that cannot change."""
    free = ("importsToKeep", "garbageCollect", "retentionPolicy", "schedule")
    return {k: v for k, v in spec.items() if k not in free}
