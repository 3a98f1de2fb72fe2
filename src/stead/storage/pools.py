"""Volumes in a directory of one host: `<pool>/<volume-uid>/disk.img` (raw, sparse) with `volume.json` beside it.

Called by the agent (volume workers, machines) and the image commands; all functions block, so callers use threads. A
volume is made under a name of its own (`.part-<uid>`) and renamed when complete and synced: whatever is found under its
uid is whole. One pool has one writing host; `.lock` keeps a second agent process out of the middle of an operation.
Several Steads may share a folder: what any but the usual instance has begun is `.part.<instance>.<uid>`, so that nobody
clears away what another is working on. No symbolic link is followed below the pool. `pool.json` holds the pool's uid,
which PV handles carry (`pool-uid/volume-uid`). A disk may instead have a name of its own in the pool's folder
(`VolumeSpec.file`, for people who come from virt-install); then `<volume-uid>` holds its record only. Such a file is
never overwritten, and one that was there before is adopted as it is and outlives its volume.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from stead.storage.copying import copy_disk

_FORMAT = 1
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
DISK = "disk.img"
#: begins volumes without its name in theirs
_USUAL_INSTANCE = "stead"
#: names that people give to disks in a pool's folder; no dot in front, so none of ours
_FILE = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_+.,@=-]{0,199}")
_OWN_FILES = ("pool.json",)


class PoolError(Exception):
    """An operation on a pool failed. `reason`: NotFound, Exists, NoSpace, TooSmall, Invalid or Failed."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class VolumeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to make: uid (the claim's), size in bytes, and whose it is (for people who look into the folder).

    `file` is the name that the disk has in the pool's own folder instead of `<uid>/disk.img`; `format` of a blank one.
    """

    uid: str
    size_bytes: int
    namespace: str = ""
    name: str = ""
    file: str = ""
    format: str = "raw"
    #: kept as it is, and never to grow
    snapshot: bool = False


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """What is there: `path` of the disk, size the guest sees, bytes allocated."""

    uid: str
    path: Path
    format: str
    size_bytes: int
    allocated_bytes: int
    namespace: str = ""
    name: str = ""
    #: the file was there before and stays when the volume goes
    adopted: bool = False
    snapshot: bool = False


class Usage(msgspec.Struct, frozen=True):
    """Of the filesystem that holds the pool, and how much its volumes may grow to and have taken; bytes."""

    capacity_bytes: int
    free_bytes: int
    allocated_bytes: int
    promised_bytes: int


class _Record(msgspec.Struct, kw_only=True):
    format_version: int = _FORMAT
    uid: str
    format: str = "raw"
    namespace: str = ""
    name: str = ""
    created: str = ""
    #: name in the pool's folder, "" for `<uid>/disk.img`
    file: str = ""
    adopted: bool = False
    snapshot: bool = False
    #: what the guest sees of a qcow2; a raw disk's length says it itself
    virtual_bytes: int = 0


class _Identity(msgspec.Struct):
    uid: str
    name: str
    format_version: int = _FORMAT


class Pool:
    """One directory pool; see the module text."""

    def __init__(self, path: Path, name: str = "default", instance: str = _USUAL_INSTANCE) -> None:
        """Open the pool, making the folder (0711) and its identity if new. PoolError if it cannot be one."""
        self.path = path
        self._begun = ".part-" if instance == _USUAL_INSTANCE else f".part.{instance}."
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o711)
            identity = path / "pool.json"
            if not identity.exists():
                _write_file(identity, msgspec.json.encode(_Identity(str(uuid.uuid4()), name)))
            found = msgspec.json.decode(identity.read_bytes(), type=_Identity)
        except (OSError, msgspec.DecodeError) as error:
            raise PoolError("Failed", f"pool {name} at {path} cannot be opened: {error}") from error
        if found.format_version > _FORMAT:
            raise PoolError(
                "Invalid", f"pool {name} at {path} was written by a newer release (format {found.format_version})"
            )
        self.uid, self.name = found.uid, found.name

    def handle(self, volume_uid: str) -> str:
        """The PV's volumeHandle."""
        return f"{self.uid}/{volume_uid}"

    def disk_path(self, volume_uid: str) -> Path:
        """Where the disk of a (checked) uid lies, whether it exists or not."""
        return self._folder(volume_uid) / DISK

    def get(self, volume_uid: str) -> Volume:
        """The volume; PoolError NotFound."""
        folder = self._folder(volume_uid)
        try:
            record = msgspec.json.decode((folder / "volume.json").read_bytes(), type=_Record)
            path = folder / DISK
            if record.file:
                self._settle(folder, record)
                path = self.path / record.file
            info = path.lstat()
        except FileNotFoundError:
            raise PoolError("NotFound", f"volume {volume_uid} is not in pool {self.name}") from None
        except msgspec.DecodeError as error:
            raise PoolError(
                "Failed", f"volume {volume_uid} in pool {self.name} has a damaged record: {error}"
            ) from error
        if not stat.S_ISREG(info.st_mode):
            raise PoolError("Invalid", f"the disk of volume {volume_uid} in pool {self.name} is not a regular file")
        size = info.st_size if record.format == "raw" else record.virtual_bytes
        return Volume(uid=volume_uid, path=path, format=record.format, size_bytes=size,
                      allocated_bytes=info.st_blocks * 512, namespace=record.namespace, name=record.name,
                      adopted=record.adopted, snapshot=record.snapshot)  # fmt: skip

    def volumes(self) -> list[Volume]:
        """All complete volumes, by uid."""
        found = []
        for entry in sorted(os.scandir(self.path), key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False) and _UID.fullmatch(entry.name):
                with contextlib.suppress(PoolError):
                    found.append(self.get(entry.name))
        return found

    def usage(self) -> Usage:
        """Figures for status, metrics and placement."""
        system = os.statvfs(self.path)
        volumes = self.volumes()
        return Usage(
            system.f_blocks * system.f_frsize,
            system.f_bavail * system.f_frsize,
            sum(v.allocated_bytes for v in volumes),
            sum(v.allocated_bytes if v.snapshot else v.size_bytes for v in volumes),
        )

    def create(self, spec: VolumeSpec) -> Volume:
        """A blank volume; answers the existing one when it was made before (same uid)."""
        with contextlib.suppress(PoolError):
            return self.get(spec.uid)
        self.begin(spec)
        return self.publish(spec.uid)

    def begin(self, spec: VolumeSpec) -> Path:
        """Start a volume: an empty sparse disk under the partial name, whose path is answered. Replaces an older
        attempt.
        """
        if spec.size_bytes <= 0:
            raise PoolError("Invalid", f"volume {spec.uid} must be larger than {spec.size_bytes} bytes")
        partial = self._partial(spec.uid)
        record = _record_of(spec)
        with self._locked(), clear_errors(f"volume {spec.uid} cannot be made in pool {self.name}"):
            self._check_free(spec.file)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(mode=0o700)
            _write_file(partial / "volume.json", msgspec.json.encode(record))
            with (partial / DISK).open("xb") as disk:
                os.fchmod(disk.fileno(), 0o600)
                disk.truncate(spec.size_bytes)
        return partial / DISK

    def reopen(self, spec: VolumeSpec) -> Path | None:
        """The disk of an attempt at this very volume that was broken off; None when there is none to go on with."""
        path = self.partial_path(spec.uid)
        try:
            record = msgspec.json.decode((path.parent / "volume.json").read_bytes(), type=_Record)
            info = path.lstat()
        except (OSError, msgspec.DecodeError):
            return None
        same = (record.uid, record.file, record.format) == (spec.uid, spec.file, spec.format)
        return path if same and stat.S_ISREG(info.st_mode) and info.st_size == spec.size_bytes else None

    @staticmethod
    def lock(begun: int) -> bool:
        """Mark the disk of a begun volume (its descriptor) as being worked on, for as long as it is open here or in a
        child; False when another process has it.
        """
        try:
            fcntl.flock(begun, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_worked_on(self, volume_uid: str) -> bool:
        """Whether some process holds the lock of a begun volume."""
        try:
            fd = os.open(self.partial_path(volume_uid), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return not self.lock(fd)
        finally:
            os.close(fd)

    def partial_path(self, volume_uid: str) -> Path:
        """The disk of a volume that was begun and is not published."""
        return self._partial(volume_uid) / DISK

    def publish(self, volume_uid: str, filled: int = -1) -> Volume:
        """The begun volume is complete: sync it and give it its name.

        `filled` is the descriptor through which it was filled: had somebody begun the volume again meanwhile, another
        (empty) disk would stand there, and must not be taken for this one.
        """
        partial, folder = self._partial(volume_uid), self._folder(volume_uid)
        with self._locked(), clear_errors(f"volume {volume_uid} cannot be completed in pool {self.name}"):
            if folder.exists():
                raise PoolError("Exists", f"volume {volume_uid} is already in pool {self.name}")
            if filled >= 0 and os.fstat(filled).st_ino != (partial / DISK).lstat().st_ino:
                raise PoolError("Failed", f"volume {volume_uid} in pool {self.name} was begun again meanwhile")
            record = msgspec.json.decode((partial / "volume.json").read_bytes(), type=_Record)
            self._check_free(record.file)
            _sync(partial / DISK)
            partial.chmod(0o711)
            _sync(partial)
            partial.rename(folder)
            _sync(self.path)
        return self.get(volume_uid)

    # disks that have a name in the pool's folder -----------------------------------------------------------------

    def adopt(self, spec: VolumeSpec, virtual_bytes: int) -> Volume:
        """Make a volume of the existing file `spec.file`, as it is; its head was examined as `spec.format`.

        PoolError: NotFound, Exists (another claim has it), Invalid (a link, a directory, several names). The file stays
        when the volume is deleted.
        """
        with contextlib.suppress(PoolError):
            return self.get(spec.uid)
        self.check_adoptable(spec.file)
        record = _record_of(spec, adopted=True, virtual_bytes=virtual_bytes)
        partial, folder = self._partial(spec.uid), self._folder(spec.uid)
        with self._locked(), clear_errors(f"file {spec.file} cannot be adopted in pool {self.name}"):
            self._check_unclaimed(spec.file)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(mode=0o711)
            _write_file(partial / "volume.json", msgspec.json.encode(record))
            partial.rename(folder)
            _sync(self.path)
        return self.get(spec.uid)

    def check_adoptable(self, file: str) -> Path:
        """The path of an existing file that may become a volume. PoolError NotFound or Invalid."""
        path = self._named(file)
        try:
            info = path.lstat()
        except OSError:
            raise PoolError("NotFound", f"there is no file {file} in pool {self.name}") from None
        if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
            raise PoolError("Invalid", f"{file} in pool {self.name} is not a plain file of one name")
        return path

    def copy_out(self, file: str, target: Path, limit_bytes: int) -> None:
        """Copy a file of the pool's folder that is nobody's volume to `target`, which must not exist. PoolError."""
        path = self.check_adoptable(file)
        self._check_unclaimed(file)
        with clear_errors(f"file {file} of pool {self.name} cannot be copied"), contextlib.ExitStack() as stack:
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            stack.callback(os.close, source)
            if os.fstat(source).st_size > limit_bytes:
                raise PoolError("Invalid", f"file {file} in pool {self.name} is larger than {limit_bytes} bytes")
            copy = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, copy)
            with os.fdopen(source, "rb", closefd=False) as reader, os.fdopen(copy, "wb", closefd=False) as writer:
                shutil.copyfileobj(reader, writer)

    def _named(self, file: str) -> Path:
        if not _FILE.fullmatch(file) or file in _OWN_FILES:
            raise PoolError("Invalid", f"{file[:80]!r} cannot be the name of a disk in pool {self.name}")
        return self.path / file

    def _check_free(self, file: str) -> None:
        """An existing file is never overwritten. Call it locked."""
        if file and os.path.lexists(self._named(file)):
            raise PoolError("Exists", f"file {file} exists already in pool {self.name} and is not overwritten")

    def _check_unclaimed(self, file: str) -> None:
        for entry in os.scandir(self.path):
            if not entry.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError, msgspec.DecodeError):
                record = msgspec.json.decode(Path(entry.path, "volume.json").read_bytes(), type=_Record)
                if record.file == file:
                    raise PoolError(
                        "Exists",
                        f"file {file} in pool {self.name} is the volume of claim {record.namespace}/{record.name}",
                    )

    def _settle(self, folder: Path, record: _Record) -> None:
        """Give a published disk its name in the pool's folder; after a crash in the middle, do the rest."""
        made = folder / DISK
        if record.adopted or not made.exists():
            return
        with self._locked(), clear_errors(f"volume {record.uid} cannot be named {record.file} in pool {self.name}"):
            path = self._named(record.file)
            try:
                os.link(made, path, follow_symlinks=False)
            except FileExistsError:
                if not made.exists():
                    return  # another thread was faster
                if path.lstat().st_ino != made.lstat().st_ino:
                    raise
            except FileNotFoundError:
                return
            _sync(self.path)
            made.unlink(missing_ok=True)

    def discard(self, volume_uid: str) -> None:
        """Remove what was begun and not published; nothing there is fine."""
        with self._locked():
            shutil.rmtree(self._partial(volume_uid), ignore_errors=True)

    def partials(self) -> list[str]:
        """uids that this instance began and neither published nor discarded (after a crash)."""
        return sorted(e.name.removeprefix(self._begun) for e in os.scandir(self.path) if e.name.startswith(self._begun))

    def delete(self, volume_uid: str) -> None:
        """Remove a volume for good; nothing there is fine."""
        folder, doomed = self._folder(volume_uid), self.path / f".gone-{volume_uid}"
        with self._locked(), clear_errors(f"volume {volume_uid} cannot be removed from pool {self.name}"):
            shutil.rmtree(doomed, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
                record = msgspec.json.decode((folder / "volume.json").read_bytes(), type=_Record)
                if record.file and not record.adopted and not (folder / DISK).exists():
                    self._named(record.file).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(doomed)  # first out of sight, so that a crash leaves no half volume
                _sync(self.path)
            shutil.rmtree(doomed, ignore_errors=True)
            shutil.rmtree(self._partial(volume_uid), ignore_errors=True)

    def clone(self, source: Volume, spec: VolumeSpec, on_share: Callable[[float], None] | None = None) -> Volume:
        """A new volume with the content of one in this or another pool of the host, sharing blocks where the filesystem
        can, never depending on it.

        The source must not be written meanwhile. `on_share` is called with 0.0..1.0 and may raise to give up.
        """
        if spec.size_bytes < source.size_bytes:
            raise PoolError(
                "TooSmall",
                "target resources requests storage size is smaller than the source "
                f"({spec.size_bytes} < {source.size_bytes})",
            )
        raw = source.format == "raw"
        # what is kept as qcow2 stays one, and as large as it is
        path = self.begin(
            spec if raw else msgspec.structs.replace(spec, format=source.format, size_bytes=source.size_bytes)
        )
        try:
            with clear_errors(f"volume {source.uid} cannot be cloned to {spec.uid} in pool {self.name}"):
                copy_disk(source.path, path, on_share)
                if raw:
                    os.truncate(path, spec.size_bytes)
            return self.publish(spec.uid)
        except BaseException:
            self.discard(spec.uid)
            raise

    def resize(self, volume_uid: str, size_bytes: int) -> Volume:
        """Make a volume larger (a smaller size is refused); the machine that uses it is told by the caller."""
        volume = self.get(volume_uid)
        if volume.format != "raw":
            raise PoolError("Invalid", f"volume {volume_uid} is kept as {volume.format} and cannot grow yet")
        if size_bytes < volume.size_bytes:
            raise PoolError(
                "TooSmall", f"volume {volume_uid} cannot shrink from {volume.size_bytes} to {size_bytes} bytes"
            )
        with self._locked(), clear_errors(f"volume {volume_uid} cannot grow in pool {self.name}"):
            fd = os.open(volume.path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                os.ftruncate(fd, size_bytes)
                os.fsync(fd)
            finally:
                os.close(fd)
        return self.get(volume_uid)

    def _folder(self, volume_uid: str) -> Path:
        if not _UID.fullmatch(volume_uid):
            raise PoolError("Invalid", f"{volume_uid!r} is not a volume's uid")
        return self.path / volume_uid

    def _partial(self, volume_uid: str) -> Path:
        return self.path / f"{self._begun}{self._folder(volume_uid).name}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _record_of(spec: VolumeSpec, *, adopted: bool = False, virtual_bytes: int = 0) -> _Record:
    return _Record(
        uid=spec.uid, namespace=spec.namespace, name=spec.name, file=spec.file, format=spec.format, adopted=adopted,
        snapshot=spec.snapshot, virtual_bytes=virtual_bytes or (spec.size_bytes if spec.format != "raw" else 0),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )  # fmt: skip


@contextlib.contextmanager
def clear_errors(what: str) -> Iterator[None]:
    """An OSError as a PoolError that says what could not be done."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PoolError("NoSpace", f"{what}: no space left on its filesystem") from error
        raise PoolError("Failed", f"{what}: {error.strerror or error}") from error


def _write_file(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
