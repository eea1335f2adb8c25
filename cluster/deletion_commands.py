"""The commands delete, release, configure and units."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli_options import AsJson, RunFolder, open_directory, print_result, write_outside
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.deletion.requests import DeletionRequest, Receipt
    from pipeline.run.directory import RunDirectory


def delete(
    folder: RunFolder,
    ids: Annotated[str | None, typer.Option("--ids", help="Units, separated by commas.")] = None,
    id_: Annotated[
        list[str] | None,
        typer.Option("--id", help="One unit, also a name with commas; repeatable."),
    ] = None,
    requests: Annotated[
        Path | None, typer.Option("--requests", help="Parquet, CSV or text file of unit names.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of the file that holds unit names.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Your id; repeating a request is safe.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Add noise for this epsilon; needs --delta.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Add noise for this delta.")] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Ignore unknown and already deleted units.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, change nothing.")] = False,
    queue: Annotated[
        bool,
        typer.Option("--queue", help="Only record the request; `unlearn release` executes it."),
    ] = False,
    accept_error: Annotated[
        float | None,
        typer.Option(help="Release although the measured error is above the limit, up to this."),
    ] = None,
    fallback: Annotated[
        str | None,
        typer.Option(
            help="retrain: where the error is above the limit, retrain without the units."
        ),
    ] = None,
    due: Annotated[
        str | None,
        typer.Option(help="Carry out by this day, as in 2026-12-31; `requests` shows it."),
    ] = None,
    readers: Annotated[int, typer.Option(min=1, help="Share the sum among readers on Ray.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Release a model without some units. Erases their approximators."""
    # A deletion needs no torch, no data and no model: what it imports is most of what it costs.
    from pipeline.deletion.delete import accept
    from pipeline.deletion.delete import delete as carry_out
    from pipeline.deletion.requests import DeletionRequest

    run = open_directory(folder)
    names = unit_names(ids, requests, column, id_ or ())
    request = DeletionRequest(
        names, request_id, epsilon, delta, skip_invalid, dry_run, accept_error, due
    )
    if queue and (dry_run or readers > 1 or fallback):
        raise ConfigError(
            "--queue accepts a request only; leave --dry-run, --readers and --fallback away"
        )
    if fallback not in (None, "retrain"):
        raise ConfigError(f"--fallback knows retrain alone, found {fallback!r:.80}")
    if fallback and readers > 1:
        raise ConfigError("--fallback reads with one reader; leave --readers away")
    if queue:
        receipt = accept(run, request)
    elif fallback:
        receipt = _deleted_or_retrained(run, request)
    elif readers == 1:
        receipt = carry_out(run, request)
    else:
        from cluster.shared_store import shared_store

        with shared_store(run, readers) as store:
            receipt = carry_out(run, request, store)
    for warning in receipt.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for path in receipt.copies:
        typer.echo(f"warning: {path} holds an exported approximator; remove it", err=True)
    if as_json:
        typer.echo(receipt.to_json())
        return
    from cluster.sentences import deletion_sentences

    for sentence in deletion_sentences(folder, run.config.data.unit, receipt):
        typer.echo(sentence)
    if receipt.release is not None and receipt.units_deleted and not dry_run:
        typer.echo(_receipt_sentence(run, receipt.request_id))


def _receipt_sentence(run: "RunDirectory", request_id: str) -> str:
    """Write the signed receipt and say where; the deletion stands, whatever becomes of this."""
    from pipeline.deletion.receipts import write_receipt
    from pipeline.errors import ReleaseError
    from storage.errors import StorageError

    again = f"`unlearn receipt {quote(str(run.path))} {quote(request_id)}`"
    try:
        path = write_receipt(run, request_id)
    except (OSError, StorageError, ReleaseError) as error:
        return f"The signed receipt could not be written ({error}); {again} makes it."
    return f"Signed receipt: {path} ({again} makes one with your request id in it)."


