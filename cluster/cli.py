"""The command line, `unlearn ...`. User errors end in one line, without a traceback."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster import deletion_commands, logs, machine_commands, request_commands, upkeep
from cluster.cli_options import (
    Address,
    AsJson,
    ConfigFile,
    Out,
    Overrides,
    RunFolder,
    Workers,
    load_config,
    open_directory,
    print_result,
    run_folder,
)
from cluster.errors import ClusterError
from pipeline.errors import ConfigError, DataError, PipelineError, ReleaseError, RequestError
from pipeline.heap import keep_freed_memory
from storage.errors import StorageError
from storage.masking import masked

if TYPE_CHECKING:
    from pipeline.run.directory import RunDirectory

app = typer.Typer(
    name="unlearn",
    help="Certified machine unlearning: train, precompute approximators, delete units in milliseconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# typer brings a click of its own, or takes the one installed; what it exports derives from both.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

# What the shell reports of a program that Ctrl-C ended.
INTERRUPTED = 130
# Of an error, in characters.
LONGEST_LINE = 2_000


def _show_version(wanted: bool) -> None:
    if wanted:
        from pipeline import __version__

        typer.echo(f"unlearn {__version__}")
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Write events as JSON lines on standard error.")
    ] = False,
) -> None:
    """Handle the options before a command."""
    del version  # its callback has answered
    if log_json:
        logs.ask_for_json()


def main() -> None:
    """Run the command line and turn errors that we raise on purpose into one line each."""
    keep_freed_memory()
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except UsageError as error:
        sys.exit(_fail_usage(error))
    except typer.Abort:
        sys.exit(_fail(ConfigError("nothing was done, since it was not confirmed"), 1))
    except (ConfigError, DataError, RequestError) as error:
        sys.exit(_fail(error, 2))
    except (PipelineError, StorageError, ReleaseError, ClusterError) as error:
        sys.exit(_fail(error, 1))
    except OSError as error:
        # A folder where a file should be, no permission, a full disk: the system's message.
        sys.exit(_fail(error, 1))
    except KeyboardInterrupt:
        typer.echo("interrupted; repeat the command to continue", err=True)
        sys.exit(INTERRUPTED)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            typer.echo("interrupted; repeat the command to continue", err=True)
        raise


def _fail_usage(error: Any) -> int:
    """Report a wrong command line in one line; show the help if it is empty."""
    message = error.format_message()
    if message.startswith("Usage:"):
        typer.echo(message, err=True)
        return 2
    context = error.ctx
    asked = f"; see `{context.command_path} --help`" if context is not None else ""
    return _fail(ConfigError(f"{message.rstrip('.')}{asked}"), 2)


def _fail(error: Exception, code: int) -> int:
    message = " ".join(masked(error).split())
    if len(message) > LONGEST_LINE:
        # It quotes what was given: a name may be a whole file.
        message = f"{message[:LONGEST_LINE]}... ({len(message):,} characters)"
    typer.echo(f"error: {message}", err=True)
    return code


@app.command()
def run(
    config: ConfigFile,
    out: Out = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train, precompute, run trial deletions, report. Finished stages are kept."""
    from cluster.console import Reporter, print_table
    from cluster.whole_run import run_all  # imports torch, which help and errors need not wait for

    settings = load_config(config, set_)
    report = run_all(settings, run_folder(out, settings), Reporter())
    if as_json:
        typer.echo(json.dumps(report))
        return
    from pipeline.evaluation.report import deletion_table

    print_table(deletion_table(report))


@app.command()
def train(
    config: ConfigFile, out: Out = None, set_: Overrides = None, as_json: AsJson = False
) -> None:
    """Train and record the trajectory."""
    from cluster.console import Reporter
    from cluster.whole_run import train as record

    settings = load_config(config, set_)
    made, problem = record(settings, run_folder(out, settings), Reporter())
    trajectory = made.trajectory()
    print_result(
        {
            "run": str(made.path),
            "num_steps": trajectory.num_steps,
            "num_units": len(problem.data.units),
            "num_parameters": problem.num_parameters,
            "digest": trajectory.digest,
        },
        as_json,
    )


@app.command()
def precompute(
    folder: RunFolder, workers: Workers = None, address: Address = None, as_json: AsJson = False
) -> None:
    """Compute and store all approximators. Repeat to continue after an interruption."""
    from cluster.console import Reporter
    from cluster.precompute_stage import precompute as compute

    opened = _on_cluster(folder, workers, address)
    opened.trajectory()
    compute(opened, opened.problem(), Reporter())
    from cluster.inspection import status_of

    print_result(status_of(opened), as_json)


