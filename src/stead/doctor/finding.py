"""One finding of the doctor, and the ways of looking that checks share. Reads files and runs programs, no more."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """`level` is pass, warn or fail; `evidence` what was read; `mend` one line to type or do ("" when all is well)."""

    id: str
    title: str
    level: str
    evidence: str
    mend: str = ""


def read(path: str) -> str:
    """A file's text without surrounding blanks; "" when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def output_of(*command: str, timeout: float = 10) -> tuple[int, str]:
    """Exit code and output of a program; (127, reason) when it is missing or hangs."""
    if not shutil.which(command[0]):
        return 127, f"{command[0]} is not installed"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return 127, f"{command[0]} did not end within {timeout:.0f} s"
    return done.returncode, (done.stdout + done.stderr).strip()


def first_line(text: str) -> str:
    """The first line of a text, or ""."""
    return text.splitlines()[0] if text else ""
