"""Builds and runs the oracle: Debian's golang packages, off-line, once into the cache of tests.

`answers(cases)` gives for each case (a schema and steps) the outcomes of its steps. Raises FileNotFoundError where the
packages are not installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARY = Path("/usr/share/gocode/src/sigs.k8s.io/structured-merge-diff")


def program() -> Path:
    """The built oracle."""
    if not LIBRARY.is_dir():
        raise FileNotFoundError(f"{LIBRARY}: install golang-go and golang-k8s-sigs-structured-merge-diff-dev")
    cache = Path(os.environ.get("STEAD_TEST_CACHE", "/var/cache/stead-tests"))
    if not os.access(cache, os.W_OK):
        cache = Path(tempfile.gettempdir())
    source = (HERE / "main.go").read_bytes()
    built = cache / f"oracle-smd-{hashlib.sha256(source).hexdigest()[:12]}"
    if built.exists():
        return built
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        root = Path(temporary)
        # Debian installs the module without the /v4 by which it imports itself.
        link = root / "src" / "sigs.k8s.io" / "structured-merge-diff" / "v4"
        link.parent.mkdir(parents=True)
        link.symlink_to(LIBRARY)
        environment = {
            **os.environ, "GOPATH": f"{root}:/usr/share/gocode", "GO111MODULE": "off", "GOFLAGS": "",
            "GOCACHE": str(root / "cache"), "GOPROXY": "off",
        }  # fmt: skip
        command = ["go", "build", "-o", str(root / "oracle"), str(HERE / "main.go")]
        subprocess.run(command, env=environment, check=True, timeout=240)
        os.replace(root / "oracle", built)
    return built


def answers(cases: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What the original makes of the cases."""
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run([program()], input=lines, capture_output=True, text=True, check=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()]
