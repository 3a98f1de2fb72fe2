"""Settings: where things lie, what is listened on, which ranges are used. Nothing about an installation is global.

Sources, the later winning: defaults, the TOML file (`--config`, `STEAD_CONFIG`, else `/etc/stead/stead.toml`), the
environment (`STEAD_<NAME>`), flags. Two Steads run side by side on one machine when `instance`, the directories, ports,
`pod_bridge` and `pod_cidr` differ, and `uid_base` by 65,536 at least, since ranges of user ids keep machines apart.
Read by `run` and `cli` alone; other rooms get plain values.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

DEFAULT_FILE = Path("/etc/stead/stead.toml")
#: the installation that a host has when there is one
USUAL_INSTANCE = "stead"
LIBVIRT_IMAGES = Path("/var/lib/libvirt/images")


#: what to listen on for "whatever address this host has"
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class ConfigError(Exception):
    """A setting is unknown, malformed or contradicts another; the message names it and its source."""


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory in which volumes are kept, under the name that StorageClasses use (`parameters.pool`)."""

    name: str
    path: Path


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. Paths are absolute; `host_name` "" means the machine's own name."""

    #: distinguishes several Steads on one machine: names of bridge rules, namespaces, tables and cgroups start with it
    instance: str = USUAL_INSTANCE
    #: what must survive a restart of the host: store, keys, pools, machines' private files
    state_dir: Path = Path("/var/lib/stead")
    #: what a restart of the host clears: pid files, machines' sockets, records of the network
    run_dir: Path = Path("/run/stead")
    #: the account that the plane runs as; "" = the account that starts it
    user: str = "stead"
    #: address that the Kubernetes API listens on; 0.0.0.0 for all
    listen_address: str = "127.0.0.1"
    #: and its port
    listen_port: int = 6443
    #: further names and addresses for the API's certificate
    listen_names: tuple[str, ...] = ()
    #: address that this host's agent listens on, for the plane alone
    agent_address: str = "127.0.0.1"
    #: and its port
    agent_port: int = 6444
    #: URL of the API of the Stead that this host has joined (`stead join` writes it); "" = this host's own plane
    api_url: str = ""
    #: this host's name in the API; "" = the machine's own name
    host_name: str = ""
    #: a driver registered under the entry point group stead.hypervisors
    hypervisor: str = "libvirt"
    #: which libvirt
    libvirt_uri: str = "qemu:///system"
    #: folder where libvirt has QEMU look for the keys of live migrations (`migrate_tls_x509_cert_dir`); Stead fills it
    migration_tls_dir: str = "/etc/pki/qemu"
    #: range that machines' addresses come from; it must not overlap with the host's own networks
    pod_cidr: str = "10.128.0.0/16"
    #: bridge that Stead makes on this host for them, 15 characters at most
    pod_bridge: str = "stead0"
    #: this host's address on a trusted segment that all hosts share: the pod network then spans them, unencrypted
    pod_overlay: str = ""
    #: first of 65,536 numeric user ids, one for each machine; no two Steads of a host may have ids in common
    uid_base: int = 1_610_612_736
    #: registered directories; `default` is added where it is not named, and `images` where `instance` is stead
    pools: tuple[Pool, ...] = ()
    #: folders below which `hostDisk` volumes (feature gate HostDisk) may name files; none = such volumes are refused
    host_disk_roots: tuple[Path, ...] = ()
    #: folders below which backup repositories may lie; none = `backups` in `state_dir`
    backup_roots: tuple[Path, ...] = ()
    #: networks that importers may reach although they are loopback, link-local or Stead's own
    importer_allowed_networks: tuple[str, ...] = ()
    #: registries (host or host:port) used although they speak plain HTTP or show a certificate that nobody vouches for
    insecure_registries: tuple[str, ...] = ()
    #: bytes that unused container disks may take before the oldest are removed
    container_disk_cache_bytes: int = 20 * 1024**3
    #: where the plane keeps everything: "" = SQLite in `state_dir`; an etcd cluster is `etcd://HOST:PORT,HOST:PORT[/NAME]`
    store: str = ""
    #: PEM file with the authorities of etcd's certificates
    store_ca_file: str = ""
    #: the certificate by which etcd knows this plane (PEM)
    store_certificate_file: str = ""
    #: and its key; the account of the plane must be able to read both
    store_key_file: str = ""
    #: file with the keys that seal Secrets in the store; "" = `plane/pki/secrets.key` in `state_dir`, made when absent
    secrets_key_file: str = ""
    #: program with arguments that prints those keys instead (a vault's client, `systemd-creds decrypt`); [] = the file
    secrets_key_command: tuple[str, ...] = ()
    #: or handle of a TPM 2.0's sealed object that holds them, such as 0x81010001; "" = none
    secrets_key_tpm: str = ""
    #: seconds without a sign of life after which a host counts as silent; agents give one every 10
    host_grace_seconds: float = 40.0
    #: program with arguments that makes sure that a silent host is off, called with its name: exit code 0 says it is
    fencer_command: tuple[str, ...] = ()
    #: life of the certificates that Stead renews by itself (API, plane, agent, administrator), seconds
    certificate_seconds: int = 7776000
    #: OpenID Connect issuer whose ID tokens the API accepts, an https URL; "" = none, and nothing is ever fetched
    oidc_issuer_url: str = ""
    #: and the audience that its tokens must name
    oidc_client_id: str = ""
    #: claim that is the user's name; `email` counts only when the issuer has verified it
    oidc_username_claim: str = "sub"
    #: goes before user names; "" = the issuer's URL and `#` (nothing for `email`), "-" = nothing
    oidc_username_prefix: str = ""
    #: claim that lists the user's groups; "" = no groups
    oidc_groups_claim: str = ""
    #: goes before group names
    oidc_groups_prefix: str = ""
    #: PEM file with the authorities of the issuer's certificate; "" = those of the system
    oidc_ca_file: str = ""
    #: file with an audit.k8s.io/v1 Policy: how much of which requests the audit log keeps; none = metadata of all
    audit_policy: str = ""
    #: debug, info, warning or error
    log_level: str = "info"
    #: "text" for people, "json" for machines, "" = text on a terminal
    log_format: str = ""

    @property
    def host(self) -> str:
        """This host's name in the API: lower case, as DNS wants it."""
        return (self.host_name or socket.gethostname()).lower()

    @property
    def is_joined(self) -> bool:
        """Whether this host belongs to a Stead whose plane runs elsewhere: an agent alone runs here."""
        return bool(self.api_url)

    @property
    def plane_dir(self) -> Path:
        """State of the plane: store and keys; owned by `user`, mode 0700."""
        return self.state_dir / "plane"

    @property
    def agent_dir(self) -> Path:
        """State of the agent; owned by root, mode 0700."""
        return self.state_dir / "agent"

    @property
    def secrets_key(self) -> Path:
        """The file with the keys that seal Secrets."""
        return Path(self.secrets_key_file) if self.secrets_key_file else self.plane_dir / "pki" / "secrets.key"

    @property
    def all_backup_roots(self) -> tuple[Path, ...]:
        """Folders below which backup repositories may lie."""
        return self.backup_roots or (self.state_dir / "backups",)

    @property
    def secrets_key_source(self) -> tuple[Path, tuple[str, ...], str]:
        """Where the keys that seal Secrets come from: file, else command, else the TPM's object."""
        return self.secrets_key, self.secrets_key_command, self.secrets_key_tpm

    @property
    def all_pools(self) -> tuple[Pool, ...]:
        """The registered pools, `default` first, and libvirt's images folder as `images` for who comes from there.

        Only the usual instance has that folder unasked: further ones would take each other's files for their own.
        """
        usual = [Pool(name="default", path=self.state_dir / "pools" / "default")]
        if self.instance == USUAL_INSTANCE and LIBVIRT_IMAGES.is_dir():
            usual.append(Pool(name="images", path=LIBVIRT_IMAGES))
        named = {pool.name for pool in self.pools}
        return (*(pool for pool in usual if pool.name not in named), *self.pools)

    @property
    def url(self) -> str:
        """Where clients on this host reach the API."""
        if self.api_url:
            return self.api_url
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.listen_address, self.listen_address)  # noqa: S104
        return f"https://{f'[{address}]' if ':' in address else address}:{self.listen_port}"


