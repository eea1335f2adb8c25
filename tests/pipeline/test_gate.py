"""The gate: what is refused by its measured error, what is let through; a refusal changes nothing."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.console import Reporter
from cluster.inspection import status_of, verify_run
from cluster.upkeep import prune_run
from cluster.whole_run import measure
from pipeline import DeletionRequest, RunDirectory, delete, repair
from pipeline.deletion.configure import configure
from pipeline.deletion.delete import accept, opened_for_deletion, release_waiting
from pipeline.deletion.gate import ErrorGate, bucket
from pipeline.errors import ConfigError, ErrorLimitError, RequestError, WaitingError
from pipeline.run.error_curve import ErrorCurve, ErrorPoint
from storage.ledger_records import ReleaseRecord
from tests.pipeline.fake_store import make_record


@pytest.fixture
def run(run: RunDirectory) -> RunDirectory:
    """The small run of 22 units, measured: .1 left of one, .3 of four, .7 of eight."""
    measured(run, {1: 0.1, 4: 0.3, 8: 0.7})
    return run


def measured(run: RunDirectory, errors: dict[int, float]) -> None:
    points = (
        ErrorPoint(units, units, error, error / 2, error * 2, 3, "measured")
        for units, error in errors.items()
    )
    ErrorCurve("trials", "hvp", tuple(points)).write(run)


def digests(folder: Path) -> dict[str, str]:
    paths = (path for path in sorted(folder.rglob("*")))
    return {
        str(path.relative_to(folder)): blake3(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in paths
    }


def units(stop: int, start: int = 0) -> list[int]:
    return list(range(start, stop))


def records(run: RunDirectory) -> list[ReleaseRecord]:
    with opened_for_deletion(run) as releases:
        return releases._run.ledger.releases()


def certificate(run: RunDirectory, release: int) -> dict[str, Any]:
    path = run.path / "releases" / str(release) / "certificate.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_refused_deletion_touches_no_file(run: RunDirectory) -> None:
    before = digests(run.path)
    with pytest.raises(ErrorLimitError, match="measured error of 8 samples is 70%") as refusal:
        delete(run, units(8))
    for way_out in ("unlearn repair", "unlearn retrain", "--accept-error 0.71"):
        assert way_out in str(refusal.value)
    with pytest.raises(ErrorLimitError):
        accept(run, DeletionRequest(units(8)))
    with pytest.raises(ErrorLimitError):
        delete(run, DeletionRequest(units(8), dry_run=True))
    assert digests(run.path) == before
    # Neither where there is a ledger already.
    delete(run, [0])
    before = digests(run.path)
    with pytest.raises(ErrorLimitError):
        delete(run, units(8, start=1))
    assert digests(run.path) == before
    assert not verify_run(run).damage


def test_the_command_ends_in_one_line_and_exit_1(run: RunDirectory) -> None:
    refused = invoke("delete", run.path, "--ids", "0,1,2,3,4,5,6,7")
    assert refused.exit_code == 1 and isinstance(refused.exception, ErrorLimitError)


@pytest.mark.parametrize("limit, passes", [(0.69, False), (0.7, True), (0.71, True)])
def test_the_limit_itself_is_let_through(run: RunDirectory, limit: float, passes: bool) -> None:
    run = configure(run, [f"evaluation.max_error={limit}"])
    if passes:
        assert delete(run, units(8)).release == 1
    else:
        with pytest.raises(ErrorLimitError):
            delete(run, units(8))


def test_what_is_deleted_and_what_waits_counts(run: RunDirectory) -> None:
    delete(run, units(2))
    accept(run, DeletionRequest(units(4, start=2)))
    with pytest.raises(ErrorLimitError, match="measured error of 8 samples"):
        accept(run, DeletionRequest(units(8, start=4)))
    assert [receipt.release for receipt in release_waiting(run)] == [2]
    with pytest.raises(ErrorLimitError, match=r"measured error of 9 samples.*extrapolated"):
        delete(run, units(9, start=4))


def test_a_notable_error_is_a_warning(run: RunDirectory) -> None:
    assert not any("error" in line for line in delete(run, [0]).warnings)
    (warning,) = [line for line in delete(run, units(4, start=1)).warnings if "error" in line]
    assert warning == "the measured error of 4 samples is 30% of no unlearning"


def test_an_accepted_error_is_recorded_and_verified(run: RunDirectory) -> None:
    with pytest.raises(ErrorLimitError, match="above the 60% of --accept-error"):
        delete(run, DeletionRequest(units(8), accept_error=0.6))
    receipt = delete(run, DeletionRequest(units(8), accept_error=0.9))
    assert any("70%" in line and "accepted" in line for line in receipt.warnings)
    (record,) = records(run)
    assert record.measured_error is not None
    assert record.measured_error["accepted"] == 0.9
    said = certificate(run, 1)
    assert (said["wording"], said["error"]["accepted"], said["error"]["limit"]) == (3, 0.9, 0.5)
    assert "accepted by the operator up to 90%" in said["error"]["statement"]
    text = (run.path / "releases" / "1" / "certificate.txt").read_text()
    assert said["error"]["statement"] in text
    assert not verify_run(run).damage
    # The next one is not accepted for it.
    with pytest.raises(ErrorLimitError):
        delete(run, [8])


def test_the_certificate_states_the_error_of_the_rounded_number(run: RunDirectory) -> None:
    delete(run, units(3))
    said = certificate(run, 1)["error"]
    assert said["units_at_most"] == 5
    assert said["error"] == pytest.approx(ErrorCurve.read(run).at(5).error)  # type: ignore[union-attr]
    assert said["statement"].startswith("measured error at this size, interpolated")
    assert "6 trials; not a proof" in said["statement"]


def test_a_certificate_with_another_error_is_not_the_ledgers(run: RunDirectory) -> None:
    delete(run, units(4))
    path = run.path / "releases" / "1" / "certificate.json"
    path.write_text(path.read_text().replace('"trials": 6', '"trials": 600'))
    assert [item["reason"] for item in verify_run(run).damage if "certificate" in item["where"]]


def test_where_nothing_was_measured_it_goes_through_with_a_warning(run: RunDirectory) -> None:
    (run.path / "measured-error.json").unlink()
    receipt = delete(run, units(20))
    assert any(
        "error not measured" in line and "unlearn measure" in line for line in receipt.warnings
    )
    assert "error not measured" in certificate(run, 1)["error"]["statement"]
    assert not verify_run(run).damage


def test_what_must_be_measured_is_refused_before_it_is(run: RunDirectory) -> None:
    (run.path / "measured-error.json").unlink()
    run = configure(run, ["evaluation.require_measured=true"])
    before = digests(run.path)
    with pytest.raises(ErrorLimitError, match=r"no measured error.*unlearn measure"):
        delete(run, [0])
    assert digests(run.path) == before


def test_without_a_limit_everything_goes_through_and_the_certificate_says_so(
    run: RunDirectory,
) -> None:
    run = configure(run, ["evaluation.max_error=null"])
    delete(run, units(20))
    said = certificate(run, 1)["error"]
    assert said["limit"] is None and "no limit" in said["statement"]
    assert not verify_run(run).damage


def test_after_a_repair_the_curve_is_no_longer_the_models(run: RunDirectory) -> None:
    delete(run, units(4))
    repair(run, epochs=1)
    receipt = delete(run, units(14, start=4))
    assert any("not measured for the repaired model" in line for line in receipt.warnings)
    assert "not measured for the repaired model" in certificate(run, 2)["error"]["statement"]
    assert not verify_run(run).damage


def test_only_counts_decide(run: RunDirectory) -> None:
    """Any eight samples are refused alike, with the same words."""
    said = set()
    for chosen in (units(8), units(22, start=14), units(22)[::3]):
        with pytest.raises(ErrorLimitError) as refusal:
            delete(run, chosen)
        said.add(str(refusal.value))
    assert len(said) == 1


def test_a_limit_that_was_lowered_stops_what_waits(run: RunDirectory) -> None:
    accept(run, DeletionRequest(units(4)))
    lowered = configure(run, ["evaluation.max_error=0.2"])
    with pytest.raises(WaitingError, match=r"keep waiting.*measured error of 4 samples"):
        release_waiting(lowered)
    raised = configure(lowered, ["evaluation.max_error=0.5"])
    assert [receipt.release for receipt in release_waiting(raised)] == [1]
    assert not verify_run(raised).damage


def test_an_error_accepted_for_a_queued_request_is_kept_with_it(run: RunDirectory) -> None:
    accept(run, DeletionRequest(units(2)))
    accept(run, DeletionRequest(units(8, start=2), accept_error=0.9))
    release_waiting(run)
    assert records(run)[-1].measured_error["accepted"] == 0.9  # type: ignore[index]
    assert not verify_run(run).damage


def test_a_limit_changed_by_hand_is_refused_by_name(run: RunDirectory) -> None:
    delete(run, [0])
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("max_error: 0.5", "max_error: 5.0"))
    with pytest.raises(ConfigError, match=r"changed by hand: evaluation\.max_error"):
        delete(RunDirectory.open(run.path), [1])


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_error_to_accept_is_wrong_use(wrong: float) -> None:
    with pytest.raises(RequestError, match="relative error above 0"):
        DeletionRequest([1], accept_error=wrong)


@pytest.fixture
def gates() -> Iterator[ErrorGate]:
    curve = ErrorCurve("pilot", "hvp", (ErrorPoint(5, 5, 0.3, 0.2, 0.6, 3, "estimated"),))
    yield ErrorGate(curve, unit="user")


def test_an_estimate_is_refused_at_its_upper_end(gates: ErrorGate) -> None:
    with pytest.raises(ErrorLimitError, match=r"5 users is 60%.*estimated"):
        gates.decide(5, 5)
    said = gates.stated(5, 5, 0, None)
    assert (said["error"], said["how"], said["source"]) == (0.6, "estimated", "pilot")


def test_a_damaged_measurement_stops_deletions_in_one_line(run: RunDirectory) -> None:
    (run.path / "measured-error.json").write_text("{}")
    with pytest.raises(ConfigError, match="damaged"):
        delete(run, [0])


@pytest.mark.parametrize(
    "capacity, num_units, expected",
    [(0, 1, 1), (0, 7, 10), (0, 10, 10), (20, 12, 20), (20, 30, 50)],
)
def test_certificates_tell_rounded_numbers(capacity: int, num_units: int, expected: int) -> None:
    assert bucket(capacity, num_units) == expected


def test_records_of_earlier_versions_are_read_and_written_as_they_were() -> None:
    record = make_record(1)
    assert "measured_error" not in record.body()
    assert ReleaseRecord.read(json.dumps(record.body())) == record


def test_measuring_a_run_writes_what_the_gate_reads(computed: Path, tmp_path: Path) -> None:
    run = RunDirectory.open(shutil.copytree(computed, tmp_path / "run"))
    assert ErrorCurve.read(run) is None
    run = configure(run, ["evaluation.deletions=[1,3]", "evaluation.repeats=2"])
    found = measure(run, Reporter(quiet=True))
    curve = ErrorCurve.read(run)
    assert curve is not None and [point.units for point in curve.points] == [1, 3]
    assert [point.samples for point in curve.points] == [1, 3]
    assert [point.trials for point in curve.points] == [2, 2]
    assert [entry["relative_error"] for entry in found["deletions"]] == [
        point.median for point in curve.points
    ]
    assert found["verdict"].startswith("1 sample: ")


def test_status_and_verify_say_the_same(run: RunDirectory) -> None:
    delete(run, units(4))
    sizes = "1 sample: 10% left. 4 samples: 30% left, much. 8 samples: 70% left"
    told = status_of(run)
    assert (told["engine"], told["error_limit"]) == ("hvp", 0.5)
    assert told["verdict"] == f"{sizes}, above the limit of 50%: retrain"
    assert told["error_now"] == "4 samples deleted: 30% left, much"
    assert verify_run(run).verdict == f"{told['verdict']}. Now: {told['error_now']}"
    assert verify_run(run, read_only=True).verdict == verify_run(run).verdict


def test_verify_names_a_measurement_that_cannot_be_read(run: RunDirectory) -> None:
    delete(run, [0])
    (run.path / "measured-error.json").write_text("{}")
    assert [item["where"] for item in verify_run(run).damage] == ["measured-error.json"]


def test_a_refusal_carries_out_nothing_that_waits(run: RunDirectory) -> None:
    accept(run, DeletionRequest([0]))
    with opened_for_deletion(run) as releases:
        with pytest.raises(ErrorLimitError):
            releases.delete(DeletionRequest(units(9, start=1)))
        assert releases.num_waiting() == 1
        assert releases.delete(DeletionRequest([1])).release == 2


def test_a_pruned_run_still_has_a_status(run: RunDirectory) -> None:
    delete(run, [0])
    prune_run(run)
    assert status_of(run)["pruned"] and not verify_run(run).damage
