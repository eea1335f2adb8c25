"""The commands requests, cancel, receipt, verify-receipt and public-key."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli_options import AsJson, RunFolder, open_directory, write_outside

if TYPE_CHECKING:
    from pipeline.deletion.request_list import RequestStatus

RequestId = Annotated[
    str, typer.Argument(metavar="REQUEST_ID", help="Your id, or the one that `requests` shows.")
]


def requests(
    folder: RunFolder,
    state: Annotated[
        str | None,
        typer.Option("--state", help="waiting, in_progress, done, cancelled, needs_decision."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List deletion requests: when received and due, state and release. Names no person."""
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
    request_id: RequestId,
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


def receipt(
    folder: RunFolder,
    request_id: RequestId,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write it there instead, outside the run.")
    ] = None,
) -> None:
    """Make the signed receipt of a request that is done, as JSON."""
    from pipeline.deletion.receipts import signed_receipt

    run = open_directory(folder)
    text = signed_receipt(run, request_id)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_outside(run.path, out, text.encode())
    typer.echo(str(out))


def verify_receipt(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A signed receipt.")],
    public_key: Annotated[
        Path, typer.Option("--public-key", help="The operator's, from `unlearn public-key`.")
    ],
    as_json: AsJson = False,
) -> None:
    """Check a signed receipt, without the run. Exits with 1 if it is not valid."""
    from pipeline.deletion.receipts import LARGEST_BYTES
    from pipeline.deletion.receipts import verify_receipt as check
    from storage.signing import read_public_key

    with file.open("rb") as opened:
        text = opened.read(LARGEST_BYTES + 1)
    stated = check(text, read_public_key(public_key.read_bytes()))
    if as_json:
        typer.echo(json.dumps({"valid": True, "receipt": stated}))
        return
    from cluster.sentences import receipt_sentences

    for sentence in receipt_sentences(stated):
        typer.echo(sentence)


def public_key(
    folder: RunFolder,
    out: Annotated[Path | None, typer.Option("--out", help="Write it there instead.")] = None,
) -> None:
    """Show the public key that checks this operator's receipts, in PEM."""
    from storage.durable_write import write_atomically
    from storage.signing import load_signing_key

    pem = load_signing_key(open_directory(folder).path).public_pem()
    if out is None:
        typer.echo(pem.decode(), nl=False)
        return
    write_atomically(out.absolute(), pem, mode=0o644)
    typer.echo(str(out))


def _table(found: Sequence["RequestStatus"]) -> Iterator[str]:
    """Lines of equal columns, the names of the columns first."""
    rows = [("request", "received", "due", "state", "release", "units")]
    rows += [
        (
            each.request,
            each.received or "-",
            each.due or "-",
            each.state,
            str(each.release or "-"),
            str(each.units),
        )
        for each in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
