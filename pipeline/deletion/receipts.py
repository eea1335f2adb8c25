"""Signed receipts: what was deleted from which model when, to be checked without the run.

    {"receipt": {...}, "signature": {"algorithm": "Ed25519", "public_key": hex, "value": hex}}

The signed bytes are the canonical JSON (RFC 8785) of `receipt`; docs/certificate.md lists its fields.
A receipt is a function of the ledger, the release's certificate and the key: made again, it has the
same bytes. It names no unit, and the request by its pseudonym; the client's id stands in it only where
the client's id was asked for.
"""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from blake3 import blake3

from pipeline.deletion.files import CERTIFICATE_FILE, ReleasePaths
from pipeline.errors import DamagedRunError, ReceiptError, ReleaseError, RequestError
from pipeline.run.directory import RunDirectory
from storage.canonical_json import canonical_json
from storage.durable_write import no_faults, write_atomically
from storage.ledger import Ledger
from storage.ledger_file import LedgerFile
from storage.ledger_records import ReleaseRecord, RequestRecord
from storage.ledger_summary import ledger_snapshot
from storage.pseudonym import PseudonymKey, is_pseudonym, load_key
from storage.signing import SigningKey, is_signed, load_signing_key

FORMAT, VERSION = "unlearn-receipt", 1
ALGORITHM = "Ed25519"
# A receipt has some 4 kB; more than this is none, and is not read.
LARGEST_BYTES = 1 << 20

STATEMENT = (
    "The units of this request were deleted from the model named here, and their approximators were "
    "erased from the run. What is claimed of the model, and what is not, stands below."
)
COMPOSITION = (
    "Epsilon and delta hold for this model alone. Its releases compose as all_releases says. Other "
    "models that were trained on the same person, in other runs, compose with it: for someone who sees "
    "several of them, the epsilons add up and the deltas add up. Where one of them has no epsilon, no "
    "bound holds for all together."
)


def find_request(ledger: Ledger, key: PseudonymKey, request_id: str) -> RequestRecord:
    """Return a request by its client's id, or by the pseudonym under which it is listed.

    Raises:
        RequestError: No request has this id.
    """
    requests = ledger.requests
    known = requests.find(key.request(request_id))
    if known is None and is_pseudonym(request_id):
        known = requests.find(request_id)
    if known is None:
        raise RequestError(
            f"the run knows no request {request_id!r:.80}; `unlearn requests` lists all, by the "
            "pseudonyms of their ids"
        )
    return known


def receipt_body(
    ledger: Ledger, paths: ReleasePaths, request: RequestRecord, request_id: str | None
) -> dict[str, Any]:
    """Return what a receipt states.

    Args:
        ledger: The run's ledger.
        paths: Where its releases lie.
        request: The request.
        request_id: The client's id; None names the request by its pseudonym alone.

    Raises:
        ReceiptError: The request is not done.
        DamagedRunError: The certificate of its release is missing or changed.
    """
    if request.state == "cancelled":
        raise ReceiptError("the request was cancelled: it deleted nothing, and has no receipt")
    if request.state != "done":
        raise ReceiptError(
            "the request is not carried out yet; its receipt can be made once it is (`unlearn "
            "requests` lists what waits)"
        )
    record = next(each for each in ledger.releases() if each.release == request.release)
    certificate = _certificate(paths, record)
    figures = ("epsilon", "delta", "sensitivity", "sigma")
    return {
        "format": FORMAT,
        "version": VERSION,
        "statement": STATEMENT,
        "request": {
            "pseudonym": request.request_id,
            "id": request_id,
            "received": ledger.requests.received(request.request),
        },
        "deleted": {
            "unit": certificate["deleted"]["unit"],
            "units": request.num_units,
            "samples": request.num_samples,
        },
        "model": {
            "run": ledger.file.value("run_digest"),
            "generation": record.generation,
            "release": record.release,
            "released": record.created,
            "before": record.model_before,
            "after": record.model_digest,
        },
        "certificate": {
            "digest": record.certificate_digest,
            "kind": record.kind,
            "claim": certificate["claim"],
            **{name: getattr(record, name) for name in figures},
        },
        "all_releases": certificate["all_releases"],
        "composition": COMPOSITION,
        "measured_error": certificate.get("error"),
        "not_covered": certificate["not_covered"],
        "still_held_by_the_operator": certificate["still_held_by_the_operator"],
        "ledger": {
            "committed": ledger.entry_digest("committed", record.release),
            "erased": ledger.entry_digest("erased", record.release),
        },
    }


def _certificate(paths: ReleasePaths, record: ReleaseRecord) -> dict[str, Any]:
    """Return a release's certificate, which must be the one that the ledger vouches for."""
    path = paths.published(record.release) / CERTIFICATE_FILE
    content = path.read_bytes() if path.is_file() else b""
    if blake3(content).hexdigest() != record.certificate_digest:
        raise DamagedRunError(
            f"{path} is missing, or not the one that the ledger vouches for; put it back from a copy"
        )
    found: dict[str, Any] = json.loads(content)
    return found