def _deleted_or_retrained(run: "RunDirectory", request: "DeletionRequest") -> "Receipt":
    """Delete, or retrain without the units where the error is above the limit."""
    from pipeline.deletion.delete import delete as carry_out
    from pipeline.errors import ErrorLimitError, GivenUpError

    with suppress(ErrorLimitError, GivenUpError):
        # Most deletions end here, without torch.
        receipt = carry_out(run, request)
        if receipt.release is not None or request.dry_run or not receipt.units_deleted:
            return receipt
        request = replace(request, request_id=receipt.request_id)
    from cluster.console import Reporter
    from cluster.precompute_stage import retrain
    from pipeline.approximators.retrain import delete_or_retrain

    return delete_or_retrain(run, request, lambda opened: retrain(opened, Reporter()))


def release(folder: RunFolder, as_json: AsJson = False) -> None:
    """Execute waiting requests. Makes one release for each requested (epsilon, delta)."""
    from pipeline.deletion.delete import release_waiting

    receipts = release_waiting(folder)
    releases = sorted({receipt.release for receipt in receipts if receipt.release is not None})
    units = sum(receipt.units_deleted for receipt in receipts)
    if as_json:
        made = {"requests": len(receipts), "units_deleted": units, "releases": releases}
        typer.echo(json.dumps(made))
    elif not receipts:
        typer.echo("no waiting requests")
    else:
        named = ", ".join(f"{folder / 'releases' / str(number)}" for number in releases)
        typer.echo(f"{len(receipts)} requests, {units} units deleted; see {named}")


def configure(
    folder: RunFolder,
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="Such as certificate.kind=none.")
    ],
) -> None:
    """Change mutable settings of a run. These are certificate.budget and kind, cluster, evaluation."""
    from pipeline.deletion.configure import configure as change

    changed = change(open_directory(folder), settings)
    typer.echo(f"{changed.path / 'config.yaml'}: {', '.join(settings)}")


def units(
    folder: RunFolder,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the list there instead, outside the run.")
    ] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Also name deleted users, by loading the data.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List units, their samples and states. States: stored, absent, deleted, held-out, unused."""
    from pipeline.run.unit_list import list_units

    run = open_directory(folder)
    listed = [unit._asdict() for unit in list_units(run, names)]
    if as_json:
        text = json.dumps({"units": listed})
    else:
        text = "\n".join(
            f"{'-' if unit['unit'] is None else unit['unit']}\t"
            f"{' '.join(map(str, unit['samples']))}\t{unit['state']}"
            for unit in ({"unit": "unit", "samples": ["samples"], "state": "state"}, *listed)
        )
    if out is None:
        typer.echo(text)
        return
    write_outside(run.path, out, f"{text}\n".encode())
    print_result({"units": len(listed), "file": str(out)}, as_json)


def unit_names(
    ids: str | None, requests: Path | None, column: str | None, each: Sequence[str] = ()
) -> list[str]:
    """Return the units that `--id` and `--ids`, or `--requests`, name.

    Raises:
        ConfigError: If neither or both are given, or no unit is named.
        RequestError: If the file cannot be read as what its name says.
    """
    if (ids is None and not each) == (requests is None):
        raise ConfigError(
            "give the units with either --ids 3,17 or --requests FILE; --id 'Doe, Jane' gives one unit "
            "as it is"
        )
    if requests is not None:
        from pipeline.deletion.request_files import read_request_file

        return read_request_file(requests, column)
    if column is not None:
        raise ConfigError("--column belongs to --requests; --ids and --id name units directly")
    if not all(each):
        raise ConfigError("--id names no unit; give its name, as in --id 'Doe, Jane'")
    if ids is None:
        return list(each)
    names = [name.strip() for name in ids.split(",")]
    if not any(names):
        raise ConfigError("--ids names no unit; give at least one, as in --ids 3,17")
    if not all(names):
        raise ConfigError(
            f"--ids {ids!r:.200} has an empty name between commas; give a name that holds a comma "
            "with --id"
        )
    return [*each, *names]
