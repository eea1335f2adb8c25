"""The life of deletions: what they change, what they answer, what they refuse."""

import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.deletion.context import DeletionContext
from pipeline.deletion.releases import open_releases
from pipeline.deletion.requests import DeletionRequest
from pipeline.deletion.weights import DeletionRule, DeletionState, apply_deletion, unit_weights
from pipeline.errors import (
    AlreadyDeletedError,
    DamagedRunError,
    PrunedError,
    RequestConflictError,
    RequestError,
    RetrainRequiredError,
    UnknownUnitsError,
)
from storage.errors import LedgerError, RowCorruptError, WriterConflictError
from storage.pseudonym import load_key
from tests.pipeline.fake_store import FakeStore, make_facts, make_rows


def released(run_dir: Path, release: int) -> np.ndarray:
    """Flat parameters of a release, by the reader that users have."""
    tensors = load_file(run_dir / "releases" / str(release) / "model.safetensors")
    return np.concatenate([tensors["weight"].ravel(), tensors["bias"]])


def expected(facts: DeletionContext, units: list[str]) -> np.ndarray:
    """METHOD section 4 in one step."""
    rows = make_rows(len(facts.samples_per_unit), facts.trained_P.size)
    counts = [facts.samples_per_unit[unit] for unit in units]
    weights = unit_weights(facts.rule, counts) or [1] * len(units)
    total_P = np.sum([w * rows[u] for w, u in zip(weights, units, strict=True)], axis=0)
    return apply_deletion(facts.rule, facts.trained_P, DeletionState(total_P, sum(counts)))


def files_of(run_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and path.suffix not in (".sqlite-shm", ".sqlite-wal", ".lock")
    }


@pytest.mark.parametrize(
    "rule",
    [
        DeletionRule("batch", "left-out", 20, 4),
        DeletionRule("remaining", "left-out", 20, 4),
        DeletionRule("remaining", "included", 20, 4),
    ],
    ids=str,
)
def test_a_release_is_the_formula_and_nothing_else_changed(
    run_dir: Path, rule: DeletionRule
) -> None:
    facts, store = make_facts(rule=rule), FakeStore(make_rows(20))
    with open_releases(run_dir, facts, store) as releases:
        receipt = releases.delete(DeletionRequest(units=["7", 3, "3"]))
    assert receipt.release == 1
    assert receipt.units_deleted == 2
    assert receipt.sum_seconds > 0
    assert "without noise" in receipt.warnings[0]
    assert np.array_equal(released(run_dir, 1), expected(facts, ["3", "7"]))
    assert sorted(set(make_rows(20)) - set(store.rows)) == ["3", "7"]


def test_users_weigh_as_many_samples_as_they_own(run_dir: Path) -> None:
    counts = {"ann": 3, "bob": 1, "cyd": 2}
    rows = dict(zip(counts, make_rows(3).values(), strict=True))
    facts = make_facts(samples_per_unit=counts, rule=DeletionRule("remaining", "left-out", 6, 4))
    with open_releases(run_dir, facts, FakeStore(rows)) as releases:
        releases.delete(DeletionRequest(units=["cyd", "ann"]))
    total_P = (6 - 3) * rows["ann"] + (6 - 2) * rows["cyd"]
    state = DeletionState(total_P, 5)
    assert np.array_equal(released(run_dir, 1), apply_deletion(facts.rule, facts.trained_P, state))


def test_any_sequence_of_batches_gives_the_model_of_one(run_dir: Path, tmp_path: Path) -> None:
    facts = make_facts()
    batches = [["11"], ["2", "17", "5"], ["0", "19"]]
    for batch in batches:  # reopened each time
        with open_releases(run_dir, facts, _rest(run_dir, batches, batch)) as releases:
            releases.delete(DeletionRequest(units=batch))
    everybody = sorted({unit for batch in batches for unit in batch}, key=int)
    assert np.array_equal(released(run_dir, 3), expected(facts, everybody))
    other = tmp_path / "other"
    other.mkdir()
    with open_releases(other, facts, FakeStore(make_rows(20))) as releases:
        releases.delete(DeletionRequest(units=everybody))
    one, many = (
        d / "releases" / k / "model.safetensors" for d, k in ((other, "1"), (run_dir, "3"))
    )
    assert one.read_bytes() == many.read_bytes()


