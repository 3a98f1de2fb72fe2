"""stub"""

from __future__ import annotations

from typing import Any

from stead.kinds.resource import Resource
from stead.server.authn import User
from stead.server.authz import Attributes, Decision
from stead.server.registry import Registry

Object = dict[str, Any]


class NodeGuard:
    """stub"""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def decide(self, user: User, asked: Attributes) -> Decision | None:
        if "system:nodes" in user.groups:
            return Decision(True)
        return None

    def check_write(self, user: User, resource: Resource, old: Object | None, new: Object | None) -> None:
        return None
