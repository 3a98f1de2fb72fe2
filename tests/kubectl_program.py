"""One kubectl (or helm) against one server, in a folder of its own: its home, its manifests, its caches."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec


class Ran(msgspec.Struct):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


class Program(msgspec.Struct):
    """A client program and the kubeconfig that it uses."""

    path: str
    kubeconfig: Path
    folder: Path

    @property
    def version(self) -> str:
        """The program's file name, fit for the name of an object."""
        return Path(self.path).name.replace(".", "-")

    @property
    def minor(self) -> int:
        """The minor version in the file name; that of a program without one is taken for new."""
        return int(Path(self.path).name.split(".")[-1]) if "." in Path(self.path).name else 99

    async def run(self, *words: str, stdin: bytes = b"", environment: dict[str, str] | None = None) -> Ran:
        """Run it to its end, 60 s at most."""
        everything = {
            "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.folder), "PATH": os.environ["PATH"],
            "TMPDIR": str(self.folder), **(environment or {}),
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            self.path, *words, env=everything, cwd=self.folder, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                out, err = await process.communicate(stdin)
        finally:
            if process.returncode is None:
                process.kill()
        return Ran(process.returncode or 0, out.decode(), err.decode())

    async def ok(self, line: str, **environment: str) -> str:
        """The output of a command that must succeed."""
        ran = await self.run(*line.split(), environment=environment)
        assert ran.code == 0, f"{line}: {ran.out}{ran.err}"
        return ran.out


def kubeconfig_in(kubeconfig: Path, namespace: str, target: Path) -> Path:
    """A copy of a test server's kubeconfig whose context names a namespace."""
    target.write_text(kubeconfig.read_text().replace("namespace: default", f"namespace: {namespace}"))
    return target
