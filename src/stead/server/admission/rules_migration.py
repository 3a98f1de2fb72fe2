"""What a live migration and a migration policy may say: KubeVirt's rules, in its words.

A migration names an instance that runs, can move, and is not moving already. Texts are those of
`migration-create-validator`, `migration-update-validator` and `migration-policy-validator` (notes 65 and 66, observed
33, recordings `migration-*`, `policy-*`). Pure.
"""

from __future__ import annotations

from stead.kinds import register
from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import AdmissionRequest, Json
from stead.server.admission.findings import FORBIDDEN, NOT_SUPPORTED, REQUIRED, Findings, bad_request, refuse

FINALIZER = "kubevirt.io/migrationJobFinalize"
SELECTOR_LABEL = "kubevirt.io/vmi-name"
_FINAL = ("Succeeded", "Failed")


def admitted_migration(request: AdmissionRequest, cluster: Cluster) -> Json:
    """The migration to store, with label and finalizer. Raises ApiError."""
    if request.old is not None:
        _check_update(request.obj, request.old, request.is_own_account)
        return request.obj
    _check_create(request, cluster)
    metadata = request.obj["metadata"]
    name = str(request.obj["spec"]["vmiName"])
    finalizers = list(metadata.get("finalizers") or [])
    made = {
        **metadata,
        "labels": {**(metadata.get("labels") or {}), SELECTOR_LABEL: name},
        "finalizers": finalizers if FINALIZER in finalizers else [*finalizers, FINALIZER],
    }
    return {**request.obj, "metadata": made}


def _check_create(request: AdmissionRequest, cluster: Cluster) -> None:
    spec: Json = request.obj.get("spec") or {}
    name = spec.get("vmiName")
    if not name:
        raise refuse("spec.vmiName", "vmiName is missing", REQUIRED)
    if (spec.get("sendTo") or spec.get("receive")) and not cluster.has("DecentralizedLiveMigration"):
        raise refuse("", "DecentralizedLiveMigration feature gate is not enabled in kubevirt resource", NOT_SUPPORTED)
    if spec.get("priority") and not request.is_own_account:
        text = "Migration priority queue, only virt-controller is allowed to set priority field"
        raise refuse("spec.migrationPriority", text, FORBIDDEN)
    instance = cluster.lookup.get(register.VIRTUAL_MACHINE_INSTANCE, request.namespace, str(name))
    if instance is None:
        if spec.get("receive"):
            return
        raise bad_request(f'the VMI "{request.namespace}/{name}" does not exist')
    status: Json = instance.get("status") or {}
    if status.get("phase") in _FINAL:
        raise bad_request("Cannot migrate VMI in finalized state.")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "LiveMigratable" and condition.get("status") == "False":
            text = f"Reason: {condition.get('reason', '')}, Message: {condition.get('message', '')}"
            raise bad_request(f"Cannot migrate VMI, {text}")
    for other in cluster.lookup.list(register.MIGRATION, request.namespace):
        if other["spec"].get("vmiName") == name and (other.get("status") or {}).get("phase") not in _FINAL:
            text = f"Active migration job ({other['metadata'].get('uid')}) is currently already in progress"
            raise bad_request(f"in-flight migration detected. {text} for VMI {name}.")


def _check_update(new: Json, old: Json, own_account: bool) -> None:
    if new.get("spec") != old.get("spec") and not own_account:
        raise refuse("", "update of Migration object's spec is restricted", NOT_SUPPORTED)
    if (old.get("status") or {}).get("phase") in _FINAL:
        return
    label = (old["metadata"].get("labels") or {}).get(SELECTOR_LABEL)
    if label and (new["metadata"].get("labels") or {}).get(SELECTOR_LABEL) != label:
        raise refuse("", "selector label can't be removed from an in-flight migration", NOT_SUPPORTED)


def check_policy(spec: Json, findings: Findings) -> None:
    """Bounds of a policy."""
    timeout = spec.get("completionTimeoutPerGiB")
    if timeout is not None and timeout < 0:
        findings.add("spec.completionTimeoutPerGiB", "must not be negative")
    if str(spec.get("bandwidthPerMigration") or "").startswith("-"):
        findings.add("spec.bandwidthPerMigration", "must not be negative")
