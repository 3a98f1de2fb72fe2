"""Lets machines' processes reach what libvirt keeps for them below its own folder, and undoes that.

libvirt keeps each machine's master key and monitor in `/var/lib/libvirt/qemu/domain-…`, owned by the machine's user,
but Debian gives the folder above mode 0750 of one common user: machines with users of their own could not pass it.
Passage (o+x, no listing) is added to that one folder; each machine's folder stays closed to others. What the mode was
is noted, and `restore` puts it back. Only for the host's own libvirt, called by the driver's `open` and by the removal
of Stead.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

FOLDER = Path("/var/lib/libvirt/qemu")
#: the only connection that keeps its state there, as far as we can know
SYSTEM_URI = "qemu:///system"
_NOTE = "libvirt-folder-mode"


def allow(uri: str, state_dir: Path | None, folder: Path = FOLDER) -> bool:
    """Add passage when it lacks; True when the mode was changed. Raises OSError when it cannot be changed."""
    if uri != SYSTEM_URI or not folder.is_dir():
        return False
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & stat.S_IXOTH:
            return False
        if state_dir is not None:
            state_dir.mkdir(parents=True, exist_ok=True)
            (state_dir / _NOTE).write_text(f"{mode:o}\n", encoding="ascii")
        os.fchmod(descriptor, mode | stat.S_IXOTH)
    finally:
        os.close(descriptor)
    return True


def restore(state_dir: Path, folder: Path = FOLDER) -> None:
    """Put back the mode that `allow` found. No-op when it changed nothing."""
    note = state_dir / _NOTE
    try:
        mode = int(note.read_text(encoding="ascii"), 8)
    except (FileNotFoundError, ValueError):
        return
    if folder.is_dir():
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, mode & 0o777)
        finally:
            os.close(descriptor)
    note.unlink()
