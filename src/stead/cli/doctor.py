"""`stead doctor`: what is wrong with this host and how to mend it. Exit code 0 all well, 1 warnings, 2 failures."""

from __future__ import annotations

import sys

import click

from stead.cli import output
from stead.cli.session import Options

_MARKS = {"pass": ("PASS", "green"), "warn": ("WARN", "yellow"), "fail": ("FAIL", "red")}


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Only what is not well.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table")
def doctor(quiet: bool, form: str) -> None:
    """Check this host: virtualisation, programs, network, disks, Stead itself. Changes nothing."""
    from stead.doctor import findings

    options = click.get_current_context().find_object(Options) or Options(None, "", "", None)
    found = []
    for finding in findings(options.settings()):
        found.append(finding)
        if form != "table" or (quiet and finding.level == "pass"):
            continue
        word, colour = _MARKS[finding.level]
        mark = click.style(word, fg=colour) if output.is_terminal() else word
        click.echo(f"{mark}  {finding.title}: {finding.evidence}")
        if finding.mend and finding.level != "pass":
            click.echo(f"      {finding.mend}")
        sys.stdout.flush()
    levels = [finding.level for finding in found]
    if form == "table":
        click.echo(f"{levels.count('pass')} passed, {levels.count('warn')} warnings, {levels.count('fail')} failed")
    else:
        keys = ("id", "title", "level", "evidence", "mend")
        click.echo(output.dump([{key: getattr(item, key) for key in keys} for item in found], form))
    raise SystemExit(2 if "fail" in levels else 1 if "warn" in levels else 0)
