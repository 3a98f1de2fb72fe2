"""Kernel and initrd of `firmware.kernelBoot.container` that lie on a web server or in a pool, not in a container image.

An image written `http://tree/…/` or `https://…` is a folder on a server, `file:///…/` a registered pool's folder;
kernelPath and initrdPath lie below it. `stead create --location` and `--boot kernel=` write them so. The files are
fetched into the machine's own folder, where its process may read them; what was fetched before is kept for this
instance. Called by `disks.py`.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from stead.agent import paths
from stead.agent.materials import Materials
from stead.agent.prepared import NotReady, PreparedKernel, Unsupported

Object = dict[str, Any]

FIELD = "spec.domain.firmware.kernelBoot.container"
_SCHEMES = ("http://", "https://", "file://")
_PATH = re.compile(r"/?[A-Za-z0-9_.+~,@=-]+(/[A-Za-z0-9_.+~,@=-]+)*")
RETRY_SECONDS = 10.0


def is_direct(image: str) -> bool:
    """Whether the image names a folder on a server or in a pool."""
    return image.startswith(_SCHEMES)


async def prepare(container: Object, directory: Path, ids: tuple[int, int], materials: Materials) -> PreparedKernel:
    """Both files in `directory`, owned by `ids`. Raises NotReady, or Unsupported for a path that leads elsewhere."""
    made = []
    for key, name in (("kernelPath", "boot-kernel"), ("initrdPath", "boot-initrd")):
        path = str(container.get(key) or "")
        if not path:
            made.append("")
            continue
        if not _PATH.fullmatch(path) or ".." in path.split("/"):
            raise Unsupported(f"{FIELD}.{key}", f"{path!r} is not a path below {container['image']}")
        url = f"{str(container['image']).rstrip('/')}/{path.lstrip('/')}"
        target = directory / name
        if not await asyncio.to_thread(target.exists):
            await _fetch(url, target, materials)
        await asyncio.to_thread(paths.give, directory, name, *ids, 0o400)
        made.append(str(target))
    return PreparedKernel(kernel=made[0], initrd=made[1])


async def _fetch(url: str, target: Path, materials: Materials) -> None:
    """Under another name first, so that a file under its own name is whole."""
    partial = target.with_name(f".{target.name}.part")
    await asyncio.to_thread(partial.unlink, missing_ok=True)
    try:
        await materials.fetch(url, partial)
        await asyncio.to_thread(partial.replace, target)
    except (LookupError, OSError) as error:
        raise NotReady("ErrImagePull", f"{url}: {error}", RETRY_SECONDS) from error
