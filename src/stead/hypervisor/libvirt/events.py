"""libvirt's event loop in a thread of its own, and the translation of its numbers into the contract's words.

`ensure_event_loop` must run before the first connection is opened; the loop is one a process, shared by all
connections, and lives as long as the process (libvirt offers no way to end it). Callbacks arrive in that thread: the
connection hands them on with `call_soon_threadsafe`. Source: libvirt-domain.h (virDomainEventType and its details),
9.0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import libvirt

from stead.hypervisor.contract import State, StopReason

_WAKE_MILLISECONDS = 5000
_started = threading.Lock()
_thread: threading.Thread | None = None


def ensure_event_loop() -> None:
    """Start the event loop thread once for the process. Thread-safe."""
    global _thread
    with _started:
        if _thread is not None:
            return
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors arrive as exceptions; no stderr
        libvirt.virEventRegisterDefaultImpl()
        libvirt.virEventAddTimeout(_WAKE_MILLISECONDS, lambda _timer, _opaque: None, None)
        _thread = threading.Thread(target=_run, name="libvirt-events", daemon=True)
        _thread.start()


def _run() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: State.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: State.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: State.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: State.STOPPING,
    libvirt.VIR_DOMAIN_SHUTOFF: State.OFF,
    libvirt.VIR_DOMAIN_CRASHED: State.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: State.PAUSED,
}
_OFF_REASONS = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: StopReason.SHUTDOWN,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: StopReason.DESTROYED,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: StopReason.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: StopReason.MIGRATED,
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: StopReason.SAVED,
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: StopReason.FAILED,
}
_PAUSE_REASONS = {
    libvirt.VIR_DOMAIN_PAUSED_USER: StopReason.USER,
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: StopReason.MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: StopReason.IO_ERROR,
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: StopReason.CRASHED,
}


def state_from_libvirt(number: int, reason: int) -> tuple[State, StopReason]:
    """State and reason of `virDomainGetState`. A machine that is off because QEMU died is CRASHED."""
    state = _STATES.get(number, State.OFF)
    if state is State.OFF:
        why = _OFF_REASONS.get(reason, StopReason.NONE)
        return (State.CRASHED if why is StopReason.CRASHED else State.OFF), why
    if state is State.CRASHED:
        return state, StopReason.CRASHED
    if state is State.PAUSED:
        return state, _PAUSE_REASONS.get(reason, StopReason.NONE)
    return state, StopReason.NONE


_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "suspended",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "resumed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: "suspended",
    libvirt.VIR_DOMAIN_EVENT_CRASHED: "crashed",
}
_STOPPED = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: StopReason.SHUTDOWN,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: StopReason.DESTROYED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: StopReason.CRASHED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: StopReason.MIGRATED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: StopReason.SAVED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: StopReason.CRASHED,  # so libvirt calls a QEMU that died under it
}


def lifecycle_detail(event: int, detail: int) -> str:
    """`started`, `suspended`, `resumed`, `shutdown`, `crashed`, or `stopped: <reason>`."""
    word = _LIFECYCLE.get(event, f"event {event}")
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED and detail in _STOPPED:
        return f"{word}: {_STOPPED[detail].value}"
    return word


def register_callbacks(
    connection: libvirt.virConnect,
    lifecycle: Callable[[str, int, int], None],
    other: Callable[[str, str, str], None],
) -> None:
    """Have `lifecycle(uid, event, detail)`, `other(uid, kind, detail)` called for all domains, in the event thread."""

    def on_lifecycle(_conn: Any, domain: libvirt.virDomain, event: int, detail: int, _opaque: Any) -> None:
        lifecycle(domain.UUIDString(), event, detail)

    def on_agent(_conn: Any, domain: libvirt.virDomain, state: int, _reason: int, _opaque: Any) -> None:
        up = state == libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED
        other(domain.UUIDString(), "agent", "connected" if up else "disconnected")

    def on_io_error(_conn: Any, domain: libvirt.virDomain, *details: Any) -> None:
        path, alias, action, reason = details[:4]
        detail = f"{str(alias).removeprefix('ua-')}: {reason or 'I/O error'} on {path} (action {action})"
        other(domain.UUIDString(), "io-error", detail)

    def on_reboot(_conn: Any, domain: libvirt.virDomain, _opaque: Any) -> None:
        other(domain.UUIDString(), "reboot", "")

    def on_watchdog(_conn: Any, domain: libvirt.virDomain, action: int, _opaque: Any) -> None:
        other(domain.UUIDString(), "watchdog", f"action {action}")

    for event, callback in (
        (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_lifecycle),
        (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, on_agent),
        (libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, on_io_error),
        (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, on_reboot),
        (libvirt.VIR_DOMAIN_EVENT_ID_WATCHDOG, on_watchdog),
    ):
        connection.domainEventRegisterAny(None, event, callback, None)
