"""`stead prove list|NAME`: does the harm that a promise speaks of, and looks whether the promise holds.

The proofs lie apart, as the benchmarks do (`cli/beside`). Each run leaves a dated page; the exit code says whether all
held, the control included. Proofs start planes of their own, below a temporary folder, and touch no running Stead.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import ModuleType

import click
import msgspec

from stead.cli import output as show
from stead.cli.beside import load as load_beside


def load(module: str = "") -> ModuleType:
    """The package of proofs, or one of its modules. Raises click.ClickException where it is not installed."""
    load_beside("benchmarks")
    return load_beside("proofs", module)


@click.command(short_help="Break things on purpose; see that what is promised holds.")
@click.argument("name", default="list")
@click.option("--n", default=0, help="Repetitions; each proof has a number that counts as a full run.")
@click.option("--seed", default=1, show_default=True, help="From which everything random is drawn.")
@click.option("--output", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path("docs/proofs"),
              show_default=True, help="Where the dated page is written.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prove(name: str, n: int, seed: int, folder: Path, as_json: bool) -> None:
    """Break things on purpose, on a plane of the proof's own. `stead prove list` names all proofs."""
    proofs = load().PROOFS
    if name == "list":
        _list(proofs, as_json)
        return
    if name not in proofs:
        raise click.ClickException(f"no proof {name!r}; there are: {', '.join(proofs)}")
    if n < 0:
        raise click.BadParameter("a number of repetitions, 0 or more", param_hint="--n")
    request = load("report").Request(n=n or proofs[name].n, seed=seed)
    try:
        outcome = asyncio.run(load(proofs[name].module).run(request))
        page = outcome.write(folder)
    except (OSError, TimeoutError) as error:
        raise click.ClickException(f"stead prove {name}: {error}") from error
    if as_json:
        found = {"passed": outcome.passed, **msgspec.to_builtins(outcome)}
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        click.echo(page.read_text(encoding="utf-8"), nl=False)
        click.echo(f"kept in {page}", err=True)
    raise SystemExit(0 if outcome.passed else 1)


def _list(proofs: dict[str, object], as_json: bool) -> None:
    entries = msgspec.to_builtins(proofs)
    if as_json:
        found = [{"name": name, "summary": entry["summary"], "n": entry["n"]} for name, entry in entries.items()]
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    rows = [[name, str(entry["n"]), entry["summary"]] for name, entry in entries.items()]
    click.echo(show.table(["NAME", "FULL RUN", "PROVES"], rows))