def load(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from all sources. A named `file` must exist. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    named = file or (Path(environ["STEAD_CONFIG"]) if environ.get("STEAD_CONFIG") else None)
    source = named or DEFAULT_FILE
    try:
        values.update(tomllib.loads(source.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        if named:
            raise ConfigError(f"settings file {named} does not exist") from error
    except PermissionError:
        if named:
            raise
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"settings file {source}: {error}") from error
    names = {field.name: field for field in msgspec.structs.fields(Settings)}
    for name in names:
        given = environ.get(f"STEAD_{name.upper()}")
        if given is not None:
            listed = name.endswith(("_networks", "_names", "_registries", "_roots", "_command"))
            values[name] = [part for part in given.split(",") if part] if listed else given
    values.update({name: value for name, value in (flags or {}).items() if value is not None})
    try:
        settings = msgspec.convert(values, Settings, strict=False, dec_hook=_path_hook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"settings ({source}, STEAD_*, flags): {error}") from error
    _check(settings)
    return settings


def remember(file: Path, values: Mapping[str, str]) -> None:
    """Write settings that the file does not name yet at its head. Raises ConfigError when it says otherwise.

    The file keeps its mode and whatever else it says; it is made when absent.
    """
    try:
        text = file.read_text(encoding="utf-8")
        known = tomllib.loads(text)
    except FileNotFoundError:
        text, known = "", {}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"settings file {file}: {error}") from error
    for name, value in values.items():
        if name in known and known[name] != value:
            raise ConfigError(f"settings file {file} says {name} = {known[name]!r}; this host needs {value!r}")
    missing = [f"{name} = {_toml_text(value)}\n" for name, value in values.items() if name not in known]
    if not missing:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text("".join(missing) + text, encoding="utf-8")
    if text:
        temporary.chmod(file.stat().st_mode & 0o7777)
    os.replace(temporary, file)


def _toml_text(value: str) -> str:
    """A TOML basic string: JSON's, which escapes all that TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False)


def _path_hook(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(kind)


def _check(settings: Settings) -> None:
    if not settings.instance.isalnum() or len(settings.instance) > 8:
        raise ConfigError(f"instance {settings.instance!r}: up to 8 letters and digits")
    for name in ("state_dir", "run_dir"):
        if not getattr(settings, name).is_absolute():
            raise ConfigError(f"{name} must be an absolute path, not {getattr(settings, name)}")
    for name in ("host_disk_roots", "backup_roots"):
        for root in getattr(settings, name):
            if not root.is_absolute() or ".." in root.parts:
                raise ConfigError(f"{name}: {root} is not an absolute path without '..'")
    try:
        network = ipaddress.ip_network(settings.pod_cidr)
        for allowed in settings.importer_allowed_networks:
            ipaddress.ip_network(allowed)
    except ValueError as error:
        raise ConfigError(f"pod_cidr, importer_allowed_networks: {error}") from error
    if network.version != 4 or network.prefixlen > 28:
        raise ConfigError(f"pod_cidr {settings.pod_cidr}: an IPv4 network of /28 or larger")
    if settings.api_url and not settings.api_url.startswith("https://"):
        raise ConfigError(f"api_url {settings.api_url}: an https URL")
    if len(settings.pod_bridge) > 15:
        raise ConfigError(f"pod_bridge {settings.pod_bridge!r}: Linux allows 15 characters")
    if settings.certificate_seconds < 10:
        raise ConfigError(f"certificate_seconds {settings.certificate_seconds}: 10 at least")
    if settings.oidc_issuer_url and not settings.oidc_issuer_url.startswith("https://"):
        raise ConfigError(f"oidc_issuer_url {settings.oidc_issuer_url}: an https URL")
    if bool(settings.oidc_issuer_url) != bool(settings.oidc_client_id):
        raise ConfigError("oidc_issuer_url and oidc_client_id are set together or not at all")
    check_store(settings.store, settings)
    if sum(map(bool, (settings.secrets_key_file, settings.secrets_key_command, settings.secrets_key_tpm))) > 1:
        raise ConfigError("secrets_key_file, secrets_key_command and secrets_key_tpm: one of them")
    if settings.secrets_key_tpm and not re.fullmatch(r"0x81[0-9a-fA-F]{6}", settings.secrets_key_tpm):
        raise ConfigError(f"secrets_key_tpm {settings.secrets_key_tpm}: a persistent handle, such as 0x81010001")
    if settings.host_grace_seconds < 11:
        raise ConfigError(f"host_grace_seconds {settings.host_grace_seconds}: 11 at least, agents report every 10")
    if settings.log_level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"log_level {settings.log_level!r}: debug, info, warning or error")


#: what the setting `store` looks like for a cluster
_ETCD = re.compile(r"etcd://(?P<members>[^/,\s]+:\d+(?:,[^/,\s]+:\d+)*)(?:/(?P<name>[a-z0-9-]{1,32}))?/?")


def etcd_of(store: str) -> tuple[tuple[str, ...], str] | None:
    """The members (host:port) and the name that a store's URL speaks of; None when it is no etcd URL."""
    found = _ETCD.fullmatch(store)
    return (tuple(found["members"].split(",")), found["name"] or "stead") if found else None


def check_store(store: str, settings: Settings) -> None:
    """Raises ConfigError when a store's URL is malformed, or the files of its TLS are not named."""
    if not store:
        return
    if etcd_of(store) is None:
        raise ConfigError(f"store {store!r}: etcd://HOST:PORT,HOST:PORT[/NAME], or nothing for SQLite")
    for name in ("store_ca_file", "store_certificate_file", "store_key_file"):
        if not getattr(settings, name):
            raise ConfigError(f"{name} must be set: etcd is spoken to by TLS with a client certificate only")
