"""Copies of several volumes of one host that show the same moment.

Called by the agent, which lets the machine that writes the volumes stand still while `take` runs. `begin` opens
everything beforehand, `publish` syncs and names the copies afterwards, so that only `take` counts against the guest:
with shared blocks it takes milliseconds, else as long as the data takes to copy. A copy never depends on its source.
All functions block. Whatever fails, `discard` leaves nothing; called while another thread still copies, it waits until
that has given up.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence

import msgspec

from stead.storage.copying import copy_open_disk
from stead.storage.pools import Pool, PoolError, Volume, VolumeSpec, clear_errors


class Copy(msgspec.Struct, frozen=True):
    """What is to be copied (a complete volume of `pool`), and as what."""

    pool: Pool
    source: Volume
    spec: VolumeSpec


class Instant:
    """See the module's prose. `is_stopped` is asked while data is copied; once true, the work is given up."""

    def __init__(self, copies: Sequence[Copy], is_stopped: Callable[[], bool] = lambda: False) -> None:
        self._copies = tuple(copies)
        self._is_stopped = is_stopped
        self._open: list[tuple[Copy, int, int]] = []
        self._copying = threading.Lock()

    def begin(self) -> None:
        """Make and open the copies, empty. PoolError."""
        for copy in self._copies:
            spec = msgspec.structs.replace(copy.spec, size_bytes=copy.source.size_bytes, format=copy.source.format)
            path = copy.pool.begin(spec)
            with clear_errors(f"volume {copy.source.uid} cannot be copied in pool {copy.pool.name}"):
                source = os.open(copy.source.path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    target = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
                except OSError:
                    os.close(source)
                    raise
                self._open.append((copy, source, target))
            if not copy.pool.lock(target):
                raise PoolError("Failed", f"volume {copy.spec.uid} in pool {copy.pool.name} is worked on elsewhere")

    def take(self) -> None:
        """Copy all, while nobody writes them. PoolError."""
        with self._copying:
            self._go_on(0.0)
            for copy, source, target in self._open:
                with clear_errors(f"volume {copy.source.uid} cannot be copied in pool {copy.pool.name}"):
                    copy_open_disk(source, target, self._go_on)

    def publish(self) -> list[Volume]:
        """Sync the copies and give them their names. PoolError."""
        for copy, _, target in self._open:
            with clear_errors(f"volume {copy.spec.uid} cannot be completed in pool {copy.pool.name}"):
                os.fsync(target)
        made = [copy.pool.publish(copy.spec.uid, target) for copy, _, target in self._open]
        self._close()
        return made

    def discard(self) -> None:
        """Remove what was begun; `is_stopped` is true by now."""
        with self._copying:
            self._close()
        for copy in self._copies:
            copy.pool.discard(copy.spec.uid)

    def _go_on(self, _share: float) -> None:
        if self._is_stopped():
            raise PoolError("Failed", "the copy was given up")

    def _close(self) -> None:
        for _, source, target in self._open:
            for descriptor in (source, target):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._open = []
