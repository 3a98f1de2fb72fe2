"""Calls about a running guest: pause, reboot, freeze, guest information, and the streams to it.

Each checks what can be known from the instance, then names the agent's call. Rules, their order and texts are
KubeVirt's (notes 2, observed 42 and 47, recordings `subresources*`). Pure.
"""

from __future__ import annotations

from stead.kube.errors import ApiError
from stead.server.lifecycle.contract import (
    Decision,
    Json,
    bad_request,
    found_instance,
    found_machine,
    has_condition,
    in_plain,
    instance_conflict,
    is_dry_run,
    is_running,
    machine_conflict,
    phase_of,
)

#: guest information calls and the agent's name for each: the same
GUEST_INFORMATION = ("guestosinfo", "userlist", "filesystemlist")


def decide_pause(name: str, instance: Json | None, body: Json | None) -> Decision:
    """Hold the guest's CPUs."""
    instance = _running(name, instance, "VMI is not running")
    probe = (instance.get("spec") or {}).get("livenessProbe")
    if probe is not None and probe.get("guestAgentPing") is None:
        text = "Pausing VMIs with a non-GuestAgentPing LivenessProbe is not supported"
        details = {"name": name, "group": "kubevirt.io", "kind": "virtualmachineinstance"}
        message = f'virtualmachineinstance.kubevirt.io "{name}" is forbidden: {text}'
        raise ApiError("Forbidden", message, details, code=403)
    if has_condition(instance, "Paused"):
        raise instance_conflict(name, "VMI is already paused")
    return Decision(agent="pause", dry_run=is_dry_run(body))


def decide_unpause(name: str, instance: Json | None, body: Json | None, machine: Json | None = None) -> Decision:
    """Let the guest's CPUs go on. `machine` is the instance's owner, if it has one."""
    instance = _running(name, instance, "VMI is not running")
    if not has_condition(instance, "Paused"):
        raise instance_conflict(name, "VMI is not paused")
    if ((machine or {}).get("status") or {}).get("snapshotInProgress"):
        raise instance_conflict(name, "VM snapshot is in progress")
    return Decision(agent="unpause", dry_run=is_dry_run(body))


def decide_freeze(name: str, instance: Json | None, body: Json | None) -> Decision:
    """Freeze the guest's file systems, for `body.unfreezeTimeout` at most."""
    _running(name, instance, "VM is not running")
    timeout = (body or {}).get("unfreezeTimeout")
    return Decision(agent="freeze", agent_body={"unfreezeTimeout": timeout} if timeout else {})


def decide_unfreeze(name: str, instance: Json | None) -> Decision:
    """Thaw the guest's file systems."""
    _running(name, instance, "VM is not running")
    return Decision(agent="unfreeze")


def decide_soft_reboot(name: str, instance: Json | None) -> Decision:
    """Ask the guest to reboot, by its agent or by ACPI."""
    instance = _running(name, instance, "VM is not running")
    if has_condition(instance, "Paused"):
        raise instance_conflict(name, "VMI is paused")
    features: Json = ((instance.get("spec") or {}).get("domain") or {}).get("features") or {}
    acpi = features.get("acpi")
    has_acpi = acpi is not None and acpi.get("enabled") is not False
    if not has_condition(instance, "AgentConnected") and not has_acpi:
        raise instance_conflict(name, "VMI neither have the agent connected nor the ACPI feature enabled")
    return Decision(agent="softreboot")


def decide_reset(name: str, instance: Json | None) -> Decision:
    """Press the reset button."""
    instance = found_instance(instance, name)
    if not is_running(instance):
        phase = phase_of(instance)
        why = f"Unable to connect to VirtualMachineInstance because phase is {phase} instead of Running or Scheduled"
        raise bad_request(f"Failed to reset non-running VMI with phase {phase}: {why}")
    return Decision(agent="reset")


def decide_guest_information(name: str, instance: Json | None, what: str) -> Decision:
    """`guestosinfo`, `userlist` or `filesystemlist`. Refusals are text/plain 500s, as upstream's are."""
    try:
        instance = _running(name, instance, "VMI is not running")
        if not has_condition(instance, "AgentConnected"):
            raise instance_conflict(name, "VMI does not have guest agent connected")
    except ApiError as error:
        raise in_plain(error) from error
    return Decision(code=200, agent=what)


def decide_console(name: str, instance: Json | None) -> Decision:
    """The serial console."""
    instance = found_instance(instance, name)
    if _devices(instance).get("autoattachSerialConsole") is False:
        raise bad_request("No serial consoles are present.")
    _streamable(name, instance)
    return Decision(code=101, agent="console", streams=True)


