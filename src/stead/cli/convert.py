"""`stead convert`: old manifests rewritten, without a server; what was changed is said on stderr.

The objects go to stdout in the order of the files, as YAML documents or as JSON. Comments are lost, as in every tool
that reads YAML as data. The rules stand in `kinds.old_manifests`.
"""

from __future__ import annotations

import sys

import click

from stead.cli import output
from stead.cli.resources import read_manifests
from stead.client.contract import Object
from stead.kinds.old_manifests import convert as converted


@click.command()
@click.option("-f", "--filename", "files", multiple=True, required=True, help="File with manifests; - reads stdin.")
@click.option("-o", "--output", "form", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
def convert(files: tuple[str, ...], form: str) -> None:
    """Rewrite old manifests to the versions and fields of today, and say what was changed."""
    objects: list[Object] = []
    for source in files:
        for item in read_manifests(source):
            made = converted(item)
            metadata = item["metadata"]
            name = f"{item['kind']}/{metadata.get('name') or metadata.get('generateName', '')}"
            for change in made.changes:
                click.echo(f"{name}: {change}", err=True)
            for left in made.left:
                click.echo(f"{name}: left as it is: {left}", err=True)
            objects.append(made.obj)
    if form == "json":
        whole = objects[0] if len(objects) == 1 else {"apiVersion": "v1", "kind": "List", "items": objects}
        click.echo(output.dump(whole, "json").rstrip("\n"))
    else:
        sys.stdout.write("---\n".join(output.dump(obj, "yaml").rstrip("\n") + "\n" for obj in objects))
