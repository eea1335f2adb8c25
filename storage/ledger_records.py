"""What the ledger stores: the chain of entries, and requests and releases as values."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

GENESIS = "0" * 64


@dataclass(frozen=True)
class Entry:
    """One line of the ledger's history; `body` is canonical JSON."""

    sequence: int
    kind: str
    body: str
    digest: str


def canonical(body: Mapping[str, object]) -> str:
    """Return the one JSON text of a body.

    >>> canonical({"b": 1.5, "a": None})
    '{"a":null,"b":1.5}'
    """
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def link(previous: str, kind: str, body: str) -> str:
    """Return the digest of an entry that follows the one whose digest is `previous`."""
    text = bytes.fromhex(previous) + kind.encode() + b"\0" + body.encode()
    return hashlib.sha256(text).hexdigest()


def first_break(entries: Iterable[Entry]) -> int | None:
    """Return the sequence number of the first entry that does not follow, or None.

    Entries are numbered from 1 without gaps.
    """
    previous = GENESIS
    for expected, entry in enumerate(entries, start=1):
        if entry.sequence != expected or entry.digest != link(previous, entry.kind, entry.body):
            return expected
        previous = entry.digest
    return None


LEDGER_VERSION = 1

RequestState = Literal["accepted", "batched", "committed", "done", "cancelled"]
BatchState = Literal["open", "committed", "published", "erased"]

SCHEMA = """
CREATE TABLE ledger (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE requests (
    request INTEGER PRIMARY KEY, request_id TEXT NOT NULL UNIQUE, set_digest TEXT NOT NULL,
    num_units INTEGER NOT NULL, num_samples INTEGER NOT NULL, epsilon REAL, delta REAL,
    state TEXT NOT NULL, release INTEGER, receipt TEXT);
CREATE INDEX requests_by_state ON requests(state);
CREATE TABLE request_units (unit TEXT PRIMARY KEY, request INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE batches (release INTEGER PRIMARY KEY, state TEXT NOT NULL);
CREATE TABLE releases (release INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE suppressed (
    unit TEXT PRIMARY KEY, request INTEGER NOT NULL, release INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX suppressed_by_request ON suppressed(request);
CREATE INDEX suppressed_by_release ON suppressed(release);
CREATE INDEX request_units_by_request ON request_units(request);
"""


@dataclass(frozen=True)
class NewRequest:
    """A request as it is accepted.

    Attributes:
        request_id: Pseudonym of the client's id.
        set_digest: Digest of the set of units that the client named, valid or not.
        units: Pseudonyms of the units to delete.
        num_samples: Samples of these units together.
        epsilon: Privacy of the release asked for; None asks for no noise.
        delta: Likewise.
        accepted_error: The relative error that the operator accepts for it; None: the run's limit.
        received: When it came, UTC, ISO 8601 to the second; None in ledgers of versions without it.
        due: The day by which it is to be carried out, ISO 8601; None for no deadline.
    """

    request_id: str
    set_digest: str
    units: tuple[str, ...]
    num_samples: int
    epsilon: float | None = None
    delta: float | None = None
    accepted_error: float | None = None
    received: str | None = None
    due: str | None = None


@dataclass(frozen=True)
class RequestRecord:
    """A request as the ledger knows it; `receipt` is JSON, present once it is done."""

    request: int
    request_id: str
    set_digest: str
    num_units: int
    num_samples: int
    epsilon: float | None
    delta: float | None
    state: RequestState
    release: int | None
    receipt: str | None
    accepted_error: float | None = None


def accepted_error_key(request: int | str) -> str:
    """Return the name under which a ledger keeps the error that was accepted for a request."""
    return f"accepted-error-{request}"


@dataclass(frozen=True)
class ReleaseRecord:
    """A committed release: what was deleted, what it cost, and the digests of what was written.

    Attributes:
        release: k, counted from 1.
        generation: Which trained parameters it starts from; one more after each repair.
        num_units: Units deleted by this release.
        num_samples: Samples deleted by this release.
        total_units: Units deleted in this generation, this release included.
        total_samples: M, samples deleted in this generation, this release included.
        kind: Kind of the certificate.
        epsilon: Privacy of this release; None without noise.
        delta: Likewise.
        sensitivity: Delta, L2; None without noise.
        sigma: Standard deviation of the noise on each parameter; 0 without noise.
        spent_mu: What this and every earlier release spend together, in Gaussian differential
            privacy; None once one of them had no noise.
        model_before: Digest of the model's file before this release.
        model_digest: BLAKE3 of the file model.safetensors.
        certificate_digest: BLAKE3 of the file certificate.json.
        sum_digest: BLAKE3 of the file that holds the weighted sum.
        chain_head: Digest of the entry that the certificate names.
        created: UTC time, ISO 8601 to the second.
        measured_error: What was known of the error of a deletion of this size, as the certificate
            states it; None in releases of versions that did not look it up.
        deleted_ever: Units deleted in all generations, this release included; of releases that were
            trained without them, None for all others.
        class_terms: BLAKE3 of the index of the class terms that were added; None without.
    """

    release: int
    generation: int
    num_units: int
    num_samples: int
    total_units: int
    total_samples: int
    kind: str
    epsilon: float | None
    delta: float | None
    sensitivity: float | None
    sigma: float
    spent_mu: float | None
    model_before: str
    model_digest: str
    certificate_digest: str
    sum_digest: str
    chain_head: str
    created: str
    measured_error: Mapping[str, Any] | None = None
    deleted_ever: int | None = None
    class_terms: str | None = None

    def body(self) -> dict[str, Any]:
        """Return the record as a ledger keeps it; fields that later versions added only where set."""
        return {
            key: value
            for key, value in asdict(self).items()
            if value is not None or key not in _ADDED
        }

    @staticmethod
    def read(text: str) -> "ReleaseRecord":
        """Return the record of a body's JSON, also of one that an earlier version wrote."""
        return ReleaseRecord(**json.loads(text))


_ADDED = ("measured_error", "deleted_ever", "class_terms")
RETRAINED = "retrained"


@dataclass(frozen=True)
class Retraining:
    """A retraining that is under way: its batch is open and its requests wait for the new model.

    Attributes:
        release: The batch.
        generation: Of the model that is trained.
        final: Whether no approximators are computed for it.
        model_before: Digest of the model's file before it.
    """

    release: int
    generation: int
    final: bool
    model_before: str
