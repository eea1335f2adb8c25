"""Repair: fine-tuning and propagation agree with retraining the same history."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import RunConfig, RunDirectory, delete, load_release, precompute, repair, train
from pipeline.approximators.continuation import Continuation
from pipeline.deletion.weights import DeletionRule, DeletionState, apply_deletion, unit_weights
from pipeline.errors import ConfigError, UnitsRefusedError
from pipeline.models.parameters import flat_parameters
from pipeline.training.retraining import retrain
from storage.store import ApproximatorStore
from tests.pipeline.crashes import StoppedError, stop_after
from tests.pipeline.fake_store import use_key

NUM = 300
FIRST, SECOND = list(range(0, 90)), list(range(90, 105))


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_key(monkeypatch, tmp_path)


def config(**sections: Any) -> RunConfig:
    values: dict[str, Any] = {
        "data": {"source": "digits", "num_train": NUM, "sample_ids": "position"},
        "training": {
            "epochs": 6,
            "batch_size": 32,
            "learning_rate": 0.05,
            "learning_rate_decay": 0.995,
            "l2": 0.01,
        },
        "storage": {"encoding": "float32", "block": 64},
    }
    return RunConfig.from_values({**values, **sections})


def computed(folder: Path, **sections: Any) -> RunDirectory:
    run = train(config(**sections), folder)
    precompute(run)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its approximators, computed once: to be copied."""
    return computed(tmp_path_factory.mktemp("repair") / "run").path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def other(whole: Path, tmp_path: Path) -> RunDirectory:
    """The same run once more, to compare with."""
    return RunDirectory.open(shutil.copytree(whole, tmp_path / "other"))


def released(run: RunDirectory, number: int | None = None) -> Tensor:
    return flat_parameters(load_release(run.path, number))


def retrained(run: RunDirectory, forgotten: list[int]) -> Tensor:
    """Training and fine-tuning again, from the first step on, without the forgotten samples."""
    problem = run.problem()
    mask = torch.zeros(NUM, dtype=torch.bool)
    mask[forgotten] = True
    w_P = retrain(problem, run.trajectory().schedule, mask)
    return retrain(replace(problem, initial_P=w_P), run.trajectory(1).schedule, mask)


@pytest.mark.parametrize("denominator", ["remaining", "batch"])
def test_deletions_after_a_repair_are_retraining_of_the_whole_history(
    denominator: str, tmp_path: Path
) -> None:
    run = computed(tmp_path / "run", retraining={"denominator": denominator})
    trained_P = run.trajectory().trained()
    delete(run, FIRST)
    done = repair(run, epochs=2)
    assert (done.generation, done.num_samples, done.num_steps) == (1, 210, 14)
    repaired_P = released(run, 0)
    delete(run, SECOND)
    expected_P = retrained(run, FIRST + SECOND)
    distance = float((released(run) - expected_P).norm())
    assert distance < 0.1 * float((trained_P - expected_P).norm())
    # Nor would keeping the repaired model have done.
    assert distance < 0.4 * float((repaired_P - expected_P).norm())


def test_without_deletions_repair_is_training_on(run: RunDirectory) -> None:
    repair(run, epochs=1)
    problem, nobody = run.problem(), torch.zeros(NUM, dtype=torch.bool)
    started = replace(problem, initial_P=run.trajectory().trained())
    expected_P = retrain(started, run.trajectory(1).schedule, nobody)
    torch.testing.assert_close(released(run, 0), expected_P)


def test_deleted_units_are_not_trained_on_again(run: RunDirectory) -> None:
    delete(run, FIRST)
    repair(run, epochs=1, learning_rate=0.02)
    schedule = run.trajectory(1).schedule
    assert set(torch.cat(schedule.sample_ids).tolist()) == set(range(90, NUM))
    assert schedule.learning_rates[0] == 0.02
    with pytest.raises(UnitsRefusedError):
        delete(run, [FIRST[0]])


