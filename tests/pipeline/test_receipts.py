"""Signed receipts: what they say, who can check them, and what is refused."""

import json
import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cluster.inspection import verify_run
from cluster.upkeep import back_up, prune_run, restore_backup
from pipeline import RunDirectory, delete, retrain
from pipeline.deletion.delete import accept, cancel, open_run
from pipeline.deletion.receipts import signed_receipt, verify_receipt, write_receipt
from pipeline.deletion.requests import DeletionRequest
from pipeline.errors import DamagedRunError, ReceiptError, RequestError
from storage.canonical_json import canonical_json
from storage.errors import LedgerError
from storage.pseudonym import load_key
from storage.signing import SigningKey, load_signing_key
from storage.store import ApproximatorStore

GOLDEN = Path(__file__).parent / "golden-receipt.json"
# RFC 8032, section 7.1, test 1.
SEED = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def independent_check(text: str, public: str) -> dict[str, Any]:
    """What docs/certificate.md describes, by the standard library and `cryptography` alone."""

    def written(value: Any) -> str:
        if isinstance(value, dict):
            pairs = sorted(value.items(), key=lambda pair: pair[0].encode("utf-16-be"))
            return "{" + ",".join(f"{written(k)}:{written(v)}" for k, v in pairs) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(written, value)) + "]"
        if not isinstance(value, float):
            return json.dumps(value, ensure_ascii=False)
        if value == int(value) and abs(value) < 1e21:
            return str(int(value))
        if 1e-6 <= abs(value) < 1e21:
            return format(Decimal(repr(value)), "f")
        mantissa, _, exponent = repr(value).partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent):+d}"

    file = json.loads(text)
    assert file["signature"]["algorithm"] == "Ed25519"
    assert file["signature"]["public_key"] == public
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    key.verify(bytes.fromhex(file["signature"]["value"]), written(file["receipt"]).encode())
    return dict(file["receipt"])


def test_a_receipt_says_what_ledger_and_certificate_say(run: RunDirectory) -> None:
    delete(run, DeletionRequest(["3", "17"], "Doe, Jane"))
    delete(run, DeletionRequest(["4"], "R2"))
    text = signed_receipt(run, "Doe, Jane")
    public = load_signing_key(run.path).public_hex
    stated = verify_receipt(text.encode(), public)
    assert stated == independent_check(text, public)
    folder = run.path / "releases" / "1"
    certificate = json.loads((folder / "certificate.json").read_text())
    assert stated["request"]["id"] == "Doe, Jane"
    assert stated["request"]["pseudonym"] == load_key(run.path).request("Doe, Jane")
    assert stated["deleted"] == {"unit": "sample", "units": 2, "samples": 2}
    assert stated["model"]["after"] == certificate["digests"]["model_after"]
    assert stated["model"]["before"] == certificate["digests"]["model_before"]
    assert stated["model"]["run"] == certificate["digests"]["run"]
    assert (stated["model"]["release"], stated["model"]["generation"]) == (1, 0)
    assert stated["model"]["released"] == certificate["created"]
    for name in ("kind", "claim", "epsilon", "delta", "sensitivity", "sigma"):
        assert stated["certificate"][name] == certificate[name]
    assert stated["measured_error"] == certificate["error"]
    for name in ("all_releases", "not_covered", "still_held_by_the_operator"):
        assert stated[name] == certificate[name]
    assert "hold for this model alone" in stated["composition"]
    with sqlite3.connect(run.ledger_path) as db:
        digests = dict(db.execute("SELECT kind, digest FROM entries ORDER BY sequence DESC"))
    db.close()
    assert stated["ledger"] == {name: digests[name] for name in ("committed", "erased")}


def test_by_the_pseudonym_a_receipt_holds_nothing_that_the_client_wrote(run: RunDirectory) -> None:
    delete(run, DeletionRequest(["3"], "Doe, Jane"))
    pseudonym = load_key(run.path).request("Doe, Jane")
    text = signed_receipt(run, pseudonym)
    assert "Jane" not in text and json.loads(text)["receipt"]["request"]["id"] is None
    path = write_receipt(run, "Doe, Jane")
    assert path == run.path / "receipts" / f"{pseudonym}.json"
    assert path.read_text() == text == signed_receipt(run, pseudonym)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_open_run_gives_the_same_receipt(run: RunDirectory) -> None:
    delete(run, DeletionRequest(["3"], "R"))
    with open_run(run, ApproximatorStore.open(run.store_url, mode="r+")) as releases:
        text = releases.receipt("R", load_signing_key(run.path))
        # A service holds the lock and the ledger, and anyone else is answered all the same.
        assert text == signed_receipt(run, "R")


def test_only_what_is_done_has_a_receipt(run: RunDirectory) -> None:
    with pytest.raises(LedgerError):
        signed_receipt(run, "R")
    accept(run, DeletionRequest(["3"], "R"))
    with pytest.raises(ReceiptError, match="not carried out yet"):
        signed_receipt(run, "R")
    cancel(run, "R")
    with pytest.raises(ReceiptError, match="was cancelled"):
        signed_receipt(run, "R")
    with pytest.raises(RequestError, match="no request 'S'"):
        signed_receipt(run, "S")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        yield path
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))
    else:
        yield path