def decide_vnc(name: str, instance: Json | None, preserve_session: bool = False) -> Decision:
    """The graphical console."""
    instance = found_instance(instance, name)
    if _devices(instance).get("autoattachGraphicsDevice") is False:
        raise bad_request("No graphics devices are present.")
    _streamable(name, instance)
    return Decision(code=101, agent="vnc?preserveSession=true" if preserve_session else "vnc", streams=True)


def decide_screenshot(name: str, instance: Json | None) -> Decision:
    """A picture of the graphical console; refusals are text/plain 500s."""
    try:
        decide_vnc(name, instance)
    except ApiError as error:
        raise in_plain(error) from error
    return Decision(code=200, agent="screenshot")


def decide_usb_redirection(name: str, instance: Json | None) -> Decision:
    """A USB device of the client's."""
    instance = found_instance(instance, name)
    if _devices(instance).get("clientPassthrough") is None:
        raise instance_conflict(name, "Not configured with USB Redirection")
    _streamable(name, instance)
    return Decision(code=101, agent="usbredir", streams=True)


def decide_vsock(name: str, instance: Json | None) -> Decision:
    """A socket between host and guest."""
    instance = found_instance(instance, name)
    if not _devices(instance).get("autoattachVSOCK"):
        raise bad_request("VSOCK is not attached.")
    _streamable(name, instance)
    return Decision(code=101, agent="vsock", streams=True)


def decide_port_forward(name: str, instance: Json | None, port: int, protocol: str = "tcp") -> Decision:
    """A stream to a port of the guest's first address."""
    instance = found_instance(instance, name)
    if not (instance.get("status") or {}).get("interfaces"):
        raise bad_request("no network interfaces are present")
    if protocol not in ("tcp", "udp"):
        raise bad_request(f"unsupported protocol: {protocol}")
    if not 0 < port < 65536:
        raise bad_request(f"invalid port: {port}")
    if not is_running(instance):
        raise bad_request("VMI is not running")
    return Decision(code=101, agent=f"portforward/{port}/{protocol}", streams=True)


def decide_machine_port_forward(
    name: str, machine: Json | None, instance: Json | None, port: int, protocol: str = "tcp"
) -> Decision:
    """The same, through the VirtualMachine's name."""
    found_machine(machine, name)
    if instance is None:
        raise machine_conflict(name, "VMI is not started")
    return decide_port_forward(name, instance, port, protocol)


def decide_sev(name: str, instance: Json | None, call: str, body: Json | None = None) -> Decision:
    """SEV attestation: `fetchcertchain`, `querylaunchmeasurement`, `setupsession`, `injectlaunchsecret`."""
    if call == "setupsession":
        for key, title in (("session", "Session blob"), ("dhCert", "DH cert")):
            if not (body or {}).get(key):
                raise bad_request(f"{title} is required")
    try:
        instance = found_instance(instance, name)
        if call == "fetchcertchain":
            if not (instance.get("status") or {}).get("nodeName"):
                raise instance_conflict(name, "VMI is not assigned to a node yet")
        elif not is_running(instance):
            raise instance_conflict(name, "VMI is not running")
        domain: Json = (instance.get("spec") or {}).get("domain") or {}
        sev: Json = (domain.get("launchSecurity") or {}).get("sev") or {}
        if sev.get("attestation") is None:
            raise instance_conflict(name, "Attestation not requested for VMI")
    except ApiError as error:
        if call in ("fetchcertchain", "querylaunchmeasurement"):
            raise in_plain(error) from error
        raise
    raise bad_request(f'cannot {call} for "{name}": SEV attestation is not offered by this server yet')


def decide_backup(name: str, instance: Json | None) -> Decision:
    """Backups of running guests are not offered yet; what upstream refuses is refused in its words."""
    _running(name, instance, "VM is not running")
    raise bad_request(f'cannot back up "{name}": this server does not offer backups of running machines yet')


def decide_redefine_checkpoint(name: str, instance: Json | None) -> Decision:
    """Needs changed block tracking."""
    instance = found_instance(instance, name)
    tracking = ((instance.get("status") or {}).get("changedBlockTracking") or {}).get("state")
    if tracking != "Enabled":
        raise instance_conflict(name, "ChangedBlockTracking is not enabled")
    raise bad_request(f'cannot redefine a checkpoint of "{name}": this server does not offer it yet')


def _running(name: str, instance: Json | None, otherwise: str) -> Json:
    instance = found_instance(instance, name)
    if not is_running(instance):
        raise instance_conflict(name, otherwise)
    return instance


def _streamable(name: str, instance: Json) -> None:
    if phase_of(instance) == "Failed":
        raise instance_conflict(name, "VMI is in failed status")
    if not is_running(instance):
        raise bad_request("VMI is not running")


def _devices(instance: Json) -> Json:
    found: Json = ((instance.get("spec") or {}).get("domain") or {}).get("devices") or {}
    return found
