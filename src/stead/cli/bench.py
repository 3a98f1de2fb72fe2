"""`stead bench list|NAME`: measures this machine's Stead against what it competes with. The benchmarks lie apart.

`cli/beside` finds them. Those that need guests run inside namespaces of their own, with a libvirtd of their own: this
command then starts itself again inside (`--inside`), and everything ends with it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import msgspec

from stead.cli import output as show
from stead.cli.beside import load as load_beside
from stead.cli.session import Options

_HEADERS = ["FIGURE", "OURS", "RIVAL", "RATIO", "UNIT", "TARGET", "", ""]


def load(module: str = "") -> ModuleType:
    """The package of benchmarks, or one of its modules. Raises click.ClickException where it is not installed."""
    return load_beside("benchmarks", module)


class _Asked(msgspec.Struct, frozen=True):
    """The command line, as it is passed on inside."""

    name: str
    n: int
    quick: bool
    json: bool
    output: Path
    image: Path | None
    kubeconfig: Path | None
    libvirt_uri: str
    pool: Path | None


@click.command(short_help="Measure against raw libvirt, QEMU, qemu-img, fsync.")
@click.argument("name", default="list")
@click.option("--n", default=0, help="Rounds; each benchmark has a number of its own.")
@click.option("--quick", is_flag=True, help="Few rounds: a first look, not a result.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--output", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path("bench-results"),
              show_default=True, help="Where raw samples are kept.")  # fmt: skip
@click.option("--image", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A bootable qcow2 disk for "
              "guests; else a tiny one is made from the distribution's packages.")  # fmt: skip
@click.option("--kubeconfig", type=click.Path(path_type=Path, dir_okay=False),
              help="Measure the Stead of this kubeconfig, on this host, instead of one made for it.")  # fmt: skip
@click.option("--libvirt-uri", default="qemu:///system", show_default=True, help="Its libvirt, with --kubeconfig.")
@click.option("--pool", type=click.Path(path_type=Path), help="The directory of its default pool, with --kubeconfig.")
@click.option("--inside", is_flag=True, hidden=True)
def bench(as_json: bool, folder: Path, inside: bool, **given: Any) -> None:
    """Measure Stead and what it competes with, in turns, on this machine. `stead bench list` names all benchmarks."""
    package = load()
    name = given["name"]
    if name == "list":
        _list(package, as_json)
        return
    if name not in package.BENCHMARKS:
        raise click.ClickException(f"no benchmark {name!r}; there are: {', '.join(package.BENCHMARKS)}")
    options = click.get_current_context().find_object(Options)
    kubeconfig = given.pop("kubeconfig") or (options.kubeconfig if options else None)
    asked = _Asked(json=as_json, output=folder.resolve(), kubeconfig=kubeconfig, **given)
    if package.BENCHMARKS[name].isolated and not kubeconfig:
        if os.geteuid() != 0:
            raise click.ClickException(
                f"stead bench {name} needs root: it makes namespaces and starts a libvirtd of its own"
            )
        if not inside:
            _prepare(package, asked)
            raise SystemExit(load("isolation").enter(_command(asked)))
        load("isolation").become_init()
    _measure(package, asked)


def _list(package: ModuleType, as_json: bool) -> None:
    entries = package.BENCHMARKS.items()
    if as_json:
        found = [{"name": name, "summary": entry.summary, "root": entry.isolated} for name, entry in entries]
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    rows = [[name, "yes" if entry.isolated else "no", entry.summary] for name, entry in entries]
    click.echo(show.table(["NAME", "ROOT", "MEASURES"], rows))


def _prepare(package: ModuleType, asked: _Asked) -> None:
    """What needs the distribution's archive, which cannot be reached from inside."""
    if package.BENCHMARKS[asked.name].boots:
        try:
            asyncio.run(load("guest").image(asked.image))
        except OSError as error:
            raise click.ClickException(f"the guest could not be made: {error}") from error


def _command(asked: _Asked) -> list[str]:
    """This command again, for inside."""
    words = [sys.executable, "-P", "-m", "stead.cli.main", "bench", asked.name, "--inside", "--n", str(asked.n)]
    words += ["--output", str(asked.output)]
    words += ["--image", str(asked.image.resolve())] if asked.image else []
    return words + ["--quick"] * asked.quick + ["--json"] * asked.json


def _measure(package: ModuleType, asked: _Asked) -> None:
    figures = load("figures")
    request = figures.Request(
        n=asked.n, quick=asked.quick, output=asked.output, image=asked.image.resolve() if asked.image else None,
        kubeconfig=asked.kubeconfig, libvirt_uri=asked.libvirt_uri, pool=asked.pool,
    )  # fmt: skip
    try:
        result = asyncio.run(load(package.BENCHMARKS[asked.name].module).run(request))
    except (OSError, TimeoutError) as error:
        raise click.ClickException(f"stead bench {asked.name}: {error}") from error
    result.write(asked.output)
    if asked.json:
        click.echo(msgspec.json.encode(result.as_json()).decode())
        return
    click.echo(f"{result.name}, n = {result.n}, on {result.machine}")
    click.echo(show.table(_HEADERS, result.as_rows()))
    click.echo(f"raw samples: {result.raw}")
