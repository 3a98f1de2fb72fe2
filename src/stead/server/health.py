"""Health, version and metrics.

Called by `app`. Checks are named functions that say what is wrong or return nothing; `/readyz` also turns to failure
when the server is stopping. Follows T5, T6 and T8.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stead import __version__
from stead.server.answer import Answer, json_answer, text_answer
from stead.server.request import Query

#: the Kubernetes minor whose semantics we offer; clients compare it with their own
KUBERNETES_MINOR = 33

Check = Callable[[], str | None]


class Health:
    """The checks behind /healthz, /livez and /readyz."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks: dict[str, Check] = {"ping": lambda: None, **checks}
        self.stopping = False

    def answer(self, path: str, query: Query) -> Answer | None:
        """The answer to a health path; None if it is none."""
        parts = [part for part in path.split("/") if part]
        if not parts or parts[0] not in ("healthz", "livez", "readyz") or len(parts) > 2:
            return None
        checks = dict(self._checks)
        if parts[0] == "readyz":
            checks["shutdown"] = lambda: "stopping" if self.stopping else None
        if len(parts) == 2:
            if parts[1] not in checks:
                return text_answer("404 page not found\n", 404)
            return text_answer("internal server error: failed\n", 500) if checks[parts[1]]() else text_answer("ok")
        excluded = set(query.all("exclude"))
        lines, failed = [], False
        for name, check in checks.items():
            if name in excluded:
                lines.append(f"[+]{name} excluded: ok")
            elif check():
                failed = True
                lines.append(f"[-]{name} failed: reason withheld")
            else:
                lines.append(f"[+]{name} ok")
        if failed:
            return text_answer("\n".join([*lines, f"{parts[0]} check failed", ""]), 500)
        if query.has("verbose"):
            return text_answer("\n".join([*lines, f"{parts[0]} check passed", ""]))
        return text_answer("ok")


def version_info() -> dict[str, Any]:
    """The body of /version."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "major": "1", "minor": str(KUBERNETES_MINOR), "gitVersion": f"v1.{KUBERNETES_MINOR}.0+stead{__version__}",
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": f"python{platform.python_version()}", "compiler": "cpython", "platform": f"linux/{machine}",
    }  # fmt: skip


def version_answer() -> Answer:
    """The answer of /version."""
    return json_answer(version_info())


class Metrics:
    """What the API server counts. Label values are bounded: verbs, known plurals, codes."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.requests = Counter(
            "apiserver_request_total", "Requests by verb, resource and code.", ["verb", "resource", "code"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "apiserver_request_duration_seconds", "Time to answer, watches and streams left out.", ["verb"],
            registry=self.registry, buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )  # fmt: skip
        self.watchers = Gauge("apiserver_longrunning_requests", "Open watches.", registry=self.registry)
        self.in_flight = Gauge("apiserver_current_inflight_requests", "Requests in hand.", registry=self.registry)

        self._counted: dict[tuple[str, str, int], Counter] = {}
        self._timed: dict[str, Histogram] = {}

    def count(self, verb: str, plural: str, code: int) -> None:
        """One request more. The label values must be bounded: each of their combinations is kept."""
        counter = self._counted.get((verb, plural, code))
        if counter is None:
            counter = self._counted[verb, plural, code] = self.requests.labels(verb, plural, str(code))
        counter.inc()

    def time(self, verb: str, seconds: float) -> None:
        """How long a request took."""
        histogram = self._timed.get(verb)
        if histogram is None:
            histogram = self._timed[verb] = self.seconds.labels(verb)
        histogram.observe(seconds)

    def answer(self) -> Answer:
        """The Prometheus text."""
        return Answer(200, generate_latest(self.registry), "text/plain; version=0.0.4; charset=utf-8")
