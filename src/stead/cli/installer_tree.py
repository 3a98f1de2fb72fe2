"""Finds kernel and initrd of an installer tree by asking its server. For `stead create --location`.

A handful of requests, each with a deadline, all together within `TOTAL_SECONDS`; bodies are not read but .treeinfo's. A
tree that cannot be used raises `Refusal` with one sentence that holds the URL. Layouts are in `virt_install.trees`.
"""

from __future__ import annotations

import asyncio
import ssl

import aiohttp

from stead.cli.virt_install import trees
from stead.cli.virt_install.plan import Tree
from stead.cli.virt_install.suboptions import Given, Refusal

CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 20.0
TOTAL_SECONDS = 60.0
_TREEINFO_BYTES = 65536
_ABSENT = (403, 404, 410)


async def find(given: Given) -> Tree:
    """The installer below the URL of --location. Raises Refusal."""
    url = trees.base_url(given)
    try:
        async with asyncio.timeout(TOTAL_SECONDS):
            return await _find(url, given)
    except aiohttp.ClientConnectorDNSError:
        raise Refusal(f"--location {url}/: the name of the server cannot be resolved") from None
    except aiohttp.ClientConnectorError as error:
        why = error.strerror or (error.os_error.strerror if error.os_error else "") or "no connection"
        if isinstance(error.os_error, ssl.SSLError):
            why = "the server's certificate is not trusted"
        raise Refusal(f"--location {url}/: the server does not answer ({why.lower()})") from None
    except TimeoutError:
        raise Refusal(f"--location {url}/: the server did not answer in time") from None
    except (aiohttp.ClientError, ValueError, OSError) as error:
        raise Refusal(f"--location {url}/: {str(error)[:160] or type(error).__name__}") from None


async def _find(url: str, given: Given) -> Tree:
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        named = trees.named(given)
        if named:
            await _must_exist(session, url, named)
            return Tree(url, *named, system=trees.system_of_url(url))
        for name in trees.TREEINFO:
            text = await _text(session, f"{url}/{name}")
            found = trees.from_treeinfo(url, text) if text else None
            if found:
                await _must_exist(session, url, (found.kernel, found.initrd))
                return found
        for (kernel, initrd), family in trees.LAYOUTS:
            if await _exists(session, f"{url}/{kernel}") and await _exists(session, f"{url}/{initrd}"):
                return Tree(url, kernel, initrd, family=family, system=trees.system_of_url(url))
    raise Refusal(
        f"--location {url}/: no installer is there (no .treeinfo and none of {len(trees.LAYOUTS)} known places of a "
        "kernel and initrd); name them with kernel= and initrd="
    )


async def _must_exist(session: aiohttp.ClientSession, url: str, files: tuple[str, str]) -> None:
    for file in files:
        if not await _exists(session, f"{url}/{file}"):
            raise Refusal(f"--location {url}/{file}: the server has no such file")


async def _exists(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether a GET would be answered with the file; the body is not read."""
    async with session.get(url, allow_redirects=True, max_redirects=5) as response:
        _check(url, response)
        return response.status == 200


async def _text(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url, allow_redirects=True, max_redirects=5) as response:
        _check(url, response)
        if response.status != 200:
            return ""
        data = await response.content.read(_TREEINFO_BYTES)
        return data.decode("utf-8", "replace")


def _check(url: str, response: aiohttp.ClientResponse) -> None:
    """A server that answers neither 200 nor "not there" is in trouble: say so at once."""
    if response.status != 200 and response.status not in _ABSENT:
        raise Refusal(f"--location {url}: the server answers {response.status} {response.reason or ''}".rstrip())
