"""Makes sure that a silent host is off: asks the fencer that the administrator named, and marks the host on its word.

Started by `controllers.start` where a fencer is set. A fencer is a program (`fencer_command`, with the host's name as
its last argument) that ends with 0 only when the host is surely off or cut off from its disks: `fence_ipmilan` in a few
lines of shell, say. Its word becomes Kubernetes' taint `node.kubernetes.io/out-of-service`, which `healing` acts on;
`stead host uncordon` takes it away. It is asked only about hosts with a machine that could start elsewhere then (to
turn off a host for nothing would only harm what runs there), one at a time for a host, and again after `RETRY_SECONDS`;
it gets `FENCE_SECONDS` and is killed then. It gets no shell.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from stead.client.informer import Key
from stead.controllers.conditions import is_deleting, spec_of
from stead.controllers.healing import Healing, silence_of
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import guarded_patch
from stead.kinds.hosts import OUT_OF_SERVICE_TAINT, taints_with
from stead.kinds.register import NODE

Object = dict[str, Any]

FENCE_SECONDS = 60.0
RETRY_SECONDS = 15.0
#: most of what a fencer says that is kept, bytes
MAX_WORDS = 2048


class Fencing:
    """The controller's hands."""

    def __init__(self, world: World, healing: Healing, command: Sequence[str]) -> None:
        self._world = world
        self._command = tuple(command)
        self._nodes = world.informers.of(NODE)
        self._healing = healing

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        return Controller(
            "fencing", self.reconcile, (Source(self._nodes, own_key),), workers=4, reconcile_seconds=FENCE_SECONDS + 30
        )

    async def reconcile(self, key: Key) -> float | None:
        """Fence one host, if it must be."""
        node = self._nodes.get(*key)
        silence = silence_of(node)
        if node is None or is_deleting(node) or silence is None or silence.is_off:
            return None
        if not self._healing.may_leave(key.name):
            return RETRY_SECONDS
        code, words = await self._ask(key.name)
        if code != 0:
            text = f"the fencer could not make sure that host {key.name} is off (exit code {code}): {words}"
            self._world.recorder.event(node, "Warning", "FencingFailed", text)
            return RETRY_SECONDS
        fresh = self._nodes.get(*key)
        if fresh is None or silence_of(fresh) is None:
            return None  # it was heard again meanwhile
        taints = {"op": "add", "path": "/spec/taints", "value": taints_with(fresh, OUT_OF_SERVICE_TAINT)}
        spec = [] if spec_of(fresh) else [{"op": "add", "path": "/spec", "value": {}}]
        await guarded_patch(self._world.client, NODE, fresh, [*spec, taints])
        self._world.recorder.event(fresh, "Warning", "Fenced", f"the fencer made sure that host {key.name} is off")
        return None

    async def _ask(self, host: str) -> tuple[int, str]:
        """Exit code of the fencer (-1: too slow or not to be run) and what it said."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, host, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
        except OSError as error:
            return -1, str(error)
        try:
            async with asyncio.timeout(FENCE_SECONDS):
                said, _ = await process.communicate()
        except TimeoutError:
            return -1, f"no answer within {FENCE_SECONDS:.0f} s"
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return process.returncode or 0, said[-MAX_WORDS:].decode("utf-8", "replace").strip()
