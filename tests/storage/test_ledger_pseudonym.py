import hashlib
from pathlib import Path

import pytest

from storage.errors import LedgerError
from storage.pseudonym import PseudonymKey, default_key_file, load_key

SECRET = bytes(range(32))


def test_a_pseudonym_is_keyed_blake2b() -> None:
    key = PseudonymKey(SECRET)
    by_hand = hashlib.blake2b("käthe".encode(), key=SECRET, digest_size=16, person=b"unit")
    assert key.unit("käthe") == by_hand.hexdigest()
    assert key.units(["a", "b"]) == [key.unit("a"), key.unit("b")]


def test_key_kind_and_name_each_change_a_pseudonym() -> None:
    key = PseudonymKey(SECRET)
    assert (
        len({key.unit("a"), key.unit("b"), key.request("a"), PseudonymKey(b"x" * 32).unit("a")})
        == 4
    )


def test_a_key_does_not_show_itself() -> None:
    assert SECRET.hex() not in repr(PseudonymKey(SECRET))
    assert str(SECRET) not in repr(PseudonymKey(SECRET))


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNLEARN_KEY_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_key_file() == tmp_path / "unlearn" / "pseudonym.key"
    monkeypatch.setenv("UNLEARN_KEY_FILE", str(tmp_path / "k"))
    assert default_key_file() == tmp_path / "k"


def test_a_key_is_created_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path, run = tmp_path / "keys" / "k", tmp_path / "run"
    first = load_key(run, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 32
    assert load_key(run, path).unit("a") == first.unit("a")
    assert [p.name for p in path.parent.iterdir()] == ["k"]


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k"
    load_key(tmp_path / "run", path)
    path.chmod(0o640)
    with pytest.raises(LedgerError, match="found mode 0640; run chmod 600"):
        load_key(tmp_path / "run", path)


def test_a_key_inside_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="lies inside the run"):
        load_key(tmp_path, tmp_path / "internal" / "k")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(LedgerError, match="expected a key of 32 bytes, found 5"):
        load_key(tmp_path / "run", path)
