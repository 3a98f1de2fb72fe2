"""Kubeconfig files: from YAML to where the API is and how to prove who we are.

Called by the composition root, the agent and the command line; `client.remote` uses the result. Supports certificates
and keys (inline or files), tokens, token files (read again when they change), user and password refused by the API
anyway, and credential plug-ins (`exec`), which are run as an argument list, never through a shell, and whose answer
is kept until it expires. Format: client-go's `clientcmd/api/v1` and `client.authentication.k8s.io/v1`.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import yaml

from stead.kube.meta import parse_time

#: seconds that a credential plug-in may take
EXEC_SECONDS = 60.0
#: a token file is read again after this, seconds; an expiring credential is renewed so long before its end
TOKEN_FILE_SECONDS = 60.0
RENEW_SECONDS = 30.0
_MAX_OUTPUT = 1024 * 1024


class KubeconfigError(Exception):
    """The kubeconfig is missing, broken or names something that is not there; the text says which."""


class ExecPlugin(msgspec.Struct, frozen=True):
    """A credential plug-in: program, arguments, extra environment, API version."""

    command: str
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    api_version: str = "client.authentication.k8s.io/v1"
    provide_cluster_info: bool = False


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One context of a kubeconfig, resolved. PEM values are bytes; `namespace` is the context's default."""

    server: str
    namespace: str = "default"
    ca: bytes | None = None
    insecure: bool = False
    server_name: str = ""
    certificate: bytes | None = None
    key: bytes | None = None
    token: str = ""
    token_file: Path | None = None
    plugin: ExecPlugin | None = None
    impersonate: str = ""


def default_path() -> Path:
    """The kubeconfig that kubectl would use: the first of $KUBECONFIG, else ~/.kube/config."""
    listed = os.environ.get("KUBECONFIG", "")
    first = next((part for part in listed.split(os.pathsep) if part), "")
    return Path(first) if first else Path.home() / ".kube" / "config"


