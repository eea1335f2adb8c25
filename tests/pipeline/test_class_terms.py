"""Class terms: released parameters are the formula of retrainings, whatever the order of requests."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file

from cluster.inspection import verify_run
from cluster.upkeep import back_up, restore_backup
from pipeline import RunDirectory, delete, precompute, repair, retrain
from pipeline.approximators import class_halves
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.certificates.declaration import check_settings
from pipeline.data import Dataset
from pipeline.deletion.class_terms import class_terms_of, terms_folder
from pipeline.errors import ConfigError, DamagedRunError
from pipeline.evaluation.class_trials import run_class_trials
from pipeline.evaluation.comparison import distances
from pipeline.evaluation.trials import local_sum, unlearn
from pipeline.run.class_masses import MassTable
from pipeline.run.problem import Problem
from pipeline.training.retraining import retrain as retrained
from storage.store import ApproximatorStore
from tests.cluster.small_run import config, trained_run
from tests.pipeline.fake_store import use_key

Vector = npt.NDArray[np.float64]
SAMPLES = 60
WIDE: dict[str, Any] = {
    "data": {"num_train": SAMPLES},
    "recursion": {"chunk": 16, "class_terms": True},
    "storage": {"block": 16},
}
EXACT = {**WIDE, "recursion": {**WIDE["recursion"], "dtype": "float64"}}


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terms") / "run"
    precompute(trained_run(folder, **WIDE))
    return folder


@pytest.fixture
def run(computed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    use_key(monkeypatch, tmp_path)
    return RunDirectory.open(shutil.copytree(computed, tmp_path / "run"))


def released(run: RunDirectory, number: int) -> npt.NDArray[np.float32]:
    tensors = load_file(run.path / "releases" / str(number) / "model.safetensors")
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors, reverse=True)])


def formula(run: RunDirectory, problem: Problem, chosen: Sequence[int]) -> Vector:
    """w_T + corrected sum + sum_c (f_c - f)^2 r_c by its definition, from retrainings in float64."""
    store, trajectory = ApproximatorStore.open(run.store_url), run.trajectory()
    trained_P = trajectory.trained().double().numpy()
    labels_n = problem.data.targets.numpy()
    size = len(labels_n)
    rows_NP = store.read_rows_at(range(size)).astype(np.float64)

    def summed(units: Iterable[int]) -> Vector:
        units = list(units)
        return (size - 1) * rows_NP[units].sum(0) / (size - len(units))

    def moved(units: Sequence[int]) -> Vector:
        mask_n = torch.zeros(size, dtype=torch.bool)
        mask_n[list(units)] = True
        return retrained(problem, trajectory.schedule, mask_n).double().numpy() - trained_P

    halves = MassTable.of(problem.data, None).halves([problem.config.seed, 0])
    shares, terms = {}, {}
    for number, half in halves.items():
        members = np.flatnonzero(labels_n == number)
        assert set(half.tolist()) < set(members.tolist())
        assert len(half) == len(members) // 2
        terms[number] = moved(half) - summed(half)
        shares[number] = np.sum(labels_n[list(chosen)] == number) / len(half)
    mean = np.mean(list(shares.values()))
    bent = sum((shares[number] - mean) ** 2 * terms[number] for number in halves)
    return trained_P + summed(chosen) + bent


def test_unlearned_parameters_are_the_formula(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", **EXACT)
    store = precompute(run)
    problem, terms = run.problem(), class_terms_of(run)
    assert terms is not None
    trained_P = run.trajectory().trained().numpy()
    of_one = np.flatnonzero(problem.data.targets.numpy() == 3)[:4]
    for units in (of_one, np.arange(0, SAMPLES, 5)):
        found_P, _ = unlearn(problem, units, trained_P, local_sum(store), terms)
        np.testing.assert_allclose(
            found_P, formula(run, problem, units.tolist()), rtol=0, atol=1e-10
        )
        without_P, _ = unlearn(problem, units, trained_P, local_sum(store))
        assert np.abs(found_P - without_P).max() > 1e-6


def test_deleted_users_count_in_every_class_that_they_hold(tmp_path: Path) -> None:
    data = {"num_train": 300, "unit": "user", "user_column": "writer"}
    run = trained_run(
        tmp_path / "run", **{**WIDE, "data": data, "recursion": {"class_terms": True}}
    )
    store = precompute(run)
    problem, terms, sum_rows = run.problem(), class_terms_of(run), local_sum(store)
    assert terms is not None
    trained_P, units = run.trajectory().trained().numpy(), np.array([1, 4])
    labels_n, owners_n = problem.data.targets.numpy(), problem.data.unit_of_sample.numpy()
    halves = MassTable.of(problem.data, None).halves([problem.config.seed, 0])
    shares = np.array(
        [
            np.sum(labels_n[np.isin(owners_n, units)] == number)
            / np.sum(labels_n[np.isin(owners_n, half)] == number)
            for number, half in halves.items()
        ]
    )
    assert 2 <= len(halves) == len(terms.numbers)
    found_P, _ = unlearn(problem, units, trained_P, sum_rows, terms)
    wanted_P = unlearn(problem, units, trained_P, sum_rows)[0].astype(np.float64)
    for number, share in zip(halves, shares, strict=True):
        wanted_P += (share - shares.mean()) ** 2 * terms.vector(number)
    np.testing.assert_allclose(found_P, wanted_P, rtol=0, atol=1e-6)
    assert np.abs(shares - shares.mean()).max() > 0.1


def test_releases_are_the_formula_in_any_order_and_grouping(
    run: RunDirectory, tmp_path: Path
) -> None:
    other = RunDirectory.open(shutil.copytree(run.path, tmp_path / "other"))
    wanted_P = formula(run, run.problem(), [3, 7, 20, 41, 42])
    for units in (["3", "7"], ["20"], ["41", "42"]):
        delete(run, units)
        assert verify_run(run).damage == []
    delete(other, ["42", "20"])
    delete(other, ["41", "7", "3"])
    a_P, b_P = released(run, 3), released(other, 2)
    assert np.array_equal(a_P, b_P)
    np.testing.assert_allclose(a_P, wanted_P, rtol=0, atol=1e-6)


def test_masses_halves_and_members_of_users() -> None:
    # Users 0 and 1 hold most of class 0, 2 and 3 of class 1, 4 as much of both, 5 nothing of weight.
    owners = [0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5]
    targets = [0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 2]
    weights = np.array([5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 0])
    data = Dataset(
        inputs=torch.zeros(12, 1),
        targets=torch.tensor(targets),
        unit_of_sample=torch.tensor(owners),
        units=tuple("abcdef"),
        test_inputs=torch.zeros(1, 1),
        test_targets=torch.zeros(1, dtype=torch.long),
        num_classes=3,
    )
    table = MassTable.of(data, weights)
    members = {number: units.tolist() for number, units in table.members().items()}
    assert members == {0: [0, 1, 4], 1: [2, 3]}
    assert table.of_units(np.array([0, 2])).tolist() == [15, 15, 0]
    mass_NW, class_NW = table.records()
    assert mass_NW.tolist() == [[10, 5], [10, 0], [5, 10], [5, 0], [5, 5], [0, 0]]
    assert class_NW.tolist() == [[0, 1], [0, 0], [0, 1], [1, 0], [0, 1], [2, 0]]
    for seed in range(8):
        halves = {number: units.tolist() for number, units in table.halves([seed, 0]).items()}
        # 25 of class 0 in 10 + 10 + 5: the half is one of 10, or 5, or both of the first two drawn.
        assert halves[0] in ([0], [1], [4]) or 4 in halves[0]
        assert halves[1] in ([2], [3])
        assert table.of_units(np.array(halves[0]))[0] <= 15
    assert MassTable.of(data, weights, torch.arange(5)).members().keys() == {0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"data": {"num_train": 3}, "training": {"batch_size": 2}},
            "two classes of at least two units",
        ),
        ({"certificate": {"kind": "published", "max_units": 2}}, "choose calibrated"),
        (
            {"certificate": {"kind": "certified", "max_units": 2, "feature_norm_cap": 8}},
            "calibrated",
        ),
        (
            {"data": {"source": "diabetes"}, "training": {"loss": "squared-error"}},
            "each of one class",
        ),
    ],
)
def test_what_class_terms_cannot_serve_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    wanted = {key: {**WIDE.get(key, {}), **changes.get(key, {})} for key in {*WIDE, *changes}}
    with pytest.raises(ConfigError, match=words):
        check_settings(config(**wanted))
        trained_run(tmp_path / "run", **wanted)


def test_without_class_terms_nothing_of_them_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    run = trained_run(tmp_path / "run")
    precompute(run)
    delete(run, ["3"])
    certificate = (run.path / "releases" / "1" / "certificate.json").read_text()
    assert "class" not in certificate
    assert [path.name for path in (run.path / "internal").iterdir()] == [
        "weighted-sum-1.safetensors"
    ]
    assert list(load_file(run.path / "internal" / "weighted-sum-1.safetensors")) == ["weighted_sum"]
    settings = (run.trajectory_folder / "settings.json").read_text()
    assert "class_terms" not in settings


def test_what_a_unit_held_of_each_class_is_gone_with_it(run: RunDirectory) -> None:
    terms = class_terms_of(run)
    assert terms is not None
    path = terms.units.path
    before = load_file(path)
    needles = {row: before["check"][row].tobytes() for row in (3, 4)}
    assert all(needle in path.read_bytes() for needle in needles.values())
    delete(run, ["3"])
    found = [
        (row, file.name)
        for file in run.path.rglob("*")
        if file.is_file()
        for row, needle in needles.items()
        if needle in file.read_bytes()
    ]
    assert found == [(4, path.name)]
    after = load_file(path)
    for name, column in before.items():
        assert not after[name][3].any()
        others = np.arange(SAMPLES) != 3
        assert np.array_equal(after[name][others], column[others])
    # The ledger tells the label of nobody.
    masses_C = load_file(run.path / "internal" / "weighted-sum-1.safetensors")["masses"]
    assert masses_C.sum() == 1
    assert b"masses" not in (run.path / "ledger.sqlite").read_bytes()


def test_a_certificate_says_what_class_terms_mean(run: RunDirectory) -> None:
    delete(run, ["3"])
    terms = class_terms_of(run)
    said = json.loads((run.path / "releases" / "1" / "certificate.json").read_text())
    assert terms is not None
    assert said["class_terms"]["digest"] == terms.digest
    assert "does not erase them" in said["class_terms"]["statement"]
    assert any("class terms" in text for text in said["still_held_by_the_operator"])
    assert "Class terms" in (run.path / "releases" / "1" / "certificate.txt").read_text()


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def edited(path: Path) -> None:
    body = json.loads(path.read_text())
    body["half_masses"][0] += 1
    path.write_text(json.dumps(body))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("term-1.safetensors", flipped, "expected the term with digest"),
        ("term-1.safetensors", Path.unlink, "no file"),
        ("index.json", edited, "was made with class terms of digest"),
        ("index.json", cut, "damaged"),
        ("unit-masses.safetensors", cut, "not the file of this run"),
        ("unit-masses.safetensors", flipped, "record of row 59 is damaged"),
    ],
)
def test_damage_is_named_and_nothing_is_deleted(
    run: RunDirectory, name: str, change: Callable[[Path], Any], words: str
) -> None:
    delete(run, ["3"])
    path = terms_folder(run.path, 0) / name
    change(path)
    with pytest.raises(DamagedRunError, match=words):
        delete(run, ["59"])
    assert sorted(p.name for p in (run.path / "releases").iterdir()) == ["1"]
    damage = verify_run(run).damage
    assert any(words in item["reason"] for item in damage), damage


def test_terms_that_are_gone_with_rows_come_back_by_retraining_alone(run: RunDirectory) -> None:
    names = [str(unit) for unit in range(20)]
    delete(run, names)
    (terms_folder(run.path, 0) / "index.json").unlink()
    for path in terms_folder(run.path, 0).glob("term-*"):
        path.unlink()
    with pytest.raises(DamagedRunError, match="computed again once units"):
        precompute(run)
    retrain(run)
    delete(run, ["30"])
    assert verify_run(run).damage == []


def test_an_index_made_anew_brings_no_deleted_unit_back(run: RunDirectory) -> None:
    delete(run, ["3"])
    index = terms_folder(run.path, 0) / "index.json"
    before = index.read_bytes(), (index.parent / "unit-masses.safetensors").read_bytes()
    index.unlink()
    precompute(run)
    assert before == (index.read_bytes(), (index.parent / "unit-masses.safetensors").read_bytes())
    assert verify_run(run).damage == []


def test_a_run_whose_terms_are_missing_deletes_nothing(run: RunDirectory) -> None:
    shutil.rmtree(terms_folder(run.path, 0))
    with pytest.raises(ConfigError, match="are not computed yet; run `unlearn precompute`"):
        delete(run, ["3"])
    precompute(run)
    assert delete(run, ["3"]).release == 1


def test_an_interrupted_call_repeats_no_finished_retraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = trained_run(tmp_path / "run", **WIDE), []

    def dying(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return retrained(*arguments, **more)

    monkeypatch.setattr(class_halves, "retrain", dying)
    with pytest.raises(KeyboardInterrupt):
        precompute(run)
    assert len(list(terms_folder(run.path, 0).glob("term-*"))) == 3
    assert class_terms_of(run) is None
    told: list[tuple[int, int]] = []
    job = PrecomputeJob.of_training(run)
    job.finish(lambda done, total: told.append((done, total)))
    terms = class_terms_of(run)
    assert terms is not None
    assert len(calls) == 4 + len(terms.numbers) - 3
    assert told[-1][0] == told[-1][1]
    whole = trained_run(tmp_path / "whole", **WIDE)
    precompute(whole)
    other = class_terms_of(whole)
    assert other is not None
    assert other.digests == terms.digests


def test_a_restored_backup_deletes_on_to_the_same_bits(run: RunDirectory, tmp_path: Path) -> None:
    delete(run, ["3", "4"])
    back_up(run, tmp_path / "backup")
    assert not list((tmp_path / "backup").rglob("unit-masses*"))
    other = RunDirectory.open(shutil.copytree(run.path, tmp_path / "other"))
    for path in (run.path / "internal").glob("weighted-sum-*"):
        path.unlink()
    (terms_folder(run.path, 0) / "term-2.safetensors").unlink()
    restore_backup(run, tmp_path / "backup")
    assert verify_run(run).damage == []
    for each in (run, other):
        delete(each, ["9"])
    assert np.array_equal(released(run, 2), released(other, 2))


def test_a_retrained_generation_has_terms_of_its_own(run: RunDirectory) -> None:
    delete(run, ["3", "4"])
    retrain(run)
    terms = class_terms_of(run, 1)
    assert terms is not None
    assert not terms_folder(run.path, 0).exists()
    held = load_file(terms.units.path)["check"].any(1)
    assert np.flatnonzero(~held).tolist() == [3, 4]
    delete(run, ["9", "19"])
    assert verify_run(run).damage == []
    # As a run that was trained without them: retrainings along the new trajectory.
    problem, trajectory = run.problem(), run.trajectory(1)
    scheduled = torch.cat(trajectory.schedule.sample_ids).unique()
    half = MassTable.of(problem.data, None, scheduled).halves([problem.config.seed, 1])[1]
    mask_n = torch.zeros(SAMPLES, dtype=torch.bool)
    mask_n[half] = True
    moved_P = retrained(problem, trajectory.schedule, mask_n) - trajectory.trained()
    summed_P = (SAMPLES - 3) * rows_at(run, half).sum(0) / (SAMPLES - 2 - len(half))
    np.testing.assert_allclose(terms.vector(1), moved_P.numpy() - summed_P, rtol=0, atol=1e-5)


def test_a_repaired_generation_has_terms_of_its_own(run: RunDirectory, tmp_path: Path) -> None:
    delete(run, ["3", "4"])
    other = RunDirectory.open(shutil.copytree(run.path, tmp_path / "other"))
    repair(run, epochs=1)
    terms, trajectory = class_terms_of(run, 1), run.trajectory(1)
    assert terms is not None
    assert not terms_folder(run.path, 0).exists()
    # The fine-tuning starts at the release, its class terms included.
    assert np.array_equal(trajectory.parameters_before(0).numpy(), released(run, 1))
    # A half's is the same from the release that deletes the half as well.
    problem = run.problem()
    scheduled = torch.cat(trajectory.schedule.sample_ids).unique()
    half = MassTable.of(problem.data, None, scheduled).halves([problem.config.seed, 1])[1]
    delete(other, [str(unit) for unit in half])
    moved = replace(problem, initial_P=torch.from_numpy(released(other, 2)))
    mask_n = torch.zeros(SAMPLES, dtype=torch.bool)
    mask_n[half] = True
    moved_P = retrained(moved, trajectory.schedule, mask_n) - trajectory.trained()
    summed_P = (SAMPLES - 3) * rows_at(run, half).sum(0) / (SAMPLES - 2 - len(half))
    np.testing.assert_allclose(terms.vector(1), moved_P.numpy() - summed_P, rtol=0, atol=1e-5)
    delete(run, ["9", "19"])
    assert load_file(run.path / "internal" / "weighted-sum-2.safetensors")["masses"].sum() == 2
    assert verify_run(run).damage == []
    # Its retrainings start from what only the old generation could tell.
    (terms_folder(run.path, 1) / "index.json").unlink()
    with pytest.raises(DamagedRunError, match="of repaired generation 1 are gone"):
        precompute(run)


def rows_at(run: RunDirectory, units: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    store = ApproximatorStore.open(run.store_url)
    return store.read_rows_at(units.tolist()).astype(np.float64)


def test_terms_halve_the_error_of_one_class_and_leave_random_sets_alone(tmp_path: Path) -> None:
    size = 200
    run = trained_run(
        tmp_path / "run",
        data={"num_train": size},
        model={"name": "mlp", "hidden": [16], "activation": "tanh"},
        training={"epochs": 10, "batch_size": 32, "learning_rate": 0.2, "l2": 0.0},
        recursion={"chunk": 128, "class_terms": True},
        storage={"block": 256},
    )
    store, problem, terms = precompute(run), run.problem(), class_terms_of(run)
    assert terms is not None
    trajectory, sum_rows = run.trajectory(), local_sum(store)
    found = run_class_trials(problem, trajectory, terms, range(size), sum_rows)
    assert found is not None
    assert found["units"] > 5 and found["sets"] == 3
    assert found["relative_error"] < 0.6 * found["without_terms"]
    trained_P, generator = trajectory.trained(), np.random.default_rng(0)
    ratios = []
    for _ in range(3):
        units = np.sort(generator.choice(size, size // 5, replace=False))
        mask_n = problem.data.samples_of(torch.from_numpy(units))
        retrained_P = retrained(problem, trajectory.schedule, mask_n)
        apart = [
            distances(
                trained_P,
                torch.from_numpy(unlearn(problem, units, trained_P.numpy(), sum_rows, used)[0]),
                retrained_P,
            ).relative_error
            for used in (terms, None)
        ]
        ratios.append(apart[0] / apart[1])
    assert max(ratios) < 1.1
