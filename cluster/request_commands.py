"""The commands requests and cancel."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli_options import AsJson, RunFolder, open_directory

if TYPE_CHECKING:
    from pipeline.deletion.request_list import RequestStatus


def requests(
    folder: RunFolder,
    state: Annotated[
        str | None,
        typer.Option("--state", help="waiting, in_progress, done, cancelled, needs_decision."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List deletion requests: when received, their state and release. Names no person."""
    from pipeline.deletion.request_list import requests_of

    found = requests_of(open_directory(folder), state)
    if as_json:
        typer.echo(json.dumps({"requests": [asdict(each) for each in found]}))
        return
    if not found:
        typer.echo("no requests" if state is None else f"no requests in state {state}")
        return
    for line in _table(found):
        typer.echo(line)
    for reason in dict.fromkeys(each.reason for each in found if each.reason):
        typer.echo(f"needs a decision: {reason}")


def cancel(
    folder: RunFolder,
    request_id: Annotated[
        str,
        typer.Argument(metavar="REQUEST_ID", help="Your id, or the one that `requests` shows."),
    ],
    as_json: AsJson = False,
) -> None:
    """Cancel a request that waits. Impossible once its release has begun."""
    from pipeline.deletion.delete import cancel as take_back

    take_back(open_directory(folder), request_id)
    if as_json:
        typer.echo(json.dumps({"request_id": request_id, "state": "cancelled"}))
    else:
        typer.echo(
            "The request is cancelled: it deletes nothing. Its units can be asked for again, under "
            "another id."
        )


def _table(found: Sequence["RequestStatus"]) -> Iterator[str]:
    """Lines of equal columns, the names of the columns first."""
    rows = [("request", "received", "state", "release", "units")]
    rows += [
        (each.request, each.received or "-", each.state, str(each.release or "-"), str(each.units))
        for each in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
