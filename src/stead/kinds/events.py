"""The two faces of an event: core/v1 (what is stored) and events.k8s.io/v1 (what newer clients read and write).

The server converts on the way in and out. Pure; the input is never changed. Source: Kubernetes API 1.36.
"""

from __future__ import annotations

from typing import Any

GROUP = "events.k8s.io"

#: core field -> events.k8s.io field, for those that have another name there
_NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_BACK = {new: old for old, new in _NAMES.items()}


def events_v1_from_core(event: dict[str, Any]) -> dict[str, Any]:
    """The event as events.k8s.io/v1 words it."""
    renamed = {_NAMES.get(key, key): value for key, value in event.items()}
    for key in ("reportingController", "reportingInstance"):
        if not renamed.get(key):
            renamed.pop(key, None)
    return {**renamed, "apiVersion": "events.k8s.io/v1"}


def core_from_events_v1(event: dict[str, Any]) -> dict[str, Any]:
    """The event as core/v1 words it, in which form it is stored."""
    return {**{_BACK.get(key, key): value for key, value in event.items()}, "apiVersion": "v1"}
