"""Leader election on a Lease (coordination.k8s.io/v1): of several candidates at most one leads.

Called by `controllers.start` where several planes run. One task per candidate. Time is judged by the observer's own
monotonic clock: a lease counts as expired when this candidate has seen no change of it for `duration` seconds, so clock
differences between hosts do not matter. A leader that cannot renew within `renew_deadline` < `duration` stops its work
before another can take over. Rule and figures follow client-go's leaderelection.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
import structlog

from stead.client.contract import Client, Object
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

log = structlog.get_logger(__name__)


class LeaseTerms(msgspec.Struct, frozen=True):
    """Which lease and for whom; times in seconds."""

    namespace: str
    name: str
    identity: str
    duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0


def micro_time(moment: datetime | None = None) -> str:
    """A MicroTime of the API: UTC with exactly six decimals."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class LeaseLost(Exception):
    """Leadership could not be renewed in time."""


class LeaderElection:
    """One candidate. `run(work)` leads again and again until cancelled."""

    def __init__(
        self, client: Client, resource: Resource, terms: LeaseTerms, clock: Callable[[], float] | None = None
    ) -> None:
        self._client = client
        self._resource = resource
        self._terms = terms
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._seen: tuple[str, str] | None = None  # (resourceVersion, holder) as last observed
        self._seen_at = 0.0
        self.is_leader = False

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for leadership, run `work` while leading, cancel it on loss, try again. On cancellation release."""
        while True:
            if not await self._attempt():
                await asyncio.sleep(self._terms.retry_period * (1 + 0.2 * random.random()))  # noqa: S311 — jitter
                continue
            self.is_leader = True
            log.info("leading", lease=self._terms.name, identity=self._terms.identity)
            try:
                await self._lead(work)
                return
            except LeaseLost:
                log.warning("leadership lost", lease=self._terms.name, identity=self._terms.identity)
            except asyncio.CancelledError:
                await self._release()
                raise
            finally:
                self.is_leader = False

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.ensure_future(work())
        renewed = self._clock()
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=self._terms.retry_period)
                if done:
                    task.result()
                    return
                if await self._attempt():
                    renewed = self._clock()
                elif self._clock() - renewed > self._terms.renew_deadline:
                    raise LeaseLost
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _attempt(self) -> bool:
        """Take or renew the lease; False when another holds it or the API does not answer in time."""
        try:
            async with asyncio.timeout(self._terms.renew_deadline / 2):
                return await self._take()
        except ApiError as error:
            if error.code not in (404, 409):
                log.warning("lease not reached", lease=self._terms.name, error=str(error))
        except (OSError, TimeoutError) as error:
            log.warning("lease not reached", lease=self._terms.name, error=repr(error))
        return False

    async def _take(self) -> bool:
        terms = self._terms
        try:
            lease = await self._client.get(self._resource, terms.namespace, terms.name)
        except ApiError as error:
            if error.code != 404:
                raise
            made = await self._client.create(self._resource, self._desired(None))
            self._observe(made)
            return True
        self._observe(lease)
        holder = lease.get("spec", {}).get("holderIdentity") or ""
        if holder not in ("", terms.identity) and not self._expired(lease):
            return False
        self._observe(await self._client.update(self._resource, self._desired(lease)))
        return True

    def _observe(self, lease: Object) -> None:
        seen = (lease["metadata"].get("resourceVersion", ""), lease.get("spec", {}).get("holderIdentity") or "")
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()

    def _expired(self, lease: Object) -> bool:
        duration = float(lease.get("spec", {}).get("leaseDurationSeconds") or self._terms.duration)
        return self._clock() - self._seen_at > duration

    def _desired(self, lease: Object | None, *, holder: str | None = None) -> Object:
        terms, now = self._terms, micro_time()
        spec = dict(lease.get("spec", {})) if lease else {}
        holder = terms.identity if holder is None else holder
        if spec.get("holderIdentity") != holder:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions", 0)) + (1 if lease else 0)
        spec["holderIdentity"] = holder
        spec["leaseDurationSeconds"] = max(1, round(terms.duration))
        spec["renewTime"] = now
        metadata = dict(lease["metadata"]) if lease else {"namespace": terms.namespace, "name": terms.name}
        return {
            "apiVersion": self._resource.api_version,
            "kind": self._resource.kind,
            "metadata": metadata,
            "spec": spec,
        }

    async def _release(self) -> None:
        """Give the lease back so that the next candidate need not wait; failure only costs that wait."""
        terms = self._terms
        try:
            async with asyncio.timeout(2.0):
                lease = await self._client.get(self._resource, terms.namespace, terms.name)
                if lease.get("spec", {}).get("holderIdentity") == terms.identity:
                    await self._client.update(self._resource, self._desired(lease, holder=""))
        except (ApiError, OSError, TimeoutError) as error:
            log.info("lease not released", lease=terms.name, error=repr(error))
