"""What the import worker is told and what it answers: one `Job` in, `Report`s out, as JSON lines. Values only."""

from __future__ import annotations

import msgspec

from stead.images.confine import Limits
from stead.images.sources import Access

#: reason of an import that was given up because the image is the one that is here already
UNCHANGED = "Unchanged"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. `kind` http | registry | upload | resolve; `mode` disk = guest data to a raw target, store = the
    image itself (checked raw or qcow2) to the target, plain = any file as it is (kernel, initrd), scratch = the image
    itself to the spill for qemu-img to convert, examine = only judge the head that is sent.
    """

    kind: str
    mode: str = "disk"
    url: str = ""
    access: Access = Access()
    checksum: str = ""
    limit_bytes: int
    #: descriptors: the disk to fill, what must be seen again, how far it has come (-1: none)
    target: int = -1
    spill: int = -1
    journal: int = -1
    checkpoint_seconds: float = 5.0
    insecure: bool = False
    architecture: str = "amd64"
    path: str = ""
    #: a registry image of this digest is not wanted once more: the job ends with reason Unchanged
    known_digest: str = ""
    #: `raw`, `qcow2`… when the uploader declared it; must then match what the bytes are
    format: str = ""
    total: int = -1
    limits: Limits = Limits()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those that are given."""
        return tuple(fd for fd in (self.target, self.spill, self.journal) if fd >= 0)


class Report(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Progress (`read` of `total` bytes), or the end: `done` with what was made, or `error` with CDI's words."""

    read: int = 0
    total: int = -1
    done: bool = False
    #: format of what lies in the target (raw, qcow2), or in the spill when `convert` is set
    format: str = ""
    convert: bool = False
    virtual_bytes: int = 0
    file_bytes: int = 0
    digest: str = ""
    labels: dict[str, str] = {}
    error: str = ""
    reason: str = ""
    fatal: bool = False
    scratch: bool = False
    #: the source was lost; another attempt can go on from the journal
    resumable: bool = False
