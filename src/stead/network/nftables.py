"""Loads nftables rule sets and looks after the two rules that we may have in foreign chains. Blocking; acts in the
network namespace of the calling thread. The rules themselves are `rules.py`'s. Source: nft(8), libnftables-json(5).
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from stead.network.attachment import NetworkConfig, NetworkError
from stead.network.rules import foreign_forward

_SECONDS = 10
# iptables' forwarding chain, and the one that Docker keeps for other people's rules, which it asks first.
_FORWARD, _DOCKER = "FORWARD", "DOCKER-USER"


def load(text: str, what: str) -> None:
    """Load a rule set in one transaction. Raises NetworkError with nft's first line."""
    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=text.encode(), capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"load nftables rules of {what}: {error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise NetworkError(f"load nftables rules of {what}: {lines[0] if lines else 'nft failed'}")


def _chain(name: str) -> list[dict[str, Any]] | None:
    """The objects of a chain of iptables' filter table, None when there is no such chain."""
    done = subprocess.run(
        ["nft", "-j", "list", "chain", "ip", "filter", name], capture_output=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        return None
    objects: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    return objects


def open_foreign_chains(config: NetworkConfig) -> None:
    """Where another program drops all forwarded traffic (Docker, ufw), let ours pass. Idempotent."""
    forward = _chain(_FORWARD)
    if forward is None or not any(each.get("chain", {}).get("policy") == "drop" for each in forward):
        return
    docker = _chain(_DOCKER)
    name, objects = (_FORWARD, forward) if docker is None else (_DOCKER, docker)
    if not any(_is_ours(each, config) for each in objects):
        load(foreign_forward(config, name), f"the chain {name} of iptables")


def close_foreign_chains(config: NetworkConfig) -> None:
    """Take our rules out again."""
    for name in (_FORWARD, _DOCKER):
        handles = [each["rule"]["handle"] for each in _chain(name) or [] if _is_ours(each, config)]
        if handles:
            lines = [f"delete rule ip filter {name} handle {handle}" for handle in handles]
            load("\n".join(lines) + "\n", f"the chain {name} of iptables")


def _is_ours(each: dict[str, Any], config: NetworkConfig) -> bool:
    return bool(each.get("rule", {}).get("comment") == config.table)
