"""Network namespaces by name, as `ip netns` makes them. Blocking; every call returns with the thread where it was.

Used by `podnetwork.py` in its worker threads. A namespace belongs to a thread, so `inside` moves only the calling one;
a child process started within it begins there, too. Source: ip-netns(8), setns(2), unshare(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from stead.network.attachment import NetworkError

FOLDER = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 4096, 16384, 1 << 20, 2
_libc = ctypes.CDLL(None, use_errno=True)
_HERE = "/proc/thread-self/ns/net"


def path_of(name: str) -> Path:
    return FOLDER / name


def exists(name: str) -> bool:
    return path_of(name).exists()


def names() -> list[str]:
    """All named namespaces of the host, ours or not."""
    return sorted(os.listdir(FOLDER)) if FOLDER.is_dir() else []


def create(name: str) -> None:
    """Make a named namespace. Raises NetworkError when it cannot, FileExistsError when there is one."""
    _prepare_folder()
    path = path_of(name)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0))
    try:
        with _returning():
            _check(_libc.unshare(_CLONE_NEWNET), f"make network namespace {name}")
            _check(_mount(_HERE, path, _MS_BIND), f"name network namespace {name}")
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def delete(name: str) -> None:
    """Remove the name; the namespace ends with its last process and socket. No-op when there is none."""
    path = path_of(name)
    _libc.umount2(os.fsencode(path), _MNT_DETACH)  # fails where it is not mounted, which is no harm
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in the namespace for the body. Raises NetworkError when it does not exist."""
    try:
        handle = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(f"enter network namespace {name}: {error.strerror}") from error
    try:
        with _returning():
            _check(_libc.setns(handle, _CLONE_NEWNET), f"enter network namespace {name}")
            yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _returning() -> Iterator[None]:
    """Bring the calling thread back to the namespace that it is in now."""
    here = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        back = _libc.setns(here, _CLONE_NEWNET)
        os.close(here)
        if back:
            os.abort()  # a thread lost in a machine's namespace would change the wrong network


def _prepare_folder() -> None:
    """As `ip netns` does: a shared mount, so that names made here are seen in other mount namespaces."""
    FOLDER.mkdir(mode=0o755, exist_ok=True)
    if _mount(None, FOLDER, _MS_SHARED | _MS_REC):
        _check(_mount(FOLDER, FOLDER, _MS_BIND | _MS_REC), f"bind {FOLDER}")
        _check(_mount(None, FOLDER, _MS_SHARED | _MS_REC), f"share {FOLDER}")


def _mount(source: str | Path | None, target: Path, flags: int) -> int:
    origin = None if source is None else os.fsencode(source)
    return int(_libc.mount(origin, os.fsencode(target), b"none", flags, None))


def _check(result: int, what: str) -> None:
    if result:
        raise NetworkError(f"{what}: {os.strerror(ctypes.get_errno())}")
