"""The key that signs receipts: Ed25519 (RFC 8032), in a file beside the pseudonym key.

    <pseudonym key file>.signing      PEM (PKCS #8), mode 0600, made when first needed

The public key may be given to anyone: with it a receipt is checked without the run. Keep a copy of the
private one: receipts that are made again after its loss are signed by another key.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import LedgerError
from storage.pseudonym import default_key_file, read_secret

# cryptography takes a while to import, and deletions need none of it.
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class SigningKey:
    """A private key; its bytes are never shown."""

    def __init__(self, private: "Ed25519PrivateKey") -> None:
        self._private = private

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public_hex})"

    def sign(self, content: bytes) -> bytes:
        """Return the signature of some bytes: 64 bytes, the same at every call."""
        return self._private.sign(content)

    @property
    def public_hex(self) -> str:
        """The public key: 32 bytes as hexadecimal digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def public_pem(self) -> bytes:
        """Return the public key as PEM (SubjectPublicKeyInfo)."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = self._private.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signing_key_file() -> Path:
    """Return where the signing key lies: beside the pseudonym key that the environment names."""
    path = default_key_file()
    return path.with_name(f"{path.name}.signing")


def load_signing_key(run_dir: Path, path: Path | None = None) -> SigningKey:
    """Read the signing key, creating it with mode 0600 where there is none.

    Args:
        run_dir: The run that the key must not lie in.
        path: The key file; by default the one beside the pseudonym key.

    Raises:
        LedgerError: The file lies inside the run, others may read it, or it is not a key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = path or signing_key_file()
    content = read_secret(run_dir, path, _fresh)
    try:
        private = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise LedgerError(f"{path} is no private key in PEM; restore it from a copy") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise LedgerError(f"{path}: expected an Ed25519 key, found {type(private).__name__}")
    return SigningKey(private)


def _fresh() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    private = Ed25519PrivateKey.generate()
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_public_key(pem: bytes) -> str:
    """Return the public key of a PEM file as hexadecimal digits.

    Raises:
        LedgerError: It is not the public key of an Ed25519 pair.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        public = load_pem_public_key(pem)
    except (ValueError, TypeError) as error:
        raise LedgerError(
            "expected a public key in PEM, as `unlearn public-key` writes it"
        ) from error
    if not isinstance(public, Ed25519PublicKey):
        raise LedgerError(f"expected an Ed25519 public key, found {type(public).__name__}")
    return public.public_bytes_raw().hex()


def is_signed(content: bytes, signature: str, public_hex: str) -> bool:
    """Whether a signature, in hexadecimal digits, is that of some bytes by this public key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        given = bytes.fromhex(signature)
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex)).verify(given, content)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return given.hex() == signature  # one way to write a signature