@pytest.fixture
def interrupted(run: RunDirectory) -> RunDirectory:
    delete(run, FIRST)
    with pytest.raises(StoppedError):
        repair(run, epochs=1, progress=stop_after(2))
    return run


def test_an_interrupted_repair_leaves_the_old_generation_whole(
    interrupted: RunDirectory, other: RunDirectory
) -> None:
    run = interrupted
    delete(other, FIRST)
    stores = [ApproximatorStore.open(each.store_url) for each in (run, other)]
    assert stores[0].generation == 0 and not stores[0].verify()
    delete(run, SECOND)
    delete(other, SECOND)
    assert torch.equal(released(run), released(other))


def test_an_interrupted_repair_is_continued_to_the_same_bits(
    interrupted: RunDirectory, other: RunDirectory
) -> None:
    run = interrupted
    seen: list[int] = []
    repair(run, epochs=1, progress=lambda done, total: seen.append(total))
    # The block whose units are all deleted needs nothing; two of the other four were done.
    assert seen == [2, 2]
    delete(other, FIRST)
    repair(other, epochs=1)
    rows = [
        ApproximatorStore.open(each.store_url).read_rows_at(list(range(90, NUM)))
        for each in (run, other)
    ]
    assert np.array_equal(*rows)


def test_rows_computed_with_units_deleted_since_are_not_continued(
    interrupted: RunDirectory,
) -> None:
    run = interrupted
    delete(run, SECOND)
    repair(run, epochs=1)
    ids = set(torch.cat(run.trajectory(1).schedule.sample_ids).tolist())
    assert ids == set(range(105, NUM))
    store = ApproximatorStore.open(run.store_url)
    assert store.generation == 1 and not store.verify()


def test_a_second_repair_is_a_third_generation(run: RunDirectory) -> None:
    delete(run, FIRST)
    repair(run, epochs=1)
    delete(run, SECOND)
    done = repair(run, epochs=1)
    assert (done.generation, done.num_samples) == (2, 195)
    delete(run, [200])
    assert (run.path / "releases" / "3").is_dir()


@pytest.mark.parametrize("rate", [-1.0, 0.0, float("nan")])
def test_a_repair_descends(run: RunDirectory, rate: float) -> None:
    with pytest.raises(ConfigError, match="learning rate above 0"):
        repair(run, epochs=1, learning_rate=rate)


def test_rows_that_are_missing_cannot_be_repaired(tmp_path: Path) -> None:
    run = train(config(), tmp_path / "run")
    with pytest.raises(ConfigError, match="no approximators yet"):
        repair(run, epochs=1)


RULES = [
    DeletionRule("batch", "left-out", 20, 4),
    DeletionRule("remaining", "left-out", 20, 4),
    DeletionRule("remaining", "included", 20, 4),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_sums_of_continued_rows_equal_sums_of_the_old_rows(rule: DeletionRule) -> None:
    rows_NP = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    owned = [2, 3, 1, 4, 2]
    weights = unit_weights(rule, owned) or [1] * 5
    trained_P = np.ones(3, np.float32)

    def weighted(units: list[int]) -> np.ndarray:
        return sum((weights[u] * rows_NP[u].astype(np.float64) for u in units), np.zeros(3))

    before = DeletionState(weighted([0, 1]), 5)
    repaired_P = apply_deletion(rule, trained_P, before)
    new_rule = replace(rule, num_samples=15)
    new_weights = unit_weights(new_rule, [owned[2], owned[3]]) or [1, 1]
    propagated = [Continuation(rule, before).row(rows_NP[u], owned[u]) for u in (2, 3)]
    total_P = sum(
        w * row.astype(np.float64) for w, row in zip(new_weights, propagated, strict=True)
    )
    after_P = apply_deletion(new_rule, repaired_P, DeletionState(np.asarray(total_P), 5))
    expected_P = apply_deletion(rule, trained_P, DeletionState(weighted([0, 1, 2, 3]), 10))
    np.testing.assert_allclose(after_P, expected_P, rtol=1e-5)
