"""Does KVM truly run guests here? A timed probe: QEMU boots firmware and a boot sector under KVM and under emulation.

A device node and a CPU flag prove nothing: on some hosts /dev/kvm opens, creates a machine, and then fails on the
host's CPU model or runs firmware 30 times slower than emulation does. So the same firmware (SeaBIOS) boots the same
ten bytes with both accelerators; KVM is chosen only if it finishes, and not slower. The answer holds until the next
boot of the host and is kept in a file beside its boot id. Called by the driver's `capabilities()` once; costs under 1
s, and `DEADLINE_SECONDS` at most for each accelerator. The boot sector ends QEMU through its debug exit device.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from pathlib import Path

import msgspec

DEADLINE_SECONDS = 20.0
_KVM_FACTOR = 2.0  # KVM may take this many times emulation's time, and the slack below, for noise on a loaded host
_KVM_SLACK_SECONDS = 1.0
_EXIT_PORT = 0xF4
_EXIT_VALUE = 0x10
# cli; mov al,VALUE; mov dx,PORT; out dx,al; hlt; jmp to hlt
_BOOT_CODE = bytes((0xFA, 0xB0, _EXIT_VALUE, 0xBA, _EXIT_PORT, 0x00, 0xEE, 0xF4, 0xEB, 0xFD))
_FLOPPY_BYTES = 1440 * 1024
_EXIT_STATUS = _EXIT_VALUE * 2 + 1  # isa-debug-exit: (value << 1) | 1


class Probe(msgspec.Struct, frozen=True):
    """What the probe found. `reason` says in a sentence why guests are emulated; empty when KVM is used."""

    software_emulation: bool
    reason: str = ""
    kvm_seconds: float = 0.0
    emulation_seconds: float = 0.0
    boot_id: str = ""


class _Run(msgspec.Struct, frozen=True):
    seconds: float
    failure: str


async def probe(emulator: str, cache: Path | None = None, device: Path = Path("/dev/kvm")) -> Probe:
    """Find out, or read what was found since the host booted. Never raises: what goes wrong is the reason."""
    boot_id = await asyncio.to_thread(_boot_id)
    if cache is not None:
        known = await asyncio.to_thread(_read, cache)
        if known is not None and known.boot_id == boot_id:
            return known
    found = await _measure(emulator, device)
    found = msgspec.structs.replace(found, boot_id=boot_id)
    if cache is not None:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(_write, cache, found)
    return found


def decide_emulation(kvm_seconds: float, emulation_seconds: float) -> str:
    """The reason to emulate, or an empty string when KVM is fast enough."""
    if kvm_seconds <= emulation_seconds * _KVM_FACTOR + _KVM_SLACK_SECONDS:
        return ""
    return (
        f"KVM runs guests slower than emulation here: firmware took {kvm_seconds:.1f} s under KVM "
        f"and {emulation_seconds:.1f} s emulated"
    )


async def _measure(emulator: str, device: Path) -> Probe:
    if not await asyncio.to_thread(os.access, device, os.R_OK | os.W_OK):
        return Probe(True, f"{device} does not exist or cannot be opened: no hardware virtualisation for guests")
    emulated = await _boot(emulator, "tcg", "max", DEADLINE_SECONDS)
    if emulated.failure:
        return Probe(True, f"the probe of KVM could not run QEMU at all: {emulated.failure}")
    deadline = min(DEADLINE_SECONDS, emulated.seconds * _KVM_FACTOR + _KVM_SLACK_SECONDS)
    under_kvm = await _boot(emulator, "kvm", "host", deadline)
    if under_kvm.failure:
        reason = f"{device} exists, but KVM does not run guests usably: {under_kvm.failure}"
        return Probe(True, reason, under_kvm.seconds, emulated.seconds)
    reason = decide_emulation(under_kvm.seconds, emulated.seconds)
    return Probe(bool(reason), reason, under_kvm.seconds, emulated.seconds)


async def _boot(emulator: str, accelerator: str, cpu: str, seconds: float) -> _Run:
    """Boot the sector once. `failure` is empty, or one line of what went wrong."""
    with tempfile.NamedTemporaryFile(prefix="stead-probe-") as image:
        image.write(_BOOT_CODE.ljust(510, b"\0") + b"\x55\xaa")
        image.truncate(_FLOPPY_BYTES)
        image.flush()
        command = [emulator, "-accel", accelerator, "-cpu", cpu, "-machine", "pc,usb=off", "-m", "16"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-sandbox", "on", "-boot", "a"]
        command += ["-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1"]
        command += ["-drive", f"file={image.name},format=raw,if=floppy,read-only=on"]
        return await _timed(command, seconds)


async def _timed(command: list[str], seconds: float) -> _Run:
    started = time.monotonic()
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        return _Run(0.0, f"{command[0]} cannot be started: {error.strerror}")
    try:
        _, errors = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        return _Run(time.monotonic() - started, f"firmware did not finish in {seconds:.1f} s")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    took = time.monotonic() - started
    if process.returncode == _EXIT_STATUS:
        return _Run(took, "")
    lines = errors.decode(errors="replace").strip().splitlines()
    return _Run(took, lines[0] if lines else f"QEMU ended with {process.returncode}")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _read(cache: Path) -> Probe | None:
    try:
        return msgspec.json.decode(cache.read_bytes(), type=Probe)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None


def _write(cache: Path, found: Probe) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    draft = cache.with_name(cache.name + ".new")
    draft.write_bytes(msgspec.json.encode(found))
    draft.replace(cache)
