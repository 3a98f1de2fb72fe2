"""What the agent remembers of each machine on disk, so that a new agent process knows a running one without touching
it.

One root-owned folder a machine, `<machines>/<uid>/`, with `record.json` (0600) beside the machine's private files;
the folder is 0711, so that the machine's process reaches its files and can put nothing there. Blocking; callers use a
thread.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
import structlog

from stead.agent import paths
from stead.agent.prepared import Prepared

log = structlog.get_logger(__name__)

_FILE = "record.json"


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One machine. `started` is set before the hypervisor is told to start, so that it is never started twice."""

    uid: str
    namespace: str
    name: str
    prepared: Prepared | None = None
    started: bool = False


class Records:
    """All records below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def directory(self, uid: str) -> Path:
        """The machine's folder, made if need be."""
        return paths.make_directory(self.folder, uid, mode=0o711)

    def write(self, record: Record) -> None:
        """Keep a record over the agent's end. Not over a loss of power, which ends all machines: no need to wait."""
        paths.write_file(self.directory(record.uid), _FILE, msgspec.json.encode(record), durable=False)

    def read(self, uid: str) -> Record | None:
        """The record of a machine; None if there is none that can be read."""
        try:
            descriptor = paths.open_beneath(self.folder, f"{uid}/{_FILE}", os.O_RDONLY)
            with os.fdopen(descriptor, "rb") as stream:
                return msgspec.json.decode(stream.read(), type=Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("a machine's record cannot be read", machine=uid, error=str(error))
            return None

    def uids(self) -> set[str]:
        """Machines that have a folder."""
        with contextlib.suppress(FileNotFoundError):
            return {entry.name for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False)}
        return set()

    def remove(self, uid: str) -> None:
        """Forget a machine, with its private files."""
        paths.remove_tree(self.folder, uid)