def _rest(run_dir: Path, batches: list[list[str]], batch: list[str]) -> FakeStore:
    """The store as earlier batches left it."""
    gone = {unit for earlier in batches[: batches.index(batch)] for unit in earlier}
    store = FakeStore(make_rows(20))
    store.erase(sorted(gone), load_key(run_dir).unit)
    return store


def test_a_repeated_request_still_tells_deleted_people_from_unknown_ones(run_dir: Path) -> None:
    store = FakeStore(make_rows(20))
    request = DeletionRequest(["1", "2", "nobody"], request_id="R", skip_invalid=True)
    with open_releases(run_dir, make_facts(), store) as releases:
        releases.delete(DeletionRequest(["1"]))
        first = releases.delete(request)
    # As the program opens a run later: nobody names those who are erased any more.
    left = {str(unit): 1 for unit in range(20) if str(unit) not in ("1", "2")}
    with open_releases(run_dir, make_facts(samples_per_unit=left), store) as releases:
        again = releases.delete(request)
    assert again.repeated
    assert (again.already, again.unknown) == (first.already, first.unknown) == (("1",), ("nobody",))


def test_a_repeated_request_returns_the_first_receipt(run_dir: Path) -> None:
    facts, store = make_facts(), FakeStore(make_rows(20))
    first = DeletionRequest(["3", "nobody", "4"], request_id="R", skip_invalid=True)
    with open_releases(run_dir, facts, store) as releases:
        receipt = releases.delete(first)
        releases.delete(DeletionRequest(["5"]))
    before = files_of(run_dir)
    with open_releases(run_dir, facts, store) as releases:
        again = releases.delete(DeletionRequest([4, 3, "nobody"], request_id="R"))
    assert again.repeated
    assert (again.release, again.units_deleted) == (receipt.release, receipt.units_deleted)
    assert again.request_id == "R"
    assert again.unknown == receipt.unknown == ("nobody",)
    assert files_of(run_dir) == before


@pytest.mark.parametrize(
    "other",
    [DeletionRequest(["3"], "R"), DeletionRequest(["3", "4"], "R", epsilon=1.0, delta=1e-5)],
)
def test_another_request_under_the_same_id_is_refused(
    run_dir: Path, other: DeletionRequest
) -> None:
    with open_releases(run_dir, make_facts(), FakeStore(make_rows(20))) as releases:
        releases.delete(DeletionRequest(["3", "4"], "R"))
        with pytest.raises(RequestConflictError, match="'R' was used for another"):
            releases.delete(other)


def test_unknown_and_deleted_units_are_each_named_and_stop_the_batch(run_dir: Path) -> None:
    facts, store = make_facts(), FakeStore(make_rows(20))
    with open_releases(run_dir, facts, store) as releases:
        releases.delete(DeletionRequest(["3", "4"]))
        before = files_of(run_dir)
        with pytest.raises(UnknownUnitsError) as unknown:
            releases.delete(DeletionRequest(["5", "99", "../x", 'a"b', "3"]))
        with pytest.raises(AlreadyDeletedError, match="already deleted: '3', '4'") as already:
            releases.delete(DeletionRequest(["5", "3", "4"]))
        assert files_of(run_dir) == before
    assert unknown.value.unknown == ("99", "../x", 'a"b')
    assert unknown.value.already == ("3",)
    for name in ("'99'", "'../x'", "'a\"b'", "'3'"):
        assert name in str(unknown.value)
    assert already.value.already == ("3", "4")
    assert "5" in store.rows


def test_skip_invalid_deletes_the_others(run_dir: Path) -> None:
    facts, store = make_facts(), FakeStore(make_rows(20))
    with open_releases(run_dir, facts, store) as releases:
        releases.delete(DeletionRequest(["3"]))
        receipt = releases.delete(DeletionRequest(["5", "99", "3"], skip_invalid=True))
        nobody = releases.delete(DeletionRequest(["99", "3"], skip_invalid=True))
    assert (receipt.release, receipt.units_deleted) == (2, 1)
    assert (receipt.unknown, receipt.already) == (("99",), ("3",))
    assert (nobody.release, nobody.units_deleted) == (None, 0)
    assert not (run_dir / "releases" / "3").exists()


