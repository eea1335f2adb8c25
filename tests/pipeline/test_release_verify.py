"""Verification: every kind of damage is found and named, and an untouched run has none."""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.certificates.sensitivity import Declaration, UnitsBound
from pipeline.deletion.releases import Releases, open_releases
from pipeline.deletion.requests import DeletionRequest
from pipeline.deletion.verification import audit_releases
from storage.durable_write import file_digest
from tests.pipeline.fake_store import FakeStore, make_facts, make_rows, use_key

FACTS = make_facts(declaration=Declaration("calibrated", (UnitsBound(9, 0.5),)))


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Releases:
    use_key(monkeypatch, tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    store = FakeStore(make_rows(20))
    with open_releases(folder, FACTS, store) as opened:
        opened.delete(DeletionRequest(["3", "4"], epsilon=1.0, delta=1e-5))
        opened.delete(DeletionRequest(["5"]))
    return open_releases(folder, FACTS, store)


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def sql(statement: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        db = sqlite3.connect(run / "ledger.sqlite")
        with db:
            assert db.execute(statement).rowcount > 0
        db.close()

    change.__name__ = statement
    return change


def flip_model(run: Path) -> None:
    path = run / "releases" / "1" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def drop_model(run: Path) -> None:
    (run / "releases" / "2" / "model.safetensors").unlink()


def edit_certificate(run: Path) -> None:
    rewrite(run / "releases" / "1" / "certificate.json", b'"epsilon": 1.0', b'"epsilon": 0.1')


def edit_text(run: Path) -> None:
    rewrite(run / "releases" / "1" / "certificate.txt", b"epsilon: 1.0", b"epsilon: 0.1")


def add_release(run: Path) -> None:
    (run / "releases" / "7").mkdir()


def open_internal(run: Path) -> None:
    (run / "internal").chmod(0o755)


def flip_sum(run: Path) -> None:
    rewrite(run / "internal" / "weighted-sum-2.safetensors", b"weighted_sum", b"weighted_SUM")


DAMAGE = [
    (flip_model, "releases/1/model.safetensors: expected digest"),
    (drop_model, "releases/2/model.safetensors: the file is missing"),
    (edit_certificate, "releases/1/certificate.json: expected digest"),
    (edit_certificate, "releases/1/certificate.json: the run and the ledger give another"),
    (edit_text, "releases/1/certificate.txt: it does not say what certificate.json says"),
    (add_release, "releases/7: no release of this number was committed"),
    (open_internal, "internal: others may read it (mode 0755)"),
    (flip_sum, "internal/weighted-sum-2.safetensors"),
    (sql("UPDATE entries SET body = replace(body, ':1', ':2') WHERE sequence = 4"), "entry 4"),
    (sql("DELETE FROM entries WHERE sequence = 5"), "entry 5"),
    (
        sql("UPDATE releases SET record = replace(record, '1.0', '0.5') WHERE release = 1"),
        "release 1",
    ),
    (sql("DELETE FROM suppressed WHERE release = 1"), "release 1 is not what its entry says"),
    (sql("UPDATE suppressed SET unit = 'f' WHERE release = 2"), "release 2 is not what"),
    (sql("UPDATE requests SET receipt = '{}' WHERE request = 1"), "receipts of release 1"),
]


def test_an_untouched_run_has_no_damage(releases: Releases) -> None:
    assert releases.verify() == []
    releases.close()


@pytest.mark.parametrize(
    ("damage", "named"), DAMAGE, ids=lambda value: getattr(value, "__name__", "")
)
def test_damage_is_found_and_named(
    releases: Releases, tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    damage(tmp_path / "run")
    found = [str(each) for each in releases.verify()]
    assert any(named in text for text in found), found
    releases.close()


def test_a_certificate_is_recomputed_and_not_only_digested(
    releases: Releases, tmp_path: Path
) -> None:
    """A forger who also fixes the digest in every table is found by the recomputation."""
    path = tmp_path / "run" / "releases" / "1" / "certificate.json"
    edit_certificate(tmp_path / "run")
    db = sqlite3.connect(tmp_path / "run" / "ledger.sqlite")
    with db:
        (record,) = db.execute("SELECT record FROM releases WHERE release = 1").fetchone()
        forged = {**json.loads(record), "certificate_digest": file_digest(path)}
        text = json.dumps(forged, sort_keys=True, separators=(",", ":"))
        db.execute("UPDATE releases SET record = ? WHERE release = 1", (text,))
    db.close()
    found = [str(each) for each in releases.verify()]
    assert any("the run and the ledger give another certificate" in text for text in found)
    releases.close()


@pytest.mark.parametrize("bound", [UnitsBound(9, 0.4), UnitsBound(1, 0.5)])
def test_another_declaration_gives_another_certificate(
    tmp_path: Path, releases: Releases, bound: UnitsBound
) -> None:
    looser = make_facts(declaration=Declaration("calibrated", (bound,)))
    found = [str(each) for each in audit_releases(replace(releases._run, facts=looser))]
    assert any("releases/1/certificate.json" in text for text in found)
