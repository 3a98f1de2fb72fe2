"""What the rules of admission found wrong: causes, collected in order, and the one refusal made of them.

Rules add; `admit` raises once at the end, so that a user sees every fault of a manifest at a time. Text, order and the
cut after ten causes are KubeVirt's (`pkg/util/webhooks/validating-webhooks`, recordings `many-violations`).
"""

from __future__ import annotations

from stead.kube.errors import ApiError

#: causes beyond this number are only counted
_MOST_CAUSES = 10

INVALID = "FieldValueInvalid"
REQUIRED = "FieldValueRequired"
NOT_SUPPORTED = "FieldValueNotSupported"
NOT_FOUND = "FieldValueNotFound"
DUPLICATE = "FieldValueDuplicate"
FORBIDDEN = "FieldValueForbidden"


class Findings:
    """An ordered list of causes of one refusal."""

    def __init__(self) -> None:
        self.causes: list[dict[str, str]] = []

    def add(self, field: str, message: str, reason: str = INVALID) -> None:
        """Note one fault. An empty `field` is left out of the cause, as upstream's encoder does."""
        found = {"reason": reason, "message": message}
        if field:
            found["field"] = field
        self.causes.append(found)

    def refuse_if_any(self) -> None:
        """Raise the 422 that holds all causes, if there are any."""
        if not self.causes:
            return
        shown = self.causes[:_MOST_CAUSES]
        message = ", ".join(c["message"] for c in shown)
        if len(self.causes) > len(shown):
            message += f", and {len(self.causes) - len(shown)} more validation errors"
        raise ApiError("Invalid", message, {"causes": shown})


def refuse(field: str, message: str, reason: str = INVALID) -> ApiError:
    """The 422 of a single fault, to raise."""
    return ApiError("Invalid", message, {"causes": [_cause(field, message, reason)]})


def bad_request(message: str) -> ApiError:
    """A 400 without reason and causes: how upstream's webhooks answer when they cannot decide."""
    return ApiError("", message, code=400)


def _cause(field: str, message: str, reason: str) -> dict[str, str]:
    found = {"reason": reason, "message": message}
    if field:
        found["field"] = field
    return found