def test_a_dry_run_answers_as_the_real_one_and_changes_nothing(run_dir: Path) -> None:
    facts, store = make_facts(), FakeStore(make_rows(20))
    with open_releases(run_dir, facts, store) as releases:
        before = files_of(run_dir)
        receipt = releases.delete(DeletionRequest(["5"], dry_run=True))
        with pytest.raises(UnknownUnitsError):
            releases.delete(DeletionRequest(["99"], dry_run=True))
        assert files_of(run_dir) == before
        assert receipt.dry_run
        assert (receipt.release, receipt.units_deleted) == (None, 1)
        assert releases.delete(DeletionRequest(["5"])).release == 1


def test_a_damaged_row_stops_the_request_and_nothing_else(run_dir: Path) -> None:
    facts, store = make_facts(), FakeStore(make_rows(20), damaged="3")
    with open_releases(run_dir, facts, store) as releases:
        with pytest.raises(RowCorruptError, match="unit 3"):
            releases.delete(DeletionRequest(["2", "3"], request_id="R"))
        assert releases.verify() == []
        # Neither the units nor the id of the refused request are taken.
        assert releases.delete(DeletionRequest(["2"], request_id="R")).release == 1
    assert [path.name for path in (run_dir / "releases").iterdir()] == ["1"]
    assert not list((run_dir / "internal").glob("staged-*"))


def test_accepted_requests_become_one_release(run_dir: Path) -> None:
    facts, store = make_facts(), FakeStore(make_rows(20))
    with open_releases(run_dir, facts, store) as releases:
        for unit in ("4", "8"):
            assert releases.accept(DeletionRequest([unit], request_id=f"R{unit}")).release is None
        with pytest.raises(AlreadyDeletedError):
            releases.accept(DeletionRequest(["8", "9"]))
        assert releases.accept(DeletionRequest(["8"], request_id="R8")).repeated
    assert not list((run_dir / "releases").iterdir())
    with open_releases(run_dir, facts, store) as releases:
        assert releases.process_waiting() == []
        receipts = [releases.delete(DeletionRequest([u], f"R{u}")) for u in ("4", "8")]
    assert [(r.release, r.units_deleted, r.repeated) for r in receipts] == [(1, 1, True)] * 2
    assert np.array_equal(released(run_dir, 1), expected(facts, ["4", "8"]))


def test_waiting_requests_are_carried_out_with_the_next_deletion(run_dir: Path) -> None:
    facts = make_facts()
    with open_releases(run_dir, facts, FakeStore(make_rows(20), damaged="4")) as releases:
        releases.accept(DeletionRequest(["4"]))
        receipt = releases.delete(DeletionRequest(["5"]))
    assert "1 earlier requests keep waiting: row of unit 4" in receipt.warnings[0]
    store = FakeStore(make_rows(20))
    store.erase(["5"], load_key(run_dir).unit)
    with open_releases(run_dir, facts, store) as releases:
        assert releases.delete(DeletionRequest(["6"])).release == 3
    assert np.array_equal(released(run_dir, 3), expected(facts, ["4", "5", "6"]))


def test_the_last_sample_cannot_be_deleted(run_dir: Path) -> None:
    facts, store = make_facts(), FakeStore(make_rows(20))
    with open_releases(run_dir, facts, store) as releases:
        releases.accept(DeletionRequest(["0"]))
        with pytest.raises(RetrainRequiredError, match="no training sample would remain"):
            releases.delete(DeletionRequest([str(unit) for unit in range(1, 20)]))


def test_a_second_process_is_refused_and_told_who_is_there(run_dir: Path) -> None:
    facts, store = make_facts(), FakeStore(make_rows(20))
    with (
        open_releases(run_dir, facts, store),
        pytest.raises(WriterConflictError, match=r"in use by process \d+ on"),
    ):
        open_releases(run_dir, facts, store)
    open_releases(run_dir, facts, store).close()


