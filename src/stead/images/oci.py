"""A pull client for OCI and Docker registries, as much of it as disks in images need.

Used inside the unprivileged import worker; blocking. Four endpoints: ping, token, manifests, blobs. Digests are
verified always: the manifest against the digest asked for, each layer while it streams. A layer is read as a tar
stream; one regular file is taken from it, links and everything else are passed over, nothing is ever extracted.
Sources: OCI distribution-spec 1.1, image-spec 1.1, Docker's token authentication specification.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tarfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from stead.images.compression import opened
from stead.images.sources import Access, HttpStream, SourceError, checksum_from_text, request
from stead.images.wire import Answer

_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_MAX_MANIFEST_BYTES = 4 << 20
_REFERENCE = re.compile(
    r"^(?:(?P<host>[A-Za-z0-9.-]+\.[A-Za-z0-9.-]+(?::\d+)?|localhost(?::\d+)?|[A-Za-z0-9.-]+:\d+|\[[0-9a-fA-F:]+\](?::\d+)?)/)?"
    r"(?P<name>[a-z0-9]+(?:(?:[._]|__|-+|/)[a-z0-9]+)*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}))?$"
)


class Reference(msgspec.Struct, frozen=True):
    """`host/name:tag` or `host/name@digest`; `name` includes `library/` where Docker Hub implies it."""

    host: str
    name: str
    tag: str = "latest"
    digest: str = ""

    @property
    def target(self) -> str:
        """What to ask the manifests endpoint for."""
        return self.digest or self.tag

    def pinned(self, digest: str) -> str:
        """This image at exactly that content."""
        return f"{self.host}/{self.name}@{digest}"


class Resolved(msgspec.Struct, frozen=True):
    """A tag looked up once: `digest` of what the tag points to (an index maybe), the platform's manifest, its
    config.
    """

    digest: str
    manifest_digest: str
    layers: tuple[dict[str, Any], ...]
    environment: tuple[str, ...]
    labels: dict[str, str]


def reference_from_text(text: str) -> Reference:
    """Parse `docker://quay.io/x/y:tag` or the same without the scheme; SourceError(fatal) when it is malformed."""
    bare = re.sub(r"^(docker|oci)://", "", text.strip())
    match = _REFERENCE.fullmatch(bare)
    if not match:
        raise SourceError("InvalidImageName", f"image reference {text!r} is not host/name[:tag][@digest]", fatal=True)
    host, name = match["host"] or "docker.io", match["name"]
    if host == "docker.io" and "/" not in name:
        name = f"library/{name}"
    return Reference(host, name, match["tag"] or "latest", match["digest"] or "")


def labels_from_environment(environment: tuple[str, ...]) -> dict[str, str]:
    """Labels that CDI makes of an image's variables: `INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE=x` →
    `instancetype.kubevirt.io/default-preference: x`."""
    labels = {}
    for entry in environment:
        name, _, value = entry.partition("=")
        group, marker, rest = name.partition("_KUBEVIRT_IO_")
        if marker and group and rest and value:
            labels[f"{group.lower().replace('_', '-')}.kubevirt.io/{rest.lower().replace('_', '-')}"] = value
    return labels


class Registry:
    """One repository on one registry. `insecure` = plain http is tried (a registry the administrator listed)."""

    def __init__(self, reference: Reference, access: Access, *, insecure: bool = False) -> None:
        self.reference = reference
        self._access = access
        host = "registry-1.docker.io" if reference.host == "docker.io" else reference.host
        # credentials belong to the registry or its token server only, so requests carry our own header
        self._plain = msgspec.structs.replace(access, user="", password="", verify=access.verify and not insecure)
        self._headers: dict[str, str] = {}
        self._base = f"https://{host}/v2"
        if insecure:
            try:
                request(f"{self._base}/", self._plain).close()
            except SourceError:
                self._base = f"http://{host}/v2"

    def resolve(self, architecture: str = "amd64") -> Resolved:
        """Look the reference up: manifest of the platform, layers, and the variables and labels of its config."""
        top_digest, manifest = self._manifest(self.reference.target)
        digest = top_digest
        if manifest.get("mediaType") in _INDEX_TYPES or "manifests" in manifest:
            entry = _entry_for(manifest, architecture, self.reference)
            digest, manifest = self._manifest(entry)
        layers = manifest.get("layers")
        if not isinstance(layers, list) or not all(
            isinstance(x, dict) and isinstance(x.get("digest"), str) for x in layers
        ):
            raise self._failed("its manifest has no layers (schema 1 images are not supported)")
        config = self._config(manifest.get("config") or {})
        return Resolved(top_digest, digest, tuple(layers), config[0], config[1])

    def file(self, resolved: Resolved, path: str = "", limit_bytes: int = 1 << 44) -> TarFile:
        """The disk in the image: `path`, or the one file below /disk; the topmost layer that has it wins."""
        for layer in reversed(resolved.layers):
            found = TarFile.find(self._blob(layer["digest"]), path, limit_bytes)
            if found:
                return found
        raise self._failed(f"it holds no file {path}" if path else "it holds no file below /disk")

    def _config(self, descriptor: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
        if not isinstance(descriptor.get("digest"), str):
            return (), {}
        stream = self._blob(descriptor["digest"])
        data = b""
        while piece := stream.read():
            data += piece
            if len(data) > _MAX_MANIFEST_BYTES:
                raise self._failed("its config is too large")
        inner = _json_object(data).get("config") or {}
        environment = [x for x in inner.get("Env") or [] if isinstance(x, str)]
        labels = {k: v for k, v in (inner.get("Labels") or {}).items() if isinstance(v, str)}
        return tuple(environment), labels

    def _blob(self, digest: str) -> HttpStream:
        url = f"{self._base}/{self.reference.name}/blobs/{quote(digest, safe=':')}"
        return HttpStream(url, self._plain, checksum_from_text(digest), dict(self._headers))

    def _manifest(self, target: str) -> tuple[str, dict[str, Any]]:
        answer = self._get(f"/{self.reference.name}/manifests/{target}")
        data = answer.read(_MAX_MANIFEST_BYTES + 1)
        answer.close()
        if len(data) > _MAX_MANIFEST_BYTES:
            raise self._failed("its manifest is too large")
        algorithm = target.partition(":")[0] if ":" in target else "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
        if ":" in target and digest != target:
            raise self._failed(f"the registry sent {digest} when asked for {target}")
        return digest, _json_object(data)

    def _get(self, path: str) -> Answer:
        """GET with the accept header; a 401 is answered once with the credentials the challenge asks for."""
        for attempt in (1, 2):
            accept = {"Accept": ", ".join((*_INDEX_TYPES, *_MANIFEST_TYPES))}
            answer = request(self._base + path, self._plain, {**accept, **self._headers})
            if answer.status == 200:
                return answer
            answer.close()
            if answer.status == 401 and attempt == 1:
                self._authorise(answer.headers.get("www-authenticate", ""))
                continue
            break
        raise SourceError("ImagePullFailed", f"Failed to pull image: {self.reference.host}/{self.reference.name}:"
                          f"{self.reference.target}: {_status_words(answer)}")  # fmt: skip

    def _authorise(self, challenge: str) -> None:
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            token = base64.b64encode(f"{self._access.user}:{self._access.password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
            return
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if scheme.lower() != "bearer" or "realm" not in fields:
            raise self._failed(f"it asks for authentication of an unknown kind: {challenge!r}")
        query = {k: fields[k] for k in ("service", "scope") if k in fields}
        query.setdefault("scope", f"repository:{self.reference.name}:pull")
        answer = request(f"{fields['realm']}?{urlencode(query)}", self._access)
        data = answer.read(1 << 20) if answer.status == 200 else b"{}"
        answer.close()
        bearer = _json_object(data).get("token") or _json_object(data).get("access_token")
        if not bearer:
            raise self._failed(f"its token server answered {answer.status}")
        self._headers["Authorization"] = f"Bearer {bearer}"

    def _failed(self, why: str) -> SourceError:
        return SourceError(
            "ImagePullFailed",
            f"Failed to pull image: {self.reference.host}/{self.reference.name}:{self.reference.target}: {why}",
        )


def _status_words(answer: Answer) -> str:
    words = {401: "authentication required", 403: "access denied", 404: "manifest unknown"}
    return words.get(answer.status, f"{answer.status} {answer.reason}")


def _entry_for(index: dict[str, Any], architecture: str, reference: Reference) -> str:
    for entry in index.get("manifests") or []:
        platform = entry.get("platform") or {}
        if platform.get("architecture") == architecture and platform.get("os", "linux") == "linux":
            return str(entry.get("digest"))
    raise SourceError(
        "ImagePullFailed",
        f"Failed to pull image: {reference.host}/{reference.name} has no manifest for linux/{architecture}",
    )


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise SourceError(
            "ImagePullFailed", f"Failed to pull image: the registry's answer is not JSON: {error}"
        ) from error


class TarReader:
    """A stream of pieces as the file object that tarfile reads, with a bound on what may come."""

    def __init__(self, pieces: Iterator[bytes], limit: int) -> None:
        self._pieces, self._limit, self._rest = pieces, limit, b""

    def read(self, size: int) -> bytes:
        parts = [self._rest]
        have = len(self._rest)
        while have < size and (piece := next(self._pieces, b"")):
            parts.append(piece)
            have += len(piece)
            self._limit -= len(piece)
            if self._limit < 0:
                raise SourceError(
                    "ImageTooLarge", "Unable to process data: a layer is larger than any disk may be", fatal=True
                )
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]

    def drain(self) -> None:
        """Read to the end, so that the digest is checked."""
        for piece in self._pieces:
            self._limit -= len(piece)
            if self._limit < 0:
                raise SourceError(
                    "ImageTooLarge", "Unable to process data: a layer is larger than any disk may be", fatal=True
                )


class TarFile:
    """One regular file inside a layer, as a Stream; reading it to its end verifies the whole layer."""

    def __init__(self, blob: HttpStream, reader: TarReader, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self._blob, self._reader, self._archive = blob, reader, archive
        self._handle = archive.extractfile(member)
        self.name, self.total = member.name, member.size

    @classmethod
    def find(cls, blob: HttpStream, path: str, limit_bytes: int) -> TarFile | None:
        """Position at the file, or read the layer to its end and answer None."""
        reader = TarReader(opened(blob), 2 * limit_bytes + (1 << 30))
        wanted = path.strip("/")
        try:
            archive = tarfile.open(fileobj=reader, mode="r|")  # type: ignore[call-overload]  # noqa: SIM115  read() is enough
            for member in archive:
                name = member.name.removeprefix("./").strip("/")
                below_disk = name.startswith("disk/") and name.count("/") == 1
                if member.isreg() and (name == wanted if wanted else below_disk):
                    return cls(blob, reader, archive, member)
        except tarfile.TarError as error:
            raise SourceError(
                "ImagePullFailed", f"Failed to pull image: a layer is not a tar archive: {error}"
            ) from error
        reader.drain()
        return None

    def read(self) -> bytes:
        """The next piece of the file; b"" at its end."""
        assert self._handle is not None
        try:
            data = self._handle.read(1 << 20)
        except tarfile.TarError as error:
            raise SourceError("ImagePullFailed", f"Failed to pull image: a layer is truncated: {error}") from error
        if not data:
            self._reader.drain()
        return data

    def close(self) -> None:
        """Give the connection up."""
        self._blob.close()
