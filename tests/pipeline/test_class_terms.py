"""Class terms: released parameters are the formula of retrainings, whatever the order of requests."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file

from cluster.inspection import verify_run
from pipeline import RunDirectory, delete, precompute
from pipeline.deletion.class_terms import class_terms_of
from pipeline.evaluation.trials import local_sum, unlearn
from pipeline.run.class_masses import MassTable
from pipeline.run.problem import Problem
from pipeline.training.retraining import retrain as retrained
from storage.store import ApproximatorStore
from tests.cluster.small_run import trained_run
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
