"""State of a machine that outlives its instances on this host: UEFI variables and a TPM's memory.

One folder a VirtualMachine, `<state>/persistent/<uid>/`, named by the machine's uid (an instance without one: its own),
with `owner.json` beside `nvram.fd` and `tpm/`. Made by `bringup.py` before a start, whose machine gets the files; kept
while the VirtualMachine exists, removed by `agent.py` when it is gone. It belongs to this host: such a machine cannot
move (`status.py` says so). The folder is root's and may only be passed through. Blocking; callers use a thread.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec
import structlog

from stead.agent import paths
from stead.agent import vmi as reading

log = structlog.get_logger(__name__)

Object = dict[str, Any]

NVRAM = "nvram.fd"
TPM = "tpm"
_OWNER = "owner.json"


class StateOwner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose state it is. `kind` is VirtualMachine or VirtualMachineInstance."""

    kind: str
    namespace: str
    name: str
    uid: str


def owner_of(vmi: Object) -> StateOwner:
    """The VirtualMachine that controls the instance, else the instance itself."""
    namespace = reading.namespace(vmi)
    for reference in vmi["metadata"].get("ownerReferences") or []:
        if reference.get("controller") and reference.get("kind") == "VirtualMachine":
            return StateOwner(
                kind="VirtualMachine", namespace=namespace, name=str(reference["name"]), uid=str(reference["uid"])
            )
    kind = "VirtualMachineInstance"
    return StateOwner(kind=kind, namespace=namespace, name=reading.name(vmi), uid=reading.uid(vmi))


class Persistence:
    """All such folders of a host."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self, vmi: Object, uid: int, gid: int) -> str:
        """The folder for this instance, its files given to `uid:gid`; "" when nothing of it is to outlive it."""
        kept = reading.has_persistent_efi(vmi) or reading.has_persistent_tpm(vmi) or reading.tracks_changes(vmi)
        if not kept:
            return ""
        owner = owner_of(vmi)
        folder = paths.make_directory(self.root, owner.uid, mode=0o711)
        self.root.chmod(0o711)
        paths.write_file(folder, _OWNER, msgspec.json.encode(owner))
        if reading.has_persistent_tpm(vmi):
            paths.make_directory(folder, TPM, uid=uid, gid=gid, mode=0o700)
            _give_all(folder / TPM, uid, gid)
        with contextlib.suppress(FileNotFoundError):
            paths.give(folder, NVRAM, uid, gid)
        return str(folder)

    def owners(self) -> list[StateOwner]:
        """Whose state lies here."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.root):
                try:
                    descriptor = paths.open_beneath(self.root, f"{entry.name}/{_OWNER}", os.O_RDONLY)
                    with os.fdopen(descriptor, "rb") as stream:
                        found.append(msgspec.json.decode(stream.read(), type=StateOwner))
                except (OSError, msgspec.MsgspecError) as error:
                    log.warning("a folder of persistent state tells no owner", folder=entry.name, error=str(error))
        return found

    def remove(self, uid: str) -> None:
        """Forget the state of an owner; nothing if there is none."""
        paths.remove_tree(self.root, uid)


def _give_all(folder: Path, uid: int, gid: int) -> None:
    """Everything below a folder that one machine's uid wrote; links are not followed."""
    for _, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)
