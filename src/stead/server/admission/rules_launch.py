"""Rules about confidential guests: SEV, SEV-SNP, TDX, Secure Execution.

One fault at a time, in upstream's order (recordings `reject-launch-arch`, `gates`; notes 6.6). `field` is the path of
the spec. Pure.
"""

from __future__ import annotations

from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json
from stead.server.admission.findings import FORBIDDEN, Findings

_GATES = {"sev": "WorkloadEncryptionSEV", "snp": "WorkloadEncryptionSEV", "tdx": "WorkloadEncryptionTDX"}


def check_launch_security(field: str, spec: Json, cluster: Cluster, findings: Findings) -> None:
    """The first thing that keeps a confidential guest from starting."""
    security = spec["domain"].get("launchSecurity")
    architecture = spec.get("architecture", cluster.architecture)
    if security is None or architecture == "s390x":
        return
    if architecture != "amd64":
        text = f"No launchSecurity support for architecture: {architecture}"
        findings.add(f"{field}.architecture", text)
        return
    here = f"{field}.launchSecurity"
    chosen = [kind for kind in _GATES if security.get(kind) is not None]
    if len(chosen) != 1:
        findings.add(here, "One and only one launchSecurity type can be set", FORBIDDEN)
        return
    kind = chosen[0]
    if not cluster.has(_GATES[kind]):
        findings.add(here, f"{_GATES[kind]} feature gate is not enabled in kubevirt-config")
        return
    fault = _fault(kind, security[kind], spec)
    if fault:
        findings.add(here, fault)


def _fault(kind: str, settings: Json, spec: Json) -> str | None:
    title = kind.upper()
    domain: Json = spec["domain"]
    smm = (domain.get("features") or {}).get("smm")
    if kind == "tdx" and smm is not None and smm.get("enabled") is not False:
        return "TDX does not work along with SMM"
    efi = ((domain.get("firmware") or {}).get("bootloader") or {}).get("efi")
    if efi is None:
        return f"{title} requires OVMF (UEFI)"
    if efi.get("secureBoot") is not False:
        return f"{title} does not work along with SecureBoot"
    if kind != "sev" and efi.get("persistent"):
        return f"{title} does not work along with Persistent EFI variables"
    if kind == "sev" and settings.get("attestation") is not None and spec.get("startStrategy") != "Paused":
        return "SEV attestation requires VMI StartStrategy 'Paused'"
    bootable = next((i for i in domain["devices"].get("interfaces") or () if i.get("bootOrder") is not None), None)
    if bootable is not None:
        return f"{title} does not work with bootable NICs: {bootable.get('name')}"
    return None
