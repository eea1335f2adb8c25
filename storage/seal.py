"""Files that carry their own digest, so that damage is found before anything else reads them.

The digest is BLAKE3 over the file with 64 zeros where the digest itself stands, in hexadecimal. It
guards against accidents and careless edits; whoever means harm can seal a file anew.
"""

import re

from blake3 import blake3

from storage.errors import RowCorruptError

UNSEALED = "0" * 64
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


def seal(data: bytes) -> bytes:
    """Put the digest of `data` where it says `"seal": UNSEALED`, which it must do once."""
    match = _single_match(data)
    if match is None:
        raise ValueError("expected exactly one unsealed seal in the file")
    digest = blake3(data).hexdigest().encode()
    return data[: match.start(1)] + digest + data[match.end(1) :]


def check_seal(data: bytes, name: str) -> bytes:
    """Return the digest (32 bytes) of a sealed file.

    Args:
        data: the file.
        name: what errors call it.

    Raises:
        RowCorruptError: it is not the file that was sealed.
    """
    match = _single_match(data)
    if match is None:
        raise RowCorruptError(f"{name} has no seal: it is not a file that this program wrote")
    unsealed = data[: match.start(1)] + UNSEALED.encode() + data[match.end(1) :]
    digest = blake3(unsealed).digest()
    if digest.hex().encode() != match[1]:
        raise RowCorruptError(
            f"{name} was edited or damaged: it does not match its seal; restore it"
        )
    return digest


def _single_match(data: bytes) -> re.Match[bytes] | None:
    matches = list(_SEAL.finditer(data))
    return matches[0] if len(matches) == 1 else None
