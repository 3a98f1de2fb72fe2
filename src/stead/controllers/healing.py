"""What becomes of machines whose host fell silent: told what is known, and started elsewhere only when that is safe.

Started by `controllers.start` on rungs 1 and 2. While a host is Ready=Unknown it writes the Ready condition of the
instances that are bound to it (their agent cannot; it takes the condition back when it returns) and leaves the phase:
the machine may well run. Once the host is *surely off* (Kubernetes' taint `node.kubernetes.io/out-of-service`, set by
`fencing` or by `stead host confirm-dead`) an instance without anything on that host becomes Failed, which its
VirtualMachine answers by a new one elsewhere, and `instance` lets go of the old one's finalizer. A machine with a disk
or a kept state on that host is never started elsewhere. Time alone is never certainty.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from stead.client.informer import Key, key_of
from stead.controllers.conditions import condition, is_deleting, merge_conditions, spec_of, status_of, text_from_time
from stead.controllers.machine_status import is_final
from stead.controllers.placement import HOSTNAME_LABEL
from stead.controllers.placement_rules import only_hosts
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.volume_needs import claim_names
from stead.controllers.writes import write_status
from stead.kinds.hosts import OUT_OF_SERVICE_TAINT, has_taint, ready_condition
from stead.kinds.register import NODE, PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, VIRTUAL_MACHINE_INSTANCE

Object = dict[str, Any]

#: reasons of the Ready condition
UNKNOWN, FENCING_REQUIRED, LOST = "HostUnknown", "FencingRequired", "HostLost"


class Silence(msgspec.Struct, frozen=True):
    """A host that is Ready=Unknown: since when (RFC 3339), and whether it is surely off."""

    host: str
    since: str
    is_off: bool


class Fate(msgspec.Struct, frozen=True):
    """What is told of an instance; `fails`: it ends as Failed."""

    reason: str
    message: str
    fails: bool = False


def silence_of(node: Object | None) -> Silence | None:
    """The silence of a host; None when it is heard, or not registered."""
    if node is None or ready_condition(node).get("status") != "Unknown":
        return None
    since = str(ready_condition(node).get("lastTransitionTime") or "")
    return Silence(node["metadata"]["name"], since, is_surely_off(node))


def is_surely_off(node: Object) -> bool:
    """Whether a fencer or an administrator vouches that the host is off, and nothing is heard of it."""
    return has_taint(node, OUT_OF_SERVICE_TAINT["key"]) and ready_condition(node).get("status") != "True"


def decide_fate(silence: Silence, kept: str) -> Fate:
    """What becomes of a machine on a silent host; `kept` names what of it lies on that host alone, "" = nothing."""
    host, since = silence.host, f"host {silence.host} is silent since {silence.since}"
    if silence.is_off and kept:
        return Fate(LOST, f"host {host} is off; {kept}, so the machine waits for this host")
    if silence.is_off:
        return Fate(LOST, f"host {host} is off; the machine may start elsewhere", fails=True)
    if kept:
        return Fate(UNKNOWN, f"{since}; the machine may run there still; {kept}, so it is never started elsewhere")
    text = f"{since}; the machine may run there still, and starts elsewhere only when the host is surely off: "
    return Fate(FENCING_REQUIRED, f"{text}by a fencer, or `stead host confirm-dead {host}`")


def kept_on(vmi: Object, host: str, affinity_of: Callable[[str], Object]) -> str:
    """What of a machine lies on its host alone, in words; `affinity_of(claim)` is its volume's required affinity."""
    for volume, claim, _ in claim_names(vmi):
        named = only_hosts(affinity_of(claim).get("nodeSelectorTerms") or (), HOSTNAME_LABEL)
        if named == frozenset((host,)):
            return f"its volume {volume} lies on that host"
    for volume in spec_of(vmi).get("volumes") or ():
        if volume.get("hostDisk"):
            return f"its volume {volume.get('name')} is a file of that host"
    domain = spec_of(vmi).get("domain") or {}
    efi = ((domain.get("firmware") or {}).get("bootloader") or {}).get("efi") or {}
    if efi.get("persistent") or ((domain.get("devices") or {}).get("tpm") or {}).get("persistent"):
        return "its persistent TPM or EFI state lies on that host"
    return ""


def status_after(vmi: Object, fate: Fate, now: str) -> Object:
    """The instance's whole status with what is told."""
    status = dict(status_of(vmi))
    old = status.get("conditions") or ()
    others = [{k: v for k, v in c.items() if k != "lastTransitionTime"} for c in old if c.get("type") != "Ready"]
    ready = condition("Ready", "False", fate.reason, fate.message)
    status["conditions"] = merge_conditions(old, [ready, *others], now)
    if fate.fails:
        stamp = {"phase": "Failed", "phaseTransitionTimestamp": now}
        status["phase"], status["reason"] = "Failed", fate.reason
        status["phaseTransitionTimestamps"] = [*(status.get("phaseTransitionTimestamps") or ()), stamp]
    return status


class Healing:
    """The controller's hands."""

    def __init__(self, world: World, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._world = world
        self._clock = clock
        of = world.informers.of
        self._vmis, self._nodes = of(VIRTUAL_MACHINE_INSTANCE), of(NODE)
        self._claims, self._volumes = of(PERSISTENT_VOLUME_CLAIM), of(PERSISTENT_VOLUME)
        self._vmis.add_index("host", _host_of)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        nodes = Source(self._nodes, self._machines_of)
        return Controller("healing", self.reconcile, (Source(self._vmis, own_key), nodes), workers=2)

    def _machines_of(self, node: Object) -> list[Key]:
        if silence_of(node) is None:
            return []
        return [key_of(vmi) for vmi in self._vmis.by_index("host", node["metadata"]["name"])]

    async def reconcile(self, key: Key) -> float | None:
        """Judge one instance."""
        vmi = self._vmis.get(*key)
        if vmi is None or is_final(vmi) or is_deleting(vmi):
            return None
        silence = silence_of(self._nodes.get(None, str(status_of(vmi).get("nodeName") or "")))
        if silence is None:
            return None
        fate = decide_fate(silence, self.kept(vmi, silence.host))
        status = status_after(vmi, fate, text_from_time(self._clock()))
        if status == status_of(vmi):
            return None
        await write_status(self._world.client, VIRTUAL_MACHINE_INSTANCE, vmi, status)
        self._world.recorder.event(vmi, "Warning", fate.reason, fate.message)
        return None

    def kept(self, vmi: Object, host: str) -> str:
        """`kept_on` by what the informers know."""
        return kept_on(vmi, host, lambda claim: self._affinity(vmi["metadata"]["namespace"], claim))

    def may_leave(self, host: str) -> bool:
        """Whether any machine of that host could start elsewhere, once the host is off."""
        alive = [vmi for vmi in self._vmis.by_index("host", host) if not is_final(vmi)]
        return any(not self.kept(vmi, host) for vmi in alive)

    def _affinity(self, namespace: str, claim: str) -> Object:
        volume = spec_of(self._claims.get(namespace, claim)).get("volumeName") or ""
        found: Object = (spec_of(self._volumes.get(None, volume)).get("nodeAffinity") or {}).get("required") or {}
        return found


def _host_of(vmi: Object) -> list[str]:
    host = status_of(vmi).get("nodeName")
    return [str(host)] if host else []
