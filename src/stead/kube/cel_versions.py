"""Semantic versions and image references as Kubernetes' CEL libraries know them.

Used by `cel_library`. Immutable values; pure. Raises RuleError for what is none. Sources: semver.org 2.0.0; the OCI
reference grammar with Docker's defaults, as go-containerregistry applies them.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from stead.kube.cel_values import RuleError

_NUMBER = r"(0|[1-9]\d{0,19})"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-([0-9A-Za-z.-]+))?(?:\+([0-9A-Za-z.-]+))?")
_REPOSITORY = re.compile(r"[a-z0-9_./-]{2,255}")
_REGISTRY = re.compile(r"[A-Za-z0-9.-]+(?::\d+)?|\[[0-9A-Fa-f:]+\](?::\d+)?")
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DOCKER = "index.docker.io"


@functools.total_ordering
class SemanticVersion(msgspec.Struct, frozen=True, eq=False):
    """A version; `build` takes no part in the order."""

    major: int
    minor: int
    patch: int
    release: tuple[str, ...] = ()
    build: tuple[str, ...] = ()

    def _order(self) -> Any:
        parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in self.release)
        return (self.major, self.minor, self.patch, not self.release, parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SemanticVersion) and self._order() == other._order()

    def __lt__(self, other: SemanticVersion) -> bool:
        return bool(self._order() < other._order())

    def __hash__(self) -> int:
        return hash(self._order())


def parse_version(text: str, normalize: Any = False) -> SemanticVersion:
    """A version; normalising drops a leading `v` and zeros, and adds what is missing. Raises RuleError."""
    if not isinstance(normalize, bool):
        raise RuleError("no such overload")
    match = _VERSION.fullmatch(_normalized(text) if normalize else text)
    if match is None:
        raise RuleError(f"invalid semantic version {text[:80]!r}")
    major, minor, patch, release, build = match.groups()
    parts, builds = (tuple(each.split(".")) if each else () for each in (release, build))
    if "" in parts or "" in builds or any(each.isdigit() and len(each) > 1 and each[0] == "0" for each in parts):
        raise RuleError(f"invalid semantic version {text[:80]!r}")
    return SemanticVersion(int(major), int(minor), int(patch), parts, builds)


def _normalized(text: str) -> str:
    parts = [re.sub(r"^0+(?=\d)", "", part) for part in text.removeprefix("v").split(".", 2)]
    if len(parts) < 3 and re.search(r"[+-]", parts[-1]):
        raise RuleError("short version cannot contain PreRelease/Build meta data")
    return ".".join([*parts, "0", "0"][:3])


class Image(msgspec.Struct, frozen=True):
    """An image reference: a tag, or a digest, which wins where both are written."""

    registry: str
    repository: str
    tag: str
    digest: str


def parse_image(text: str) -> Image:
    """An image reference with Docker's defaults. Raises RuleError."""
    bare, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise RuleError(f"could not parse reference: {text[:80]}")
    head, colon, tag = bare.rpartition(":")
    if not colon or "/" in tag:
        head, tag = bare, ""
    elif not _TAG.fullmatch(tag):
        raise RuleError(f"could not parse reference: {text[:80]}")
    first, slash, rest = head.partition("/")
    is_registry = bool(slash) and ("." in first or ":" in first or first == "localhost")
    registry, repository = (first, rest) if is_registry else (_DOCKER, head)
    if registry in (_DOCKER, "docker.io"):
        registry, repository = _DOCKER, repository if "/" in repository else f"library/{repository}"
    proper = all(repository.split("/")) and _REPOSITORY.fullmatch(repository) and _REGISTRY.fullmatch(registry)
    if not proper or not head.rpartition("/")[2]:
        raise RuleError(f"could not parse reference: {text[:80]}")
    return Image(registry, repository, "" if digest else tag or "latest", digest)
