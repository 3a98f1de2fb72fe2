"""A real etcd cluster on loopback for tests: Debian's etcd, three members, TLS with client certificates.

The processes are those of the proof (`proofs/etcd_members.py`), which says how they are configured.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stead.cli import prove

members: Any = prove.load("etcd_members")
Cluster = members.Cluster


@contextlib.contextmanager
def running_cluster(root: Path) -> Iterator[Any]:
    """A cluster that is ready; its processes belong to no event loop."""
    cluster = Cluster(root)
    with ThreadPoolExecutor(1) as elsewhere:  # the caller's thread has a loop of its own
        try:
            elsewhere.submit(asyncio.run, cluster.__aenter__()).result()
            yield cluster
        finally:
            cluster.close()
