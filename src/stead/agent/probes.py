"""Readiness and liveness probes of a guest: guestAgentPing, exec, tcpSocket, httpGet, with Kubernetes' thresholds.

One `Prober` a probe, a background task of the machine's own task. Counting is pure (`Tally`), checking is thin. A
probe does not run while its guest is paused, so that a pause kills nothing. Defaults are 1/10/1/3 (timeout, period,
success, failure).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec

from stead.hypervisor.contract import DriverError

Object = dict[str, Any]
Ask = Callable[[str, dict[str, Any] | None], Awaitable[Any]]


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Results in a row. `healthy` flips after as many successes or failures as its threshold says."""

    success_threshold: int = 1
    failure_threshold: int = 3
    healthy: bool = False
    row: int = 0

    def after(self, success: bool) -> Tally:
        """The tally with one more result. `row` counts results that contradict `healthy`."""
        if success is self.healthy:
            return msgspec.structs.replace(self, row=0)
        needed = self.success_threshold if success else self.failure_threshold
        if self.row + 1 >= needed:
            return msgspec.structs.replace(self, healthy=success, row=0)
        return msgspec.structs.replace(self, row=self.row + 1)


class Target(msgspec.Struct, frozen=True):
    """What a probe may reach: the guest's agent, its address, and whether probing is sensible just now."""

    ask: Ask
    address: Callable[[], str]
    is_running: Callable[[], bool]


class Prober:
    """Runs one probe. `changed(healthy)` is called on the loop whenever the verdict flips."""

    def __init__(self, probe: Object, target: Target, *, healthy: bool, changed: Callable[[bool], None]) -> None:
        self._probe = probe
        self._target = target
        self._changed = changed
        self.tally = Tally(
            success_threshold=max(1, int(probe.get("successThreshold") or 1)),
            failure_threshold=max(1, int(probe.get("failureThreshold") or 3)),
            healthy=healthy,
        )

    async def run(self) -> None:
        """Probe until cancelled."""
        timeout = max(1.0, float(self._probe.get("timeoutSeconds") or 1))
        period = max(1.0, float(self._probe.get("periodSeconds") or 10))
        await asyncio.sleep(float(self._probe.get("initialDelaySeconds") or 0))
        while True:
            if self._target.is_running():
                self._note(await self._check(timeout))
            await asyncio.sleep(period)

    def _note(self, success: bool) -> None:
        before = self.tally.healthy
        self.tally = self.tally.after(success)
        if self.tally.healthy is not before:
            self._changed(self.tally.healthy)

    async def _check(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                return await self._check_once()
        except (DriverError, OSError, TimeoutError, aiohttp.ClientError, ValueError):
            return False

    async def _check_once(self) -> bool:
        probe = self._probe
        if "guestAgentPing" in probe:
            await self._target.ask("guest-ping", None)
            return True
        if probe.get("exec"):
            return await self._execute([str(word) for word in probe["exec"].get("command") or []])
        if probe.get("tcpSocket"):
            _, writer = await asyncio.open_connection(*self._endpoint(probe["tcpSocket"]))
            writer.close()
            return True
        if probe.get("httpGet"):
            return await self._get(probe["httpGet"])
        return True

    def _endpoint(self, spec: Object) -> tuple[str, int]:
        host = str(spec.get("host") or self._target.address())
        if not host:
            raise OSError("the guest has no address yet")
        return host, int(spec["port"])

    async def _get(self, spec: Object) -> bool:
        host, port = self._endpoint(spec)
        scheme = str(spec.get("scheme") or "HTTP").lower()
        path = str(spec.get("path") or "/")
        url = f"{scheme}://{host}:{port}{path if path.startswith('/') else '/' + path}"
        headers = {str(h["name"]): str(h.get("value", "")) for h in spec.get("httpHeaders") or []}
        # As kubelet does, a probe judges the answer and not the guest's certificate.
        async with aiohttp.ClientSession() as session:
            async with session.get(url, headers=headers, ssl=False, allow_redirects=False) as answer:
                return 200 <= answer.status < 400

    async def _execute(self, command: list[str]) -> bool:
        if not command:
            return False
        arguments = {"path": command[0], "arg": command[1:], "capture-output": False}
        started = await self._target.ask("guest-exec", arguments)
        while True:
            status = await self._target.ask("guest-exec-status", {"pid": started["pid"]})
            if status.get("exited"):
                return bool(status.get("exitcode", 1) == 0)
            await asyncio.sleep(0.1)
