"""Arguments and options that several commands share."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.run.directory import RunDirectory

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, see configs/.")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory; default runs/<name>.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Number of Ray actors, where Ray is used.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="none, local, auto, or host:port of a Ray cluster's head."),
]


def load_config(path: Path, overrides: list[str] | None) -> "RunConfig":
    """Return the configuration of a command; what it imports, `--help` need not wait for."""
    from pipeline.config import RunConfig

    return RunConfig.load(path, overrides or [])


def open_directory(folder: Path) -> "RunDirectory":
    """Return the run of a command."""
    from pipeline.run.directory import RunDirectory

    return RunDirectory.open(folder)


def run_folder(out: Path | None, config: "RunConfig") -> Path:
    """Return where a run lies: where it was asked for, or a folder of its name.

    Raises:
        ConfigError: If the name makes no folder name.
    """
    if out is not None:
        return out
    if not config.name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"name {config.name!r} makes no folder name; give --out")
    return Path("runs") / config.name


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """Print a command's result: one JSON object, or a line for each key."""
    if as_json:
        typer.echo(json.dumps(result))
    else:
        for key, value in result.items():
            typer.echo(f"{key}: {value}")


def write_outside(run: Path, out: Path, content: bytes) -> None:
    """Write a file that names people or requests, mode 0600, anywhere but into the run.

    Raises:
        ConfigError: If it would lie in the run, or its folder is not there.
    """
    from storage.durable_write import write_atomically

    if out.resolve().is_relative_to(run.resolve()):
        raise ConfigError(
            f"{out} lies in the run, where the names in it would outlive a deletion; choose a file "
            "outside"
        )
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it first")
    write_atomically(out.absolute(), content, mode=0o600)