def load(path: Path, context: str = "") -> Endpoint:
    """Read a context of a kubeconfig (the current one by default). Raises KubeconfigError."""
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise KubeconfigError(f"cannot read kubeconfig {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise KubeconfigError(f"kubeconfig {path} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise KubeconfigError(f"kubeconfig {path} is empty")
    return endpoint_from(document, path.parent, context)


def endpoint_from(document: dict[str, Any], base: Path, context: str = "") -> Endpoint:
    """A context of a parsed kubeconfig; relative files lie below `base`. Raises KubeconfigError."""
    name = context or document.get("current-context") or ""
    chosen = _named(document, "contexts", name, "context")
    cluster = _named(document, "clusters", chosen.get("cluster", ""), "cluster")
    user = _named(document, "users", chosen["user"], "user") if chosen.get("user") else {}
    server = cluster.get("server")
    if not server:
        raise KubeconfigError(f"cluster {chosen.get('cluster')!r} names no server")
    token_file = user.get("tokenFile")
    return Endpoint(
        server=str(server).rstrip("/"), namespace=chosen.get("namespace") or "default",
        ca=_data(cluster, "certificate-authority", base), insecure=bool(cluster.get("insecure-skip-tls-verify")),
        server_name=cluster.get("tls-server-name") or "", certificate=_data(user, "client-certificate", base),
        key=_data(user, "client-key", base), token=user.get("token") or "",
        token_file=_below(base, token_file) if token_file else None, plugin=_plugin(user.get("exec")),
        impersonate=user.get("as") or "",
    )  # fmt: skip


def _named(document: dict[str, Any], section: str, name: str, inner: str) -> dict[str, Any]:
    for entry in document.get(section) or []:
        if entry.get("name") == name:
            found: dict[str, Any] = entry.get(inner) or {}
            return found
    raise KubeconfigError(f"the kubeconfig has no {inner} {name!r}")


def _below(base: Path, name: str) -> Path:
    path = Path(name)
    return path if path.is_absolute() else base / path


def _data(section: dict[str, Any], name: str, base: Path) -> bytes | None:
    inline = section.get(f"{name}-data")
    if inline:
        try:
            return base64.b64decode(inline, validate=True)
        except ValueError as error:
            raise KubeconfigError(f"{name}-data is not base64") from error
    if not section.get(name):
        return None
    path = _below(base, section[name])
    try:
        return path.read_bytes()
    except OSError as error:
        raise KubeconfigError(f"cannot read {name} {path}: {error.strerror}") from error


def _plugin(section: dict[str, Any] | None) -> ExecPlugin | None:
    if not section:
        return None
    env = {item["name"]: item.get("value", "") for item in section.get("env") or []}
    return ExecPlugin(
        command=section["command"], args=tuple(section.get("args") or ()), env=env,
        api_version=section.get("apiVersion") or "client.authentication.k8s.io/v1",
        provide_cluster_info=bool(section.get("provideClusterInfo")),
    )  # fmt: skip


def tls_context(
    endpoint: Endpoint, certificate: bytes | None = None, key: bytes | None = None
) -> ssl.SSLContext | None:
    """TLS for an endpoint; None for plain HTTP. `certificate` and `key` from a plug-in go before the file's."""
    if not endpoint.server.startswith("https:"):
        return None
    context = ssl.create_default_context(cadata=endpoint.ca.decode() if endpoint.ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if endpoint.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, key = certificate or endpoint.certificate, key or endpoint.key
    if certificate and key:
        load_pair(context, certificate, key)
    return context


def load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Show this certificate on new connections. `ssl` only reads files: the key stands in a private one meanwhile."""
    with tempfile.TemporaryDirectory(prefix="stead-tls-") as directory:
        pem = Path(directory) / "pair.pem"
        descriptor = os.open(pem, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(certificate + b"\n" + key)
        context.load_cert_chain(pem)


class Credentials:
    """The bearer token of an endpoint, renewed as its source demands. One per client; used from one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._token = endpoint.token
        self._until = float("inf") if endpoint.token or not (endpoint.token_file or endpoint.plugin) else 0.0
        self._lock = asyncio.Lock()
        #: certificate and key that a plug-in gave, if it did
        self.pair: tuple[bytes, bytes] | None = None

    async def token(self) -> str:
        """The token to send now, "" for none. Raises KubeconfigError."""
        if time.time() < self._until:
            return self._token
        async with self._lock:
            if time.time() >= self._until:
                await self._renew()
        return self._token

    def expire(self) -> None:
        """The API refused the token: get a new one for the next request, if there is a source."""
        if self._endpoint.token_file or self._endpoint.plugin:
            self._until = 0.0

    async def _renew(self) -> None:
        endpoint = self._endpoint
        if endpoint.plugin is not None:
            status = await _run_plugin(endpoint.plugin, endpoint)
            self._token = status.get("token") or ""
            if status.get("clientCertificateData") and status.get("clientKeyData"):
                self.pair = (status["clientCertificateData"].encode(), status["clientKeyData"].encode())
            expires = status.get("expirationTimestamp")
            self._until = parse_time(expires).timestamp() - RENEW_SECONDS if expires else float("inf")
        elif endpoint.token_file is not None:
            path = endpoint.token_file
            try:
                self._token = (await asyncio.to_thread(path.read_text)).strip()
            except OSError as error:
                raise KubeconfigError(f"cannot read token file {path}: {error.strerror}") from error
            self._until = time.time() + TOKEN_FILE_SECONDS


async def _run_plugin(plugin: ExecPlugin, endpoint: Endpoint) -> dict[str, Any]:
    """The `status` that a credential plug-in prints. Raises KubeconfigError."""
    spec: dict[str, Any] = {"interactive": False}
    if plugin.provide_cluster_info:
        spec["cluster"] = {"server": endpoint.server}
        if endpoint.ca:
            spec["cluster"]["certificate-authority-data"] = base64.b64encode(endpoint.ca).decode()
    info = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}
    environment = {**os.environ, **plugin.env, "KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode()}
    try:
        process = await asyncio.create_subprocess_exec(
            plugin.command, *plugin.args, env=environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, limit=_MAX_OUTPUT,
        )  # fmt: skip
    except OSError as error:
        raise KubeconfigError(f"credential plug-in {plugin.command} cannot be run: {error.strerror}") from error
    try:
        output, _ = await asyncio.wait_for(process.communicate(), EXEC_SECONDS)
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise KubeconfigError(f"credential plug-in {plugin.command} took more than {EXEC_SECONDS:.0f} s") from error
    if process.returncode:
        raise KubeconfigError(f"credential plug-in {plugin.command} failed with status {process.returncode}")
    try:
        answer: Any = msgspec.json.decode(output)
        status: dict[str, Any] = answer["status"]
        return status
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise KubeconfigError(f"credential plug-in {plugin.command} printed no ExecCredential status") from error
