"""What the ledger stores, as values: requests, releases, and the SQL that holds them.

Format version 1. Tables:

    ledger(key, value)       format version, digest of the run, check value of the pseudonym key
    entries(...)             the hash chain (`storage.chain`), one line for every change below
    requests(...)            one per accepted request; ids are pseudonyms
    request_units(...)       pseudonyms of a request that is not committed yet
    batches(...)             the batch that is under way and those that ended; numbered as releases
    releases(...)            one per committed batch
    suppressed(...)          pseudonym of every deleted unit, with its request and release

No column holds a name, a vector, a norm or a seed.
"""

from dataclasses import dataclass
from typing import Literal

LEDGER_VERSION = 1

RequestState = Literal["accepted", "batched", "committed", "done"]
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
    """

    request_id: str
    set_digest: str
    units: tuple[str, ...]
    num_samples: int
    epsilon: float | None = None
    delta: float | None = None


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
