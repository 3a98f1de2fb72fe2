"""Finds hypervisor drivers by name. Called by `run` and the agent; drivers register under the entry point group
`stead.hypervisors` with a class whose instances are `Hypervisor`s.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from stead.hypervisor.contract import Hypervisor, NotFound

GROUP = "stead.hypervisors"


def names() -> list[str]:
    """The drivers that are installed, sorted."""
    return sorted(point.name for point in entry_points(group=GROUP))


def create(name: str, **options: Any) -> Hypervisor:
    """An unopened driver, made with the options that its class takes. Raises NotFound naming those installed."""
    for point in entry_points(group=GROUP, name=name):
        driver: Hypervisor = point.load()(**options)
        return driver
    raise NotFound(f"no hypervisor driver named {name!r} is installed; there are: {', '.join(names()) or 'none'}")
