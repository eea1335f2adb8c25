"""The commands that keep a run and its data: backup, restore, prune, data fetch."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli_options import RunFolder, open_directory


def backup(
    folder: RunFolder, to: Annotated[Path, typer.Option("--to", help="A new folder.")]
) -> None:
    """Copy the ledger, and the sum it vouches for, to a new folder."""
    from cluster.upkeep import back_up

    back_up(open_directory(folder), to)
    typer.echo(str(to))


def restore(
    folder: RunFolder, source: Annotated[Path, typer.Option("--from", help="A backup.")]
) -> None:
    """Put a backup of the ledger in place and erase again whoever it knows as deleted."""
    from cluster.upkeep import restore as put_back

    typer.echo(f"units erased again: {put_back(open_directory(folder), source)}")


def prune(
    folder: RunFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
) -> None:
    """Remove what the operator still holds of those deleted; ends deletions, repair and audit."""
    from cluster.upkeep import prune as remove

    opened = open_directory(folder)
    if not yes:
        typer.confirm(
            f"After this nobody else can be deleted from {opened.path}. Continue?", abort=True
        )
    remove(opened)
    typer.echo("pruned")


data = typer.Typer(help="Data sets.", no_args_is_help=True)


@data.command()
def fetch(
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist, cifar10, celeba, ...")],
    folder: Annotated[Path | None, typer.Option("--to", help="Default data/NAME.")] = None,
) -> None:
    """Download a data set, or say exactly which files to put where."""
    from pipeline.data.fetch import fetch as download

    typer.echo(str(download(name, folder)))


@data.callback()
def sources() -> None:
    """Make `data` a group of commands, however many it has."""
