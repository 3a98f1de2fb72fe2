"""An installation on a host: its directories, accounts, certificates and the administrator's kubeconfig.

Called by `stead up`, `plane`, `agent` and `uninstall` before anything listens. `prepare` is idempotent and renews
certificates that are due; running processes pick renewed files up by themselves. Only this module decides who owns
which directory: the plane's state belongs to the unprivileged account, the agent's to root, what clients need is
readable. The libraries for certificates and YAML are imported by the functions that need them: `stead up`, which stays
in memory as long as machines do, asks here mostly for locks.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import fcntl
import functools
import hashlib
import os
import pwd
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import stead
from stead.config import ANY_ADDRESS, ConfigError, Settings

if TYPE_CHECKING:
    from stead import pki

#: Common name that agents accept, and no other.
PLANE_USER = "stead-plane"


class Files(msgspec.Struct, frozen=True):
    """Where the keys of an installation lie."""

    authority: pki.Pair
    ca: Path  # certificate only, readable by everybody
    api: pki.Pair  # serving certificate of the API
    plane: pki.Pair  # the plane's client certificate towards agents
    agent: pki.Pair  # the host's certificate: client of the API, server of streams
    token_key: Path
    admin_kubeconfig: Path

    @classmethod
    def of(cls, settings: Settings) -> Files:
        from stead import pki

        plane, agent = settings.plane_dir / "pki", settings.agent_dir / "pki"
        return cls(
            authority=pki.Pair(plane / "ca.crt", plane / "ca.key"),
            ca=settings.state_dir / "ca.crt",
            api=pki.Pair(plane / "api.crt", plane / "api.key"),
            plane=pki.Pair(plane / "plane.crt", plane / "plane.key"),
            agent=pki.Pair(agent / "host.crt", agent / "host.key"),
            token_key=plane / "token.key",
            admin_kubeconfig=settings.state_dir / "admin.kubeconfig",
        )


def account(settings: Settings) -> pwd.struct_passwd | None:
    """The account that the plane runs as; None = the one that starts it. Raises ConfigError when it does not exist."""
    if not settings.user or os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(settings.user)
    except KeyError as error:
        raise ConfigError(
            f"the account {settings.user!r} of the plane does not exist; "
            f"make it with `useradd --system --shell /usr/sbin/nologin {settings.user}` or set `user`"
        ) from error


def _directory(path: Path, mode: int, owner: pwd.struct_passwd | None) -> None:
    """Make one directory of ours, never through a symlink, with the given mode and owner (root when None)."""
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, mode)
        if os.geteuid() == 0:
            os.fchown(descriptor, owner.pw_uid if owner else 0, owner.pw_gid if owner else 0)
    finally:
        os.close(descriptor)


def _pid_file(path: Path, owner: pwd.struct_passwd | None) -> None:
    """The file that a process of ours locks: readable by everybody, writable by the account of that process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    if owner is not None:
        os.fchown(descriptor, owner.pw_uid, owner.pw_gid)
    os.close(descriptor)


def api_names(settings: Settings) -> tuple[str, ...]:
    """Names and addresses that the API's certificate must carry."""
    names = [
        "127.0.0.1",
        "::1",
        "localhost",
        settings.host,
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ]
    if settings.listen_address not in ANY_ADDRESS:
        names.append(settings.listen_address)
    else:
        with contextlib.suppress(OSError):
            found = {str(entry[4][0]) for entry in socket.getaddrinfo(settings.host, None)}
            names += sorted(name for name in found if "%" not in name)  # no certificate can name an interface
    return tuple(dict.fromkeys([*names, *settings.listen_names]))


def prepare(settings: Settings) -> Files:
    """Make what is missing, renew what is due, and return where everything lies. Root, or the plane's own account."""
    from stead import pki

    if settings.is_joined:
        return prepare_joined(settings)
    owner = account(settings)
    files = Files.of(settings)
    _directories(settings)
    _directory(settings.plane_dir, 0o700, owner)
    _directory(settings.plane_dir / "pki", 0o700, owner)
    _pid_file(settings.run_dir / "plane.pid", owner)
    authority = pki.ensure_authority(settings.plane_dir / "pki", "stead")
    if not settings.store:  # planes that share a cluster share the authority: nobody changes it alone
        pki.tend_authority(authority, "stead")
    life = datetime.timedelta(seconds=settings.certificate_seconds)
    pki.ensure_key(files.token_key)
    if not (settings.secrets_key_file or settings.secrets_key_command or settings.secrets_key_tpm):
        pki.ensure_secret(settings.secrets_key)
    pki.ensure_certificate(authority, files.api, pki.Identity("stead-api", names=api_names(settings)), life)
    pki.ensure_certificate(authority, files.plane, pki.Identity(PLANE_USER), life)
    agent_names = (settings.host, settings.agent_address)
    pki.ensure_certificate(
        authority, files.agent, pki.Identity(f"system:node:{settings.host}", ("system:nodes",), agent_names), life
    )
    if owner is not None:
        for path in (settings.plane_dir / "pki").iterdir():
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    ca = authority.certificate.read_bytes()
    if not files.ca.exists() or files.ca.read_bytes() != ca:
        pki.write_private(files.ca, ca, 0o644)
    _ensure_admin(settings, files, authority)
    return files


def _directories(settings: Settings) -> None:
    """The directories and pid files that every host has."""
    _directory(settings.state_dir, 0o755, None)
    _directory(settings.run_dir, 0o755, None)
    _directory(settings.agent_dir, 0o711, None)  # guests' processes reach their own folders below, and list nothing
    _directory(settings.agent_dir / "pki", 0o700, None)
    _directory(settings.state_dir / "pools", 0o711, None)
    _directory(settings.state_dir / "log", 0o750, None)
    for what in ("up", "agent"):
        _pid_file(settings.run_dir / f"{what}.pid", None)