def sign_receipt(
    ledger: Ledger,
    key: PseudonymKey,
    paths: ReleasePaths,
    request_id: str,
    signing_key: SigningKey,
) -> str:
    """Return the signed receipt of a request as JSON; raises as `receipt_body` and `find_request`."""
    request = find_request(ledger, key, request_id)
    named = None if request_id == request.request_id else request_id
    body = receipt_body(ledger, paths, request, named)
    try:
        signature = signing_key.sign(canonical_json(body))
    except ValueError as error:  # an id of half a surrogate pair
        raise ReceiptError(f"the receipt has no canonical form: {error}") from error
    signed = {
        "algorithm": ALGORITHM,
        "public_key": signing_key.public_hex,
        "value": signature.hex(),
    }
    return json.dumps({"receipt": body, "signature": signed}, indent=2, allow_nan=False) + "\n"


def signed_receipt(run: RunDirectory, request_id: str) -> str:
    """Return the signed receipt of a request of a run, also while another process deletes from it.

    The ledger is copied as it stands and checked against its chain and key before anything is signed.

    Raises:
        LedgerError: The ledger is damaged, or a key is missing or another's.
        RequestError: No request has this id.
        ReceiptError: The request is not done.
        DamagedRunError: The certificate of its release is missing or changed.
    """
    key, paths = load_key(run.path, create=False), ReleasePaths(run.path)
    with ledger_snapshot(run.ledger_path) as copy:
        run_digest = _recorded_digest(copy) if run.is_pruned() else run.digest()
        with closing(Ledger(copy, run_digest, key.check_value())) as ledger:
            return sign_receipt(ledger, key, paths, request_id, load_signing_key(run.path))


def write_receipt(run: RunDirectory, request_id: str) -> Path:
    """Write a request's receipt to receipts/ of the run, by the request's pseudonym; return the file.

    Nothing that a client wrote is kept in a run, so this one holds no client's id.

    Raises:
        As `signed_receipt` does.
    """
    pseudonym = load_key(run.path, create=False).request(request_id)
    content = signed_receipt(run, pseudonym).encode()
    folder = ReleasePaths(run.path).receipts
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{pseudonym}.json"
    write_atomically(path, content, mode=0o600)
    return path


def receipt_damage(
    ledger: Ledger, key: PseudonymKey, paths: ReleasePaths, path: Path
) -> str | None:
    """Return what is wrong with a receipt in the run's folder, or None.

    It may be signed by an earlier key, and its texts may be an earlier version's; its facts may not.
    """
    text = path.read_bytes()
    try:
        named = json.loads(text)["signature"]["public_key"]
        found = verify_receipt(text, named)
        wanted = receipt_body(ledger, paths, find_request(ledger, key, path.stem), None)
    except (ReleaseError, ValueError, KeyError, TypeError) as error:
        return f"{error}"
    texts = ("statement", "composition")
    for body in (found, wanted):
        for name in texts:
            body.pop(name, None)
    return None if canonical_json(found) == canonical_json(wanted) else "the ledger gives another"


def _recorded_digest(copy: Path) -> str:
    """Return the run that a ledger names: a pruned run has no trajectory left to ask."""
    with closing(LedgerFile(copy, {}, no_faults)) as file:
        return file.value("run_digest") or ""


def verify_receipt(text: bytes, public_key: str) -> dict[str, Any]:
    """Check a signed receipt; return what it states.

    Args:
        text: The file.
        public_key: The key to trust, as hexadecimal digits.

    Raises:
        ReceiptError: It is not valid; the message says why.
    """
    if len(text) > LARGEST_BYTES:
        raise ReceiptError(f"not valid: it has {len(text):,} bytes, and no receipt is so long")
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_each_key_once)
        body, signature = found.pop("receipt"), found.pop("signature")
        algorithm, named, value = (
            signature.pop(each) for each in ("algorithm", "public_key", "value")
        )
        content = canonical_json(body)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ReceiptError(f"not valid: it is not a signed receipt ({error!r:.80})") from error
    # What the signature does not cover could be taken for a part of the receipt.
    if found or signature:
        raise ReceiptError("not valid: it holds fields that are not signed")
    if algorithm != ALGORITHM or not isinstance(value, str):
        raise ReceiptError(
            f"not valid: expected a signature by {ALGORITHM}, found {algorithm!r:.40}"
        )
    if named != public_key:
        raise ReceiptError(
            f"not valid: it is signed by the key {named!r:.80}, expected {public_key}"
        )
    if not is_signed(content, value, public_key):
        raise ReceiptError("not valid: the signature is not that of this text by this key")
    if not isinstance(body, dict) or (body.get("format"), body.get("version")) != (FORMAT, VERSION):
        raise ReceiptError(f"not valid: what is signed is no receipt of version {VERSION}")
    return body


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse what two readers could read differently."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found
