"""The signing key: made once, for its owner alone, outside every run."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)

from storage.errors import LedgerError
from storage.signing import is_signed, load_signing_key, read_public_key, signing_key_file
from tests.pipeline.fake_store import use_key


def test_the_key_lies_beside_the_pseudonym_key_and_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = use_key(monkeypatch, tmp_path)
    key = load_signing_key(tmp_path / "run")
    assert signing_key_file() == beside.with_name("pseudonym.key.signing")
    assert signing_key_file().stat().st_mode & 0o777 == 0o600
    signature = key.sign(b"text")
    assert load_signing_key(tmp_path / "run").sign(b"text") == signature
    load_pem_public_key(key.public_pem()).verify(signature, b"text")  # type: ignore[union-attr,call-arg,arg-type]
    assert read_public_key(key.public_pem()) == key.public_hex
    assert is_signed(b"text", signature.hex(), key.public_hex)
    assert "SigningKey(public=" in repr(key)


@pytest.mark.parametrize("change", ["text", "flipped", "short", "upper", "no hex", "other key"])
def test_only_the_very_signature_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    use_key(monkeypatch, tmp_path)
    key = load_signing_key(tmp_path / "run")
    signature, public = key.sign(b"text").hex(), key.public_hex
    content = b"texts" if change == "text" else b"text"
    signature = {
        "flipped": f"{int(signature[0], 16) ^ 1:x}{signature[1:]}",
        "short": signature[:-2],
        "upper": signature.upper(),
        "no hex": "x" * 128,
    }.get(change, signature)
    if change == "other key":
        public = load_signing_key(tmp_path / "run", tmp_path / "other").public_hex
    assert not is_signed(content, signature, public)


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    run = tmp_path / "run"
    path.touch(mode=0o600)
    with pytest.raises(LedgerError, match="no private key in PEM"):
        load_signing_key(run, path)
    other = generate_private_key(SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(LedgerError, match="expected an Ed25519 key"):
        load_signing_key(run, path)
    path.chmod(0o640)
    with pytest.raises(LedgerError, match="found mode 0640"):
        load_signing_key(run, path)
    with pytest.raises(LedgerError, match="lies inside the run"):
        load_signing_key(tmp_path, path)
    with pytest.raises(LedgerError, match="expected a public key in PEM"):
        read_public_key(b"-----BEGIN")