def _on_cluster(folder: Path, workers: int | None, address: str | None) -> "RunDirectory":
    """Open a run whose configuration says where to compute, unless the command does."""
    opened = open_directory(folder)
    changes: dict[str, Any] = {"num_workers": workers, "address": address}
    values = opened.config.model_dump(mode="json")
    values["cluster"] |= {key: value for key, value in changes.items() if value is not None}
    return replace(opened, config=type(opened.config).from_values(values, "the command line"))


@app.command()
def repair(
    folder: RunFolder,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs over the remaining data.")],
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the first step; default: training's.")
    ] = None,
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune on the remaining data. Updates all approximators for later deletions."""
    from cluster.console import Reporter
    from cluster.precompute_stage import repair as repair_with_workers

    opened = _on_cluster(folder, workers, address)
    print_result(repair_with_workers(opened, epochs, learning_rate, Reporter()), as_json)


@app.command()
def retrain(
    folder: RunFolder,
    final: Annotated[
        bool,
        typer.Option(
            "--final/--recompute", help="Give the approximators up, or compute them anew (default)."
        ),
    ] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Give up a retraining that is under way.")
    ] = False,
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Train again without the deleted. Includes waiting requests; repeat to continue."""
    from cluster.console import Reporter
    from cluster.precompute_stage import retrain as retrain_with_workers
    from pipeline.approximators.retrain import abandon_retraining

    opened = _on_cluster(folder, workers, address)
    if abandon:
        print_result({"run": str(opened.path), "abandoned": abandon_retraining(opened)}, as_json)
        return
    print_result(retrain_with_workers(opened, Reporter(), final=final), as_json)


@app.command()
def status(folder: RunFolder, as_json: AsJson = False) -> None:
    """Show finished stages, releases and waiting requests."""
    from cluster.inspection import status_of
    from cluster.sentences import status_sentences

    found = status_of(open_directory(folder))
    if not as_json:
        for sentence in status_sentences(found):
            typer.echo(sentence)
    print_result(found, as_json)


@app.command()
def verify(
    folder: RunFolder,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Change nothing, not even after a crash.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check all stored files and certificates. Exits with 1 if anything is damaged."""
    from cluster.inspection import verify_run

    found = verify_run(open_directory(folder), read_only)
    if as_json:
        told = {"damage": found.damage, "notes": found.notes, "verdict": found.verdict}
        typer.echo(json.dumps(told))
    else:
        for note in found.notes:
            typer.echo(f"note: {note}")
        for item in found.damage:
            typer.echo(f"{item['where']}: {item['reason']}")
        if found.verdict:
            typer.echo(f"measured error: {found.verdict}")
        typer.echo(f"{len(found.damage)} damaged" if found.damage else "no damage found")
    if found.damage:
        raise typer.Exit(1)


@app.command()
def report(folder: RunFolder, as_json: AsJson = False) -> None:
    """Redraw report.html from report.json and show the table."""
    from cluster.console import print_table
    from cluster.inspection import redraw_report

    result = redraw_report(open_directory(folder))
    if as_json:
        typer.echo(json.dumps(result))
        return
    from pipeline.evaluation.report import deletion_table

    print_table(deletion_table(result))


@app.command()
def measure(folder: RunFolder, as_json: AsJson = False) -> None:
    """Compare trial deletions with retraining. Deletions are refused by the error that it finds."""
    from cluster.console import Reporter
    from cluster.whole_run import measure as measure_error

    print_result(measure_error(open_directory(folder), Reporter()), as_json)


@app.command()
def export(
    folder: RunFolder,
    unit: Annotated[str, typer.Option("--unit", help="Name of the unit.")],
    out: Annotated[Path, typer.Option("--out", help="An .npy file to write.")],
) -> None:
    """Write one unit's approximator as a NumPy file."""
    from cluster.inspection import export_row

    typer.echo(str(export_row(open_directory(folder), unit, out)))


app.command()(deletion_commands.delete)
app.command()(deletion_commands.release)
app.command()(request_commands.requests)
app.command()(request_commands.cancel)
app.command()(request_commands.receipt)
app.command()(request_commands.verify_receipt)
app.command()(request_commands.public_key)
app.command()(deletion_commands.configure)
app.command()(deletion_commands.units)
app.command()(machine_commands.plan)
app.command()(machine_commands.pilot)
app.command()(machine_commands.bench)
app.command()(machine_commands.submit)
app.command()(machine_commands.audit)
app.command()(machine_commands.sweep)
app.command()(upkeep.backup)
app.command()(upkeep.restore)
app.command()(upkeep.prune)
app.command()(upkeep.upgrade)
app.add_typer(upkeep.data, name="data")


if __name__ == "__main__":
    main()
