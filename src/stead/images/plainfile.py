"""Fetches one plain file (a kernel, an initial ramdisk) from an HTTP server to a path of ours, in the confined child.

Called by the agent's `Stock`. The same address policy holds as for images; what was begun and failed is removed.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from stead.images.child import run_worker
from stead.images.jobs import Job
from stead.images.sources import Access

#: longest file that is taken, bytes
MAX_BYTES = 1 << 30


async def fetch_plain(url: str, access: Access, target: Path) -> int:
    """Write the file to `target`, which must not exist, and answer its length. TransferFailed says why not."""
    descriptor = await asyncio.to_thread(os.open, target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        job = Job(kind="http", mode="plain", url=url, access=access, limit_bytes=MAX_BYTES, target=descriptor)
        return (await run_worker(job)).file_bytes
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
