"""Keys and trust of live migrations on one host: what QEMU shows and believes while a machine moves.

Each host has a small authority of its own, made here, whose key never leaves the host. It issues one server and one
client certificate into the folder where libvirt has QEMU look (`migrate_tls_x509_cert_dir`). Before a migration the two
agents tell each other, over their own mutual TLS, the authority's certificate: a host believes those of the hosts that
it exchanges a machine with at that time, and nobody else's. The keys belong to root; a machine's own user may read
them, by an access list, only while that machine moves. Loop-confined; the files are a few kilobytes.
Source: libvirt's qemu.conf, QEMU's tls-creds-x509 (file names), acl(5) (the extended attribute's layout).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from pathlib import Path

from stead import pki

#: entries of an access list: (tag, permissions, id); USER_OBJ, USER, GROUP_OBJ, MASK, OTHER
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY = 0xFFFFFFFF
_READ, _READ_WRITE = 4, 6
_ACL_VERSION = 2
_ATTRIBUTE = "system.posix_acl_access"
_FILES = ("ca-cert.pem", "server-cert.pem", "client-cert.pem", "server-key.pem", "client-key.pem")
_KEYS = ("server-key.pem", "client-key.pem")


class MigrationKeys:
    """See the module. `folder` is libvirt's, `authority_dir` the agent's own; `names` are this host's."""

    def __init__(self, folder: Path, authority_dir: Path, names: tuple[str, ...]) -> None:
        self._folder = folder
        self._authority_dir = authority_dir
        self._names = names
        self._trusted: dict[str, bytes] = {}
        self._readers: dict[str, int] = {}
        self._authority: pki.Pair | None = None

    def open(self) -> None:
        """Make what is missing and renew what is due; before the first migration there is nothing. Blocking.

        Raises OSError, also when the folder holds keys that are not ours.
        """
        foreign = [name for name in _FILES if (self._folder / name).exists()]
        if foreign and not self._authority_dir.exists():
            raise OSError(
                f"{self._folder / foreign[0]} is not Stead's: name another folder (setting migration_tls_dir)"
            )
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._authority = pki.ensure_authority(self._authority_dir, f"stead migration {self._names[0]}")
        pair = pki.Pair(self._authority_dir / "host.crt", self._authority_dir / "host.key")
        pki.ensure_certificate(self._authority, pair, pki.Identity(self._names[0], names=self._names))
        for role in ("server", "client"):
            pki.write_private(self._folder / f"{role}-cert.pem", pair.certificate.read_bytes(), 0o644)
            pki.write_private(self._folder / f"{role}-key.pem", pair.key.read_bytes())
        self._write()

    @property
    def authority(self) -> str:
        """PEM of this host's authority, for the other side."""
        assert self._authority is not None
        return self._authority.certificate.read_text(encoding="ascii")

    def begin(self, machine: str, peer: str, reader: int) -> None:
        """Believe `peer` (PEM), and let the user `reader` read the keys, while that machine moves. Blocking."""
        self.open()
        self._trusted[machine] = peer.encode("ascii")
        self._readers[machine] = reader
        self._write()

    def end(self, machine: str) -> None:
        """Neither any more. Blocking; no-op when nothing was begun."""
        if self._trusted.pop(machine, None) is None:
            return
        self._readers.pop(machine, None)
        self._write()

    def remove(self) -> None:
        """Leave nothing, when Stead is removed from the host. Blocking."""
        if not self._authority_dir.exists():
            return
        for name in _FILES:
            (self._folder / name).unlink(missing_ok=True)
        shutil.rmtree(self._authority_dir, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody else's files are in it
            self._folder.rmdir()

    def _write(self) -> None:
        assert self._authority is not None
        own = self._authority.certificate.read_bytes()
        pki.write_private(self._folder / "ca-cert.pem", b"".join({own, *self._trusted.values()}), 0o644)
        for name in _KEYS:
            _allow(self._folder / name, sorted(set(self._readers.values())))


def _allow(path: Path, readers: list[int]) -> None:
    """Let exactly these users read a file of root's."""
    if not readers:
        with contextlib.suppress(OSError):  # there is no list
            os.removexattr(path, _ATTRIBUTE)
        path.chmod(0o600)
        return
    entries = [(_USER_OBJ, _READ_WRITE, _NOBODY), *((_USER, _READ, uid) for uid in readers)]
    entries += [(_GROUP_OBJ, 0, _NOBODY), (_MASK, _READ, _NOBODY), (_OTHER, 0, _NOBODY)]
    packed = struct.pack("<I", _ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, _ATTRIBUTE, packed)
