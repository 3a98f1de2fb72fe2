"""The audit log: one JSON line for each request, as much of it as the policy says, never a secret.

Called by `app` when a request ends. Lines gather for a moment and are then taken by one writer thread, all at once: a
hand-over for each would cost more than the rest of a read. What gathers is bounded in lines and bytes; what does not
fit is dropped and counted, so that a slow disk never stops the API. Files are rotated by size.
Follows Q1 (`audit.k8s.io/v1` Event); `audit_policy` decides the level and blanks what may be secret.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from stead.kube import meta
from stead.server import audit_policy
from stead.server.authn import User
from stead.server.request import Request

MAX_BYTES = 64 * 1024 * 1024
KEPT_FILES = 4
QUEUE = 4096
QUEUE_BYTES = 32 * 1024 * 1024
#: how long lines gather before they are written, seconds
GATHER_SECONDS = 0.02


class Entry(msgspec.Struct, kw_only=True):
    """What is known about a request when it is logged."""

    audit_id: str
    request: Request
    user: User
    impersonated: User | None = None
    source: str = ""
    user_agent: str = ""
    code: int = 0
    reason: str = ""
    stage: str = "ResponseComplete"
    received: str = ""
    decision: str = "allow"
    decision_reason: str = ""
    #: bodies as they came and went, with the content type of the first
    body: bytes = b""
    media: str = ""
    answer: bytes = b""


class AuditLog:
    """Writes entries to `path`; without a path it does nothing."""

    def __init__(
        self, path: Path | None, policy: audit_policy.Policy = audit_policy.USUAL, *, max_bytes: int = MAX_BYTES
    ) -> None:
        self._path = path
        self._policy = policy
        self._waiting = 0
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._some = threading.Event()
        self._closing = threading.Event()
        self._encoder = msgspec.json.Encoder()
        self.dropped = 0
        self._thread: threading.Thread | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._thread = threading.Thread(target=self._write_forever, name="audit", daemon=True)
            self._thread.start()

    def write(self, entry: Entry) -> None:
        """Log one entry; never waits."""
        level = self._policy.level(entry.request, entry.user)
        if self._thread is None or level == "None":
            return
        line = audit_policy.without_tokens(self._encoder.encode(event_from(entry, level))) + b"\n"
        if self._waiting + len(line) > QUEUE_BYTES or len(self._lines) >= QUEUE:
            self.dropped += 1
            return
        self._waiting += len(line)
        self._lines.append(line)
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Write what is queued and stop."""
        if self._thread is not None:
            self._closing.set()
            self._some.set()
            self._thread.join(timeout=5)
            self._thread = None

    def _write_forever(self) -> None:
        file = self._open()
        while not self._closing.is_set() or self._lines:
            self._some.wait()
            self._closing.wait(GATHER_SECONDS)
            self._some.clear()
            try:
                while self._lines:
                    line = self._lines.popleft()
                    self._waiting = max(0, self._waiting - len(line))
                    file.write(line)
                    if file.tell() > self._max_bytes:
                        file.close()
                        self._rotate()
                        file = self._open()
                file.flush()
            except OSError:
                self.dropped += 1
        file.close()

    def _open(self) -> BinaryIO:
        assert self._path is not None
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        return os.fdopen(descriptor, "ab")

    def _rotate(self) -> None:
        assert self._path is not None
        for number in range(KEPT_FILES - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))


def event_from(entry: Entry, level: audit_policy.Level = "Metadata") -> dict[str, Any]:
    """The `audit.k8s.io/v1` Event of an entry."""
    request = entry.request
    event: dict[str, Any] = {
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": level, "auditID": entry.audit_id,
        "stage": entry.stage, "requestURI": _uri(request), "verb": request.verb, "user": entry.user.info(),
        "sourceIPs": [entry.source] if entry.source else [], "userAgent": entry.user_agent,
        "requestReceivedTimestamp": entry.received, "stageTimestamp": meta.now_micro(),
        "annotations": {
            "authorization.k8s.io/decision": entry.decision, "authorization.k8s.io/reason": entry.decision_reason,
        },
    }  # fmt: skip
    if entry.impersonated is not None:
        event["impersonatedUser"] = entry.impersonated.info()
    if request.is_resource:
        reference = {
            "resource": request.plural, "namespace": request.namespace, "name": request.name,
            "apiGroup": request.group, "apiVersion": request.version, "subresource": request.subresource,
        }  # fmt: skip
        event["objectRef"] = {key: value for key, value in reference.items() if value}
    if entry.code:
        event["responseStatus"] = {
            "metadata": {},
            "code": entry.code,
            **({"reason": entry.reason} if entry.reason else {}),
        }
    if level in ("Request", "RequestResponse"):
        _add_body(event, "requestObject", entry.body, entry.media)
    if level == "RequestResponse":
        _add_body(event, "responseObject", entry.answer, "")
    return event


def _add_body(event: dict[str, Any], field: str, body: bytes, media: str) -> None:
    found = audit_policy.object_in(body, media)
    if found is not None:
        event[field] = found
    elif body:
        event["annotations"][f"stead.io/{field}-left-out"] = f"{len(body)} bytes"


def _uri(request: Request) -> str:
    """Path and query, without values that may be secrets."""
    shown = [f"{key}={value if key not in ('token', 'access_token') else '…'}" for key, value in request.query.pairs]
    return request.path + ("?" + "&".join(shown) if shown else "")
