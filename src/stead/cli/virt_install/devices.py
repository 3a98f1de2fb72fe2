"""Display, consoles and small devices. What every machine has is accepted, what none has is refused. Pure."""

from __future__ import annotations

from stead.cli.virt_install.plan import Line, Plan, choice
from stead.cli.virt_install.suboptions import Refusal

_LOCAL = ("127.0.0.1", "::1", "localhost", "socket", "none")
_CONTROLLERS = {
    "usb": ("", "qemu-xhci", "nec-xhci", "default"), "usb3": ("",), "scsi": ("", "virtio-scsi", "auto"),
    "sata": ("",), "pci": ("", "pcie-root", "pcie-root-port"), "virtio-serial": ("",),
}  # fmt: skip


def add_devices(line: Line, plan: Plan) -> None:
    """Everything of this topic. Raises Refusal."""
    _add_graphics(line, plan)
    _add_video(line, plan)
    _add_consoles(line, plan)
    _add_helpers(line, plan)
    for given in line.all("--controller"):
        kind, model = given.get("type"), given.get("model")
        if model not in _CONTROLLERS.get(kind, ()):
            raise Refusal(f"--controller {kind[:40]} {model[:40]}".rstrip() + " is not one that machines here have")
    for given in line.all("--input"):
        kind = choice(given, "type", ("tablet", "none", "mouse", "keyboard"))
        if kind in ("mouse", "keyboard") and given.get("bus") == "ps2":
            continue  # every x86 machine has them
        if kind in ("mouse", "keyboard"):
            raise Refusal(f"--input {kind} is not offered; a tablet is")
        if kind == "tablet":
            inputs = plan.devices.setdefault("inputs", [])
            bus = choice(given, "bus", ("usb", "virtio")) or "usb"
            inputs.append({"name": f"tablet{len(inputs) or ''}", "type": "tablet", "bus": bus})
    for given in line.all("--hostdev"):
        if given.get("name") != "none":
            raise Refusal(f"--hostdev {given.get('name')[:60]} is refused: passing devices through is not offered yet")


def has_graphics(line: Line) -> bool:
    """Whether the line leaves the display in place."""
    kinds = [given.get("type") or "vnc" for given in line.all("--graphics")]
    return not line.has("--nographics") and kinds[:1] != ["none"]


def _add_graphics(line: Line, plan: Plan) -> None:
    for given in line.all("--graphics"):
        kind = given.get("type")
        if kind in ("spice", "sdl", "egl-headless", "rdp", "dbus", "desktop"):
            raise Refusal(f"--graphics {kind} is not offered; vnc is (`stead vnc NAME`), or none")
        choice(given, "type", ("vnc", "none", "default", ""))
        listen = given.get("listen")
        if listen and listen not in _LOCAL:
            raise Refusal(
                f"--graphics listen={listen[:60]} is refused: no VNC port listens on TCP; `stead vnc NAME` carries it "
                "through the API"
            )
        if given.get("port") not in ("", "-1"):
            raise Refusal(
                f"--graphics port={given.get('port')[:20]} is refused: no VNC port listens on TCP; "
                "`stead vnc NAME --port PORT` opens one on your side"
            )
        given.switch("autoport")
    if not has_graphics(line):
        if line.has("--vnc"):
            raise Refusal("--vnc and a display of none exclude each other")
        plan.devices["autoattachGraphicsDevice"] = False


def _add_video(line: Line, plan: Plan) -> None:
    given = line.last("--video")
    if given is None:
        return
    model = choice(given, "model", ("vga", "virtio", "bochs", "cirrus", "ramfb", "none", "default"))
    if model == "none":
        plan.devices["autoattachGraphicsDevice"] = False
    elif model != "default" and plan.devices.get("autoattachGraphicsDevice") is not False:
        plan.devices["video"] = {"type": model}


def _add_consoles(line: Line, plan: Plan) -> None:
    for flag in ("--serial", "--console"):
        kinds = [choice(given, "type", ("pty", "none", "default", "unix")) for given in line.all(flag)]
        for given in line.all(flag):
            choice(given, "target.type", ("serial", "isa-serial"))
        if len(kinds) > 1:
            raise Refusal(f"{flag} is given {len(kinds)} times; a machine has one serial console")
        if kinds == ["none"]:
            plan.devices["autoattachSerialConsole"] = False
        elif kinds:
            plan.devices.setdefault("autoattachSerialConsole", True)
    for given in line.all("--channel"):
        kind = given.get("type")
        if kind in ("spicevmc", "spiceport", "qemu-vdagent"):
            raise Refusal(f"--channel {kind} is not offered: there is no SPICE; the guest agent has its channel")
        choice(given, "type", ("unix", "none", "default"))
        choice(given, "target.type", ("virtio",))
        choice(given, "name", ("org.qemu.guest_agent.0", "qemu-ga"))


def _add_helpers(line: Line, plan: Plan) -> None:
    tpm = line.last("--tpm")
    if tpm:
        kind = tpm.get("type") or "emulator"
        if kind == "passthrough" or kind.startswith("/dev/"):
            raise Refusal(f"--tpm {kind[:40]} is refused: the host's module is not passed through; emulator is offered")
        choice(tpm, "type", ("emulator", "default", "none", "passthrough"))
        choice(tpm, "version", ("2.0", "default"))
        if choice(tpm, "model", ("tpm-tis", "tpm-crb", "default")) == "tpm-crb":
            plan.warn("--tpm model=tpm-crb: a module without persistent state is a tpm-tis; guests use either alike")
        if kind != "none":
            plan.devices["tpm"] = {}
    rng = line.last("--rng")
    if rng:
        kind = choice(rng, "type", ("/dev/urandom", "/dev/random", "builtin", "random", "none", "default"))
        choice(rng, "device", ("/dev/urandom", "/dev/random"))
        if kind != "none":
            plan.devices["rng"] = {}
        else:
            plan.warn("--rng none: most preferences add a source of random numbers; --preference legacy does not")
    watchdog = line.last("--watchdog")
    if watchdog and choice(watchdog, "model", ("i6300esb", "default", "none")) != "none":
        action = choice(watchdog, "action", ("reset", "poweroff", "shutdown", "default"))
        action = "reset" if action in ("", "default") else action
        plan.devices["watchdog"] = {"name": "watchdog", "i6300esb": {"action": action}}
    sound = line.last("--sound")
    if sound:
        model = choice(sound, "model", ("ich9", "ac97", "default", "none"))
        if model != "none":
            plan.devices["sound"] = {"name": "sound", "model": "ich9" if model in ("", "default") else model}
    balloon = line.last("--memballoon")
    if balloon and choice(balloon, "model", ("virtio", "default", "none")) == "none":
        plan.devices["autoattachMemBalloon"] = False
