"""What commands print: tables for people, JSON, YAML or names for programs, and a line that shows progress.

Colour and redrawn lines only on a terminal (`NO_COLOR` is honoured). Errors are one sentence on standard error.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import click
import msgspec
import yaml

Object = dict[str, Any]

FORMATS = click.Choice(["table", "wide", "json", "yaml", "name"])

#: Colours of a machine's status; anything else stays plain.
_COLOURS = {
    "Running": "green",
    "Ready": "green",
    "Succeeded": "green",
    "Bound": "green",
    "Starting": "yellow",
    "Provisioning": "yellow",
    "Stopping": "yellow",
    "Paused": "yellow",
    "Stopped": "bright_black",
    "CrashLoopBackOff": "red",
    "ErrorUnschedulable": "red",
    "ErrorPvcNotFound": "red",
    "DataVolumeError": "red",
    "ErrImagePull": "red",
    "ImagePullBackOff": "red",
    "Failed": "red",
}


def is_terminal() -> bool:
    """Whether standard output shows colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned as kubectl does: three spaces between, empty cells as `<none>`."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(header), *(len(row[at]) for row in cells)]) for at, header in enumerate(headers)]
    lines = ["   ".join(header.ljust(width) for header, width in zip(headers, widths, strict=True)).rstrip()]
    for row in cells:
        padded = [_paint(value, value.ljust(width)) for value, width in zip(row, widths, strict=True)]
        lines.append("   ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "<none>"
    if isinstance(value, bool):
        return str(value)
    return " ".join(str(value).split())


def _paint(value: str, padded: str) -> str:
    colour = _COLOURS.get(value)
    return click.style(padded, fg=colour) if colour and is_terminal() else padded


def age(timestamp: str | None, now: datetime.datetime | None = None) -> str:
    """`5m`, `3h`, `2d` since an RFC 3339 time, as kubectl prints ages."""
    if not timestamp:
        return ""
    since = (now or datetime.datetime.now(datetime.UTC)) - datetime.datetime.fromisoformat(timestamp)
    seconds = max(0, int(since.total_seconds()))
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 7200:
        return f"{seconds // 60}m"
    if seconds < 172_800:
        return f"{seconds // 3600}h"
    return f"{seconds // 86_400}d"


def size(count: float) -> str:
    """Bytes with a binary unit: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" or count == int(count) else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def dump(value: Any, form: str) -> str:
    """A value as JSON or YAML text without a final line break."""
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text.rstrip("\n")


class _Dumper(yaml.SafeDumper):
    """YAML that shows texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def print_objects(objects: Sequence[Object], form: str, *, single: bool = False) -> None:
    """Objects for programs: `json`, `yaml` or `name` (kind/name); a list unless `single`."""
    if form == "name":
        for item in objects:
            click.echo(f"{item.get('kind', '').lower()}/{item['metadata']['name']}")
        return
    shown = [_ordered(item) for item in objects]
    value: Any = shown[0] if single else {"apiVersion": "v1", "kind": "List", "items": shown}
    click.echo(dump(value, form))


def _ordered(item: Object) -> Object:
    """An object as kubectl prints it: keys sorted, without the bookkeeping of field managers."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    found: Object = _sorted({**item, "metadata": metadata})
    return found


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


class Progress:
    """One line that is redrawn on a terminal; elsewhere a line whenever the text changes, of work with a known share
    one at most every `PLAIN_SECONDS`. Use as a context manager.
    """

    PLAIN_SECONDS = 10.0

    def __init__(self, title: str) -> None:
        self._title = title
        self._began = time.monotonic()
        self._last = ""
        self._said = float("-inf")
        self._redraws = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._redraws and self._last:
            sys.stderr.write("\n")

    def show(self, text: str, fraction: float | None = None) -> None:
        """Say what goes on; `fraction` from 0 to 1 draws a bar."""
        bar = ""
        if fraction is not None:
            filled = int(min(max(fraction, 0.0), 1.0) * 20)
            bar = f"[{'#' * filled}{'.' * (20 - filled)}] {fraction * 100:3.0f}% "
        if self._redraws:
            elapsed = int(time.monotonic() - self._began)
            sys.stderr.write(f"\r\x1b[2K{self._title}  {bar}{text}  {elapsed // 60}:{elapsed % 60:02}")
            sys.stderr.flush()
            self._last = text
        elif text != self._last and (fraction is None or time.monotonic() - self._said >= self.PLAIN_SECONDS):
            self._said = time.monotonic()
            sys.stderr.write(f"{self._title}: {text}\n")
            sys.stderr.flush()
            self._last = text