def prepare_joined(settings: Settings) -> Files:
    """As `prepare`, on a host that has joined a Stead: its keys are there already. Raises ConfigError if not."""
    files = Files.of(settings)
    _directories(settings)
    missing = next((path for path in (files.agent.key, files.agent.certificate, files.ca) if not path.exists()), None)
    if missing is not None:
        raise ConfigError(f"{missing} does not exist: this host has not joined {settings.api_url}; see `stead join`")
    return files


def keep_identity(settings: Settings, certificate: bytes, key: bytes, authorities: bytes) -> None:
    """Write what a host that joined was given; running processes take it up. The certificate comes last."""
    from stead import pki

    files = Files.of(settings)
    _directories(settings)
    if not files.ca.exists() or files.ca.read_bytes() != authorities:
        pki.write_private(files.ca, authorities, 0o644)
    pki.write_private(files.agent.key, key)
    pki.write_private(files.agent.certificate, certificate, 0o644)


def _ensure_admin(settings: Settings, files: Files, authority: pki.Pair) -> None:
    """The administrator's kubeconfig: certificate and key inside, written anew when due or when URL or CA changed."""
    from stead import pki

    identity = pki.Identity("stead-admin", ("system:masters",))
    kept = files.admin_kubeconfig
    copy = kept.with_name("admin.crt")
    ca = files.ca.read_bytes()
    if kept.exists() and not pki.is_due(copy, identity, authority):
        text = kept.read_text(encoding="utf-8")
        if settings.url in text and base64.b64encode(ca).decode() in text:
            return
    life = datetime.timedelta(seconds=settings.certificate_seconds)
    certificate, key = pki.issue_pair(authority, identity, life)
    pki.write_private(kept, kubeconfig(settings, ca, certificate, key).encode())
    pki.write_private(copy, certificate, 0o644)


def forget(settings: Settings) -> None:
    """Remove what an installation keeps, when nothing of it runs. Disks in pools and files of others stay."""
    for directory in (settings.plane_dir, settings.agent_dir, settings.run_dir,
                      settings.state_dir / "log", settings.state_dir / "golden"):  # fmt: skip
        shutil.rmtree(directory, ignore_errors=True)
    for name in ("ca.crt", "admin.crt", "admin.kubeconfig"):
        (settings.state_dir / name).unlink(missing_ok=True)
    for pool in settings.all_pools:
        if not any(pool.path.glob("*/volume.json")):
            for name in ("pool.json", ".lock"):
                (pool.path / name).unlink(missing_ok=True)
    for directory in (settings.state_dir / "pools" / "default", settings.state_dir / "pools", settings.state_dir):
        with contextlib.suppress(OSError):  # what is not empty is not only ours
            directory.rmdir()


def kubeconfig(
    settings: Settings, ca: bytes, certificate: bytes, key: bytes, user: str = "admin", server: str = ""
) -> str:
    """A kubeconfig (YAML) that carries everything inside itself; `server` "" = the API as this host reaches it."""
    import yaml

    def packed(data: bytes) -> str:
        return base64.b64encode(data).decode()

    cluster, name = settings.instance, f"{settings.instance}-{user}"
    where = {"server": server or settings.url, "certificate-authority-data": packed(ca)}
    identity = {"client-certificate-data": packed(certificate), "client-key-data": packed(key)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": cluster,
        "clusters": [{"name": cluster, "cluster": where}],
        "users": [{"name": name, "user": identity}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": name}}],
    }
    return str(yaml.safe_dump(document, sort_keys=False))


class AlreadyRunning(Exception):
    """Another process holds the lock; `pid` is what it wrote into it."""

    def __init__(self, what: str, pid: int) -> None:
        super().__init__(f"stead {what} runs already (pid {pid or 'not known yet'})")
        self.pid = pid


@contextlib.contextmanager
def running(settings: Settings, what: str) -> Iterator[None]:
    """Hold the lock of one of our processes (`up`, `plane`, `agent`) while inside. Raises AlreadyRunning."""
    descriptor = os.open(settings.run_dir / f"{what}.pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AlreadyRunning(what, _pid_in(descriptor)) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _pid_in(descriptor: int) -> int:
    """What the holder of the lock has written; 0 in the moment before it has."""
    text = os.pread(descriptor, 20, 0)
    return int(text) if text.isdigit() else 0


def running_pid(settings: Settings, what: str) -> int:
    """Pid of that process of ours, or 0 when it does not run (a stale file says nothing: the lock does)."""
    try:
        descriptor = os.open(settings.run_dir / f"{what}.pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _pid_in(descriptor)
    else:
        return 0
    finally:
        os.close(descriptor)


def started_at(settings: Settings, what: str) -> float:
    """When that process of ours took its place (seconds since the epoch); 0 when it does not run."""
    if not running_pid(settings, what):
        return 0.0
    return (settings.run_dir / f"{what}.pid").stat().st_mtime


@functools.cache
def release() -> str:
    """Identity of the code that this process runs: its environment, and a digest of the package's text."""
    digest = hashlib.sha256()
    package = Path(stead.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return f"{sys.prefix} {digest.hexdigest()[:16]}"


def note_release(settings: Settings) -> None:
    """Leave word, beside the pid files, of what `stead up` runs."""
    (settings.run_dir / "up.release").write_text(release(), encoding="utf-8")


def runs_this_release(settings: Settings) -> bool:
    """Whether the `stead up` that runs here runs the code that this process was started from."""
    try:
        return (settings.run_dir / "up.release").read_text(encoding="utf-8") == release()
    except OSError:
        return False
