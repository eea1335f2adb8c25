"""The ledger's entries as a hash chain: an entry's digest covers every entry before it.

    digest_i = SHA-256( digest_(i-1) || kind || 0x00 || body ),   digest_0 = 32 zero bytes

The body is canonical JSON (sorted keys, no spaces, ASCII). The chain shows that no entry was
edited, left out or put in between; that its end was not cut off is seen by comparing its head with
the one printed on a certificate. It is not a signature: whoever can rewrite the ledger and has
collected every certificate can write another consistent history.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
