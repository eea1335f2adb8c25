"""One text is one unit, or is refused: what a request may name, and how messages name units."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster import cli
from cluster.deletion_commands import unit_names
from pipeline.deletion.delete import delete
from pipeline.deletion.releases import open_releases
from pipeline.deletion.requests import DeletionRequest
from pipeline.errors import ConfigError, RequestError, UnitsRefusedError, UnknownUnitsError
from pipeline.suggestions import nearest
from tests.pipeline.fake_store import FakeStore, make_facts, make_rows, use_key

TAKEN: dict[str, tuple[Any, list[str]]] = {
    "texts": (["17", "3", "17"], ["17", "3"]),
    "numbers": ([17, 3, 17], ["17", "3"]),
    "a tuple of both": ((17, "3"), ["17", "3"]),
    "numpy numbers": ([np.int32(17), np.uint8(3)], ["17", "3"]),
    "an array": (np.array([17, 3]), ["17", "3"]),
    "an array of texts": (np.array(["17", "a,b"]), ["17", "a,b"]),
    "a tensor": (torch.tensor([17, 3]), ["17", "3"]),
    "a range": (range(2), ["0", "1"]),
    "texts that look alike": (["7", "07", " 7", "\uff17"], ["7", "07", " 7", "\uff17"]),
}


@pytest.mark.parametrize("given", TAKEN)
def test_a_list_of_names_is_taken_by_its_text(given: str) -> None:
    units, names = TAKEN[given]
    assert DeletionRequest(units).names() == names


REFUSED: dict[str, tuple[Any, str]] = {
    "one text": ("17", r"found str '17'; write \['17'\] for this one unit"),
    "bytes": (b"17", "found bytes b'17'; write a list of texts, each decoded"),
    "bytes to write to": (bytearray(b"17"), "a list of texts, each decoded"),
    "a mapping": ({"1": 1, "7": 2}, r"found dict .*; write list\(units\) for its keys"),
    "a set": ({"1", "7"}, r"found set .*; write sorted\(units\)"),
    "keys": ({"1": 1}.keys(), r"write sorted\(units\)"),
    "a number": (17, r"found int 17; write a list of texts, as in \['17'\]"),
    "a numpy number": (np.int64(17), "write a list of texts"),
    "an array of no dimension": (np.array(17), "write a list of texts"),
    "a truth value": (True, "found bool True; write a list"),
    "a fraction": (1.5, "found float 1.5; write a list"),
    "a number of 5,000 digits": (10**5000, "found int of thousands of digits; write"),
    "nothing": (None, "found NoneType None; write"),
    "a generator": ((str(i) for i in range(3)), r"found generator .*; write list\(units\)"),
    "no unit": ([], "at least one unit"),
    "an empty array": (np.array([], dtype=np.int64), "at least one unit"),
    "truth values": (["3", True], "found bool True at position 1"),
    "a mask": (np.array([True, False]), "found bool True at position 0"),
    "fractions": ([3.0], "found float 3.0 at position 0"),
    "floating point array": (np.array([3.0]), "found float 3.0 at position 0"),
    "bytes within": ([b"17"], "found bytes b'17' at position 0"),
    "a list within": ([["3"]], "found list .* at position 0"),
    "a table": (np.array([[3, 4]]), "found list .* at position 0"),
    "None within": (["3", None], "found NoneType None at position 1"),
    "an empty text": (["3", ""], "found str '' at position 1"),
    "a huge number within": ([10**5000], "found int of thousands of digits at position 0"),
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_could_mean_other_units_is_refused_with_what_to_write(given: str) -> None:
    units, message = REFUSED[given]
    with pytest.raises(RequestError, match=message) as refusal:
        DeletionRequest(units)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400
    with pytest.raises(RequestError, match=message):
        delete("there is no such run", units)


def test_ids_are_taken_as_they_are() -> None:
    strange = ["Doe, Jane", " 7 ", "a b"]
    assert unit_names(None, None, None, strange) == strange
    assert unit_names(" 3, 17 ", None, None, strange) == [*strange, "3", "17"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None, None), "give the units with either"),
        (("3", Path("r.txt"), None), "give the units with either"),
        ((None, Path("r.txt"), None, ["3"]), "give the units with either"),
        ((None, None, "user", ["3"]), "--column belongs to --requests"),
        ((None, None, None, [""]), "--id names no unit"),
        (("a,,b", None, None), "empty name between commas; .* with --id"),
        ((" , ", None, None), "--ids names no unit"),
    ],
)
def test_options_that_name_no_unit_are_refused(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        unit_names(*given)


def test_the_command_line_shows_no_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._fail(ConfigError("s3://key:secret@bucket/x.zarr?token=secret: no such"), 2) == 2
    assert capsys.readouterr().err == "error: s3://***@bucket/x.zarr?*** no such\n"


def test_messages_name_ten_units_and_count_the_others() -> None:
    unknown, already = [f"u{i}" for i in range(1000)], [f"d{i}" for i in range(11)]
    text = str(UnitsRefusedError(unknown, already))
    assert "not in the training set: 'u0', 'u1'" in text and "'u9' and 990 more;" in text
    assert "already deleted: 'd0'" in text and "'d9' and 1 more." in text
    assert "u10" not in text
    assert "'u9'. Nothing" in str(UnitsRefusedError(unknown[:10], []))
    long = str(UnitsRefusedError(["x" * 10_000], []))
    assert len(long) < 400 and "xxx..." in long
    assert "c9 and 90 more" in nearest("what", [f"c{i:02}" for i in range(100)]).replace("c0", "c")


def test_a_unit_held_out_for_testing_is_told_from_an_unknown_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    (tmp_path / "run").mkdir()
    facts = make_facts(held_out=lambda: frozenset({"40", "41"}))
    with open_releases(tmp_path / "run", facts, FakeStore(make_rows(20))) as releases:
        with pytest.raises(UnknownUnitsError) as refusal:
            releases.delete(DeletionRequest(["3", "41", "99"]))
        assert "not in the training set: '99'; held out for testing: '41'" in str(refusal.value)
        assert refusal.value.unknown == ("41", "99") and refusal.value.held_out == ("41",)
        receipt = releases.delete(DeletionRequest(["3", "41", "99"], skip_invalid=True))
        assert receipt.unknown == ("41", "99") and receipt.units_deleted == 1
