"""`stead completion bash|zsh|fish`: the script that makes a shell complete our commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell: source <(stead completion bash)"""
    found = get_completion_class(shell)
    if found is None:
        raise click.ClickException(f"no completion for {shell}")
    root = ctx.find_root()
    # click's bash class asks the installed bash for its version when it makes the script; the template needs no shell.
    maker = found(root.command, {}, "stead", "_STEAD_COMPLETE")
    click.echo(maker.source_template % maker.source_vars())