def changed(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy in which the value at a path is another."""
    if not path:
        others = {
            bool: not value,
            str: f"{value}x",
            type(None): 0,
            list: [value],
            dict: {"x": value},
        }
        return others.get(type(value), 1.5 if value == 1 else 1)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:])
    return copy


def test_no_change_of_any_field_stays_valid() -> None:
    whole = json.loads(GOLDEN.read_text())
    verify_receipt(json.dumps(whole).encode(), PUBLIC)  # neither order nor spaces are signed
    paths = list(leaves(whole))
    assert len(paths) > 50
    for path in paths:
        with pytest.raises(ReceiptError, match="not valid"):
            verify_receipt(json.dumps(changed(whole, path)).encode(), PUBLIC)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"units": 2,', '"units": 2, "units": 2,'),
        ('"units": 2,', '"units": 2, "more": 3,'),
        ('"units": 2,', '"units": NaN,'),
        ('"algorithm":', '"x": 1, "algorithm":'),
        ('{\n  "receipt"', '{"x": 1, "receipt"'),
        ('"units": 2,', f'"units": {"9" * 5000},'),
        ('"units": 2,', f'"units": {"[" * 100_000}'),
        ("{", ""),
        ("{", "[" + " " * (1 << 20)),
    ],
)
def test_what_is_no_receipt_is_refused(old: str, new: str) -> None:
    text = GOLDEN.read_text()
    assert old in text
    with pytest.raises(ReceiptError, match="not valid") as refused:
        verify_receipt(text.replace(old, new, 1).encode(), PUBLIC)
    assert "\n" not in str(refused.value)


def test_a_receipt_of_this_version_is_valid_for_ever() -> None:
    stated = verify_receipt(GOLDEN.read_bytes(), PUBLIC)
    assert independent_check(GOLDEN.read_text(), PUBLIC) == stated
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SEED)))
    assert key.public_hex == PUBLIC
    signature = json.loads(GOLDEN.read_text())["signature"]["value"]
    assert key.sign(canonical_json(stated)).hex() == signature
    with pytest.raises(InvalidSignature):
        independent_check(GOLDEN.read_text().replace('"units": 2', '"units": 3'), PUBLIC)


def test_nothing_is_signed_of_a_changed_ledger_or_certificate(run: RunDirectory) -> None:
    delete(run, DeletionRequest(["3"], "R"))
    path = run.path / "releases" / "1" / "certificate.json"
    whole = path.read_text()
    path.write_text(whole.replace('"kind": "none"', '"kind": "certified"'))
    with pytest.raises(DamagedRunError, match=r"certificate\.json is missing, or not the one"):
        signed_receipt(run, "R")
    path.write_text(whole)
    with sqlite3.connect(run.ledger_path) as db:
        db.execute("UPDATE requests SET num_units = 5")
    db.close()
    with pytest.raises(LedgerError, match="num_units of request 1 was changed"):
        signed_receipt(run, "R")


def test_verify_checks_the_receipts_in_the_run(run: RunDirectory) -> None:
    delete(run, DeletionRequest(["3", "4"], "R"))
    path = write_receipt(run, "R")
    assert not verify_run(run).damage
    whole = path.read_text()
    path.write_text(whole.replace('"units": 2', '"units": 1'))
    (damage,) = verify_run(run).damage
    assert damage["where"] == f"receipts/{path.name}" and "signature" in damage["reason"]
    # One that was signed, and is not this ledger's.
    body = json.loads(whole)["receipt"]
    body["deleted"]["units"] = 1
    key = load_signing_key(run.path)
    signature = {"algorithm": "Ed25519", "public_key": key.public_hex}
    signature["value"] = key.sign(canonical_json(body)).hex()
    path.write_text(json.dumps({"receipt": body, "signature": signature}))
    (damage,) = verify_run(run, read_only=True).damage
    assert damage["reason"] == "the ledger gives another"
    path.write_text(whole)
    assert not verify_run(run, read_only=True).damage


def test_receipts_outlive_a_retraining_a_restore_and_a_prune(
    run: RunDirectory, tmp_path: Path
) -> None:
    delete(run, DeletionRequest(["3"], "R1"))
    first = signed_receipt(run, "R1")
    accept(run, DeletionRequest(["4"], "R2"))
    retrain(run)
    stated = json.loads(signed_receipt(run, "R2"))["receipt"]
    assert (stated["certificate"]["kind"], stated["model"]["generation"]) == ("retrained", 1)
    assert stated["measured_error"]["how"] == "retrained"
    back_up(run, tmp_path / "backup")
    restore_backup(run, tmp_path / "backup")
    assert signed_receipt(run, "R1") == first
    prune_run(run)
    assert signed_receipt(run, "R1") == first
