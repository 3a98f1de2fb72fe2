"""Bytes that nobody would write, led by coverage, against what reads a client's bytes: no crash, no hang, no waste.

Atheris (libFuzzer for Python, of the development packages) fuzzes each target of `fuzz_targets` in a process of its
own, N runs each. Its control is a target with a mistake behind two particular bytes: it must be found.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import stead

from .report import Outcome, Request

TARGETS = ("manifest", "protobuf", "patch", "selector", "rbac", "cel")
#: what one input may take, and a process: seconds, MiB, bytes
INPUT_SECONDS, MEMORY_MIB, INPUT_BYTES = 30, 2048, 2048
#: runs within which the control is found, whatever N
CONTROL_RUNS = 50_000


async def run(request: Request) -> Outcome:
    """Fuzz all targets, then the control."""
    begun = time.monotonic()
    outcome = Outcome(name="fuzz", n=request.n, seed=request.seed, facts={})
    if importlib.util.find_spec("atheris") is None:
        outcome.failures.append("atheris is not installed: it is among the development packages (pip install atheris)")
        return outcome
    for target in TARGETS:
        found, told = await _fuzz(target, request.n, request.seed)
        outcome.facts[target] = told
        if found:
            outcome.failures.append(f"{target}: {found}")
    found, told = await _fuzz("control", max(request.n, CONTROL_RUNS), request.seed)
    outcome.facts["control, a mistake on purpose"] = "found" if "on purpose" in found else f"not found ({told})"
    if "on purpose" not in found:
        outcome.failures.append("the control's mistake was not found: this run proves nothing")
    outcome.seconds = time.monotonic() - begun
    return outcome


async def _fuzz(target: str, runs: int, seed: int) -> tuple[str, str]:
    """(the finding or "", what was done) of one target."""
    program = Path(__file__).with_name("fuzz_targets.py")
    with tempfile.TemporaryDirectory(prefix="stead-fuzz-") as folder:
        (Path(folder) / "corpus").mkdir()
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(program), target, f"{folder}/corpus", f"-runs={runs}", f"-seed={seed}",
            f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={INPUT_BYTES}",
            f"-artifact_prefix={folder}/", "-verbosity=1", "-print_final_stats=1",
            env=_environment(), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output = (await process.communicate())[0].decode(errors="replace")
        culprits = [path.read_bytes() for path in Path(folder).iterdir() if path.is_file()]
    covered = re.findall(r"ft: (\d+)", output)
    told = f"{runs} inputs, {covered[-1] if covered else '0'} features of the code reached"
    if process.returncode == 0:
        return "", told
    culprit = culprits[0][:400] if culprits else b""
    return f"{output[-3000:].strip()}\ninput: {culprit!r}", told


def _environment() -> dict[str, str]:
    """That of this process, with the same Stead and the same packages."""
    ours = str(Path(stead.__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([ours, *filter(None, sys.path)])}
