"""The one error family that crosses rooms: a Kubernetes `Status` as an exception.

Whoever refuses work on behalf of an API caller raises `ApiError`; the server turns it into a `Status` body, clients
turn such a body back into `ApiError`. Reasons and codes are those of `k8s.io/apimachinery/pkg/apis/meta/v1`
(StatusReason). Pure: no I/O.
"""

from __future__ import annotations

from typing import Any

#: HTTP code of each StatusReason that we emit.
CODES: dict[str, int] = {
    "BadRequest": 400,
    "Unauthorized": 401,
    "Forbidden": 403,
    "NotFound": 404,
    "MethodNotAllowed": 405,
    "NotAcceptable": 406,
    "AlreadyExists": 409,
    "Conflict": 409,
    "Gone": 410,
    "Expired": 410,
    "RequestEntityTooLarge": 413,
    "UnsupportedMediaType": 415,
    "Invalid": 422,
    "TooManyRequests": 429,
    "InternalError": 500,
    "ServiceUnavailable": 503,
    "Timeout": 504,
    "ServerTimeout": 504,
}


class ApiError(Exception):
    """A refusal that an API client sees as a `Status` object.

    `reason` is a StatusReason (or "" for the few answers that carry none); `details` is the `details` object of the
    Status: `name`, `group`, `kind` (the plural), `uid`, `causes` (`[{reason, message, field}]`), `retryAfterSeconds`.
    """

    def __init__(
        self, reason: str, message: str, details: dict[str, Any] | None = None, *, code: int | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = details
        self.code = code if code is not None else CODES.get(reason, 500)
        #: texts for `Warning` headers that go with the refusal
        self.warnings: list[str] = []
        #: further headers that go with the refusal
        self.headers: list[tuple[str, str]] = []

    def status(self) -> dict[str, Any]:
        """The `v1.Status` body of this refusal."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details:
            body["details"] = self.details
        body["code"] = self.code
        return body


def api_error_from_status(status: dict[str, Any]) -> ApiError:
    """The exception that a received `v1.Status` body stands for."""
    return ApiError(
        status.get("reason", ""), status.get("message", ""), status.get("details"), code=int(status.get("code", 500))
    )


def not_found(plural: str, name: str, group: str = "") -> ApiError:
    """404 as the API server words it: `virtualmachines.kubevirt.io "x" not found`."""
    resource = f"{plural}.{group}" if group else plural
    return ApiError("NotFound", f'{resource} "{name}" not found', {"name": name, "group": group, "kind": plural})


def already_exists(plural: str, name: str, group: str = "") -> ApiError:
    """409 for a create of a name that is taken."""
    resource = f"{plural}.{group}" if group else plural
    details = {"name": name, "group": group, "kind": plural}
    return ApiError("AlreadyExists", f'{resource} "{name}" already exists', details)


def conflict(plural: str, name: str, group: str = "") -> ApiError:
    """409 for a write that was based on an older resourceVersion, in the standard words."""
    resource = f"{plural}.{group}" if group else plural
    message = (
        f'Operation cannot be fulfilled on {resource} "{name}": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    return ApiError("Conflict", message, {"name": name, "group": group, "kind": plural})


def cause(field: str, message: str, reason: str = "FieldValueInvalid") -> dict[str, str]:
    """One entry of `details.causes`."""
    return {"reason": reason, "message": message, "field": field}


def invalid(kind: str, group: str, name: str, causes: list[dict[str, str]]) -> ApiError:
    """422 with causes, worded as apimachinery's `NewInvalid`: `Kind.group "name" is invalid: …`."""
    # What was found twice is said once.
    texts = list(dict.fromkeys(f"{c['field']}: {c['message']}" for c in causes))
    body = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    qualified = f"{kind}.{group}" if group else kind
    details: dict[str, Any] = {"name": name, "group": group, "kind": kind, "causes": causes}
    return ApiError("Invalid", f'{qualified} "{name}" is invalid: {body}', details)