def test_what_the_operator_holds_is_his_alone(run_dir: Path) -> None:
    with open_releases(run_dir, make_facts(), FakeStore(make_rows(20))) as releases:
        releases.delete(DeletionRequest(["5"]))
    private = [run_dir / "internal", run_dir / "ledger.sqlite", *(run_dir / "internal").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in private} == {0}
    assert [path.name for path in (run_dir / "internal").iterdir()] == [
        "weighted-sum-1.safetensors"
    ]


def test_a_repaired_run_starts_a_new_sum(run_dir: Path) -> None:
    facts, store = make_facts(), FakeStore(make_rows(20))
    with open_releases(run_dir, facts, store) as releases:
        releases.delete(DeletionRequest(["5"]))
    left = {str(unit): 1 for unit in range(20) if unit != 5}
    repaired = make_facts(
        generation=1,
        trained_P=facts.trained_P * 2,
        samples_per_unit=left,
        rule=DeletionRule("remaining", "left-out", 19, 4),
    )
    with open_releases(run_dir, repaired, store) as releases:
        with pytest.raises(AlreadyDeletedError):
            releases.delete(DeletionRequest(["5"]))
        releases.delete(DeletionRequest(["6"]))
        assert releases.verify() == []
    state = DeletionState(18 * make_rows(20)["6"], 1)
    by_hand = apply_deletion(repaired.rule, repaired.trained_P, state)
    assert np.array_equal(released(run_dir, 2), by_hand)
    with open_releases(run_dir, facts, store) as releases, pytest.raises(DamagedRunError):
        releases.delete(DeletionRequest(["7"]))


def test_pruning_removes_what_is_held_and_ends_deletions(run_dir: Path) -> None:
    facts, store = make_facts(), FakeStore(make_rows(20))
    with open_releases(run_dir, facts, store) as releases:
        releases.delete(DeletionRequest(["5"], request_id="R"))
        releases.prune()
        assert not list((run_dir / "internal").iterdir())
        with pytest.raises(PrunedError, match="retrain"):
            releases.delete(DeletionRequest(["6"]))
        assert releases.delete(DeletionRequest(["5"], request_id="R")).repeated
        assert releases.verify() == []


def test_the_model_keeps_buffers_that_no_step_changes(run_dir: Path) -> None:
    buffers = {"norm.running_mean": np.ones(3, np.float32), "norm.count": np.array(7)}
    facts = make_facts(buffers=buffers)
    with open_releases(run_dir, facts, FakeStore(make_rows(20))) as releases:
        releases.delete(DeletionRequest(["5"]))
    tensors = load_file(run_dir / "releases" / "1" / "model.safetensors")
    assert list(tensors["norm.running_mean"]) == [1, 1, 1]
    assert tensors["norm.count"] == 7
    assert tensors["weight"].shape == (2, 5)


@pytest.mark.parametrize(
    "fields",
    [
        {"units": []},
        {"units": "17"},
        {"units": ["1"], "epsilon": 1e308, "delta": 1e-5},
        {"units": ["1"], "request_id": ""},
        {"units": ["1"], "epsilon": 0.0, "delta": 1e-5},
        {"units": ["1"], "epsilon": -1.0, "delta": 1e-5},
        {"units": ["1"], "epsilon": float("nan"), "delta": 1e-5},
        {"units": ["1"], "epsilon": float("inf"), "delta": 1e-5},
        {"units": ["1"], "epsilon": 1.0, "delta": 0.0},
        {"units": ["1"], "epsilon": 1.0, "delta": 1.0},
        {"units": ["1"], "epsilon": 1.0, "delta": float("nan")},
        {"units": ["1"], "epsilon": 1.0},
        {"units": ["1"], "delta": 1e-5},
    ],
    ids=str,
)
def test_a_request_that_is_none_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="expected"):
        DeletionRequest(**fields)  # type: ignore[arg-type]


def test_another_run_is_refused(run_dir: Path) -> None:
    store = FakeStore(make_rows(20))
    open_releases(run_dir, make_facts(), store).close()
    with pytest.raises(LedgerError, match="belongs to another run"):
        open_releases(run_dir, make_facts(run_digest="another"), store)
    open_releases(run_dir, make_facts(), store).close()
