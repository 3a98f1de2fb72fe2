"""Manifests that the tests with other people's clients use."""

from __future__ import annotations

from typing import Any

#: group and version of machines, as client libraries take them
GROUP = {"group": "kubevirt.io", "version": "v1"}


def halted(name: str, namespace: str = "default", memory: str = "128Mi") -> dict[str, Any]:
    """A machine that is not started."""
    domain = {"devices": {}, "memory": {"guest": memory}}
    return {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name, "namespace": namespace},
        "spec": {"runStrategy": "Halted", "template": {"spec": {"domain": domain}}},
    }  # fmt: skip
