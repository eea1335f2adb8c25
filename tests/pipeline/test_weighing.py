"""The weighing engine: designs that are exact for additive effects, and groups that are retrainings."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import RunConfig, delete, precompute, repair, train
from pipeline.approximators.block import BlockRecursion
from pipeline.approximators.weighing import solution
from pipeline.deletion.weights import deletion_rule, mass_weight
from pipeline.errors import ConfigError
from pipeline.hadamard import hadamard, num_weighed, s_matrix
from pipeline.training.retraining import retrain
from pipeline.training.train import record
from tests import tolerances
from tests.cases import Case, Problem, in_unit_order, problem_of
from tests.oracles import relative_error
from tests.pipeline.fake_store import use_key

ORDERS = [order for order in range(4, 129, 4) if hadamard(order) is not None]


def test_hadamard_matrices_are_there_for_nearly_every_multiple_of_four() -> None:
    assert set(range(4, 129, 4)) - set(ORDERS) == {52, 92, 100, 116}
    for order in ORDERS:
        matrix = hadamard(order)
        assert matrix is not None
        wide = matrix.astype(int)
        assert np.array_equal(wide @ wide.T, order * np.eye(order, dtype=int))


def test_each_group_leaves_half_of_the_units_out() -> None:
    for order in ORDERS:
        assert set(s_matrix(order - 1).sum(1).tolist()) == {order // 2}
    with pytest.raises(ValueError, match="order v"):
        s_matrix(51)


def test_the_number_weighed_together_follows_the_share_of_a_group() -> None:
    for num_units in (7, 20, 60, 142, 600, 10_000):
        v = num_weighed(num_units)
        assert v == 3 or (v + 1) / 2 <= 0.2 * num_units + 1
    assert [num_weighed(10_000, asked) for asked in (127, 120, 52, 2)] == [127, 119, 47, 3]
    assert all(a <= b for a, b in pairwise(num_weighed(n) for n in range(7, 700)))


@pytest.mark.parametrize("num_units", [1, 2, 7, 11])
@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_additive_effects_are_found_exactly(num_units: int, exponent: float) -> None:
    generator = np.random.default_rng(num_units)
    masses = generator.integers(1, 9, num_units).astype(float)

    def weight(mass: float) -> float:
        return (200 - mass) ** exponent

    groups, inverse = solution(11, masses, weight)
    rows = generator.normal(size=(num_units, 5))
    weighed = (groups * [weight(m) for m in masses]) @ rows
    moved = weighed / np.array([[weight(m)] for m in groups @ masses])
    assert np.abs(inverse @ moved - rows).max() < 1e-12


def weighed(case: Case) -> Problem:
    return problem_of(case.but(engine="weighing", chunk=7))


CASES = [
    Case("mlp-tanh", momentum=0.6, clip="active"),
    Case("mlp-tanh", unit="user", weighted=True),
    Case("mlp-relu", optimizer="adamw", learning_rate=0.05, l2=0.0, weight_decay=0.1),
    Case("mlp-dropout", denominator="batch"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_groups_are_retrainings_and_their_rows_add_up_to_them(case: Case, tmp_path: Path) -> None:
    problem = weighed(case)
    recorded = record(problem, tmp_path)
    block = BlockRecursion(problem, recorded, range(case.num_units))
    block.advance(recorded.num_steps)
    rows_NP, trained_P = in_unit_order(block), recorded.trained()
    rule = deletion_rule(problem.config, sum(problem.unit_masses()))
    masses = problem.unit_masses()
    assert [len(chunk.units) for chunk in block.chunks] == (
        [7, 4] if case.unit == "sample" else [5]
    )
    for chunk in block.chunks:
        assert chunk.design is not None
        whole = len(chunk.units) == 7
        for group_K, weights_P in zip(chunk.design.groups_vK, chunk.state.rows_KP, strict=True):
            units = chunk.units[group_K].tolist()
            forgotten_n = torch.isin(case.owners_n, torch.tensor(units))
            expected_P = retrain(problem, recorded.schedule, forgotten_n)
            assert relative_error(weights_P, expected_P) < tolerances.BY_HAND
            if whole and units:
                weights = [mass_weight(rule, masses[unit]) for unit in units]
                total_P = sum(w * rows_NP[unit] for w, unit in zip(weights, units, strict=True))
                moved_P = total_P / mass_weight(rule, sum(masses[unit] for unit in units))
                assert relative_error(moved_P, expected_P - trained_P) < 1e-8


def test_blocks_workers_and_resumptions_do_not_change_a_bit(tmp_path: Path) -> None:
    case = Case("mlp-tanh", momentum=0.6)
    problem = weighed(case)
    recorded = record(problem, tmp_path / "trajectory")
    whole = BlockRecursion(problem, recorded, range(11))
    whole.advance(recorded.num_steps)
    second = BlockRecursion(problem, recorded, range(7, 11))
    second.advance(5)
    second.save(tmp_path / "state")
    resumed = BlockRecursion(problem, recorded, range(7, 11))
    resumed.restore(tmp_path / "state")
    resumed.advance(recorded.num_steps)
    assert torch.equal(in_unit_order(resumed), in_unit_order(whole)[7:])


def digits(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "data": {"source": "digits", "num_train": 60},
        "model": {"name": "mlp", "hidden": [8], "activation": "tanh"},
        "training": {"epochs": 4, "batch_size": 16, "learning_rate": 0.1, "l2": 0.01},
        "recursion": {"engine": "weighing", "chunk": 19},
    }
    return RunConfig.from_values({**values, **changes})


def test_the_life_of_a_weighed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.inspection import verify_run

    use_key(monkeypatch, tmp_path)
    run = train(digits(), tmp_path / "run")
    units = precompute(run).units
    assert run.config.recursion.chunk == run.config.storage.block == 19
    assert not list(run.path.glob("state/*"))
    problem, trajectory = run.problem(), run.trajectory()

    def left(deleted: list[str]) -> float:
        from pipeline import load_release

        model = load_release(run.path)
        found_P = problem.network.layout.read(model)
        gone = torch.tensor([name in deleted for name in problem.data.units])
        retrained_P = retrain(problem, trajectory.schedule, gone)
        trained_P = trajectory.trained()
        return float((found_P - retrained_P).norm() / (trained_P - retrained_P).norm())

    delete(run, units[:6])
    assert left(list(units[:6])) < 0.35
    assert verify_run(run).damage == []
    repaired = repair(run, epochs=1)
    assert repaired.num_samples == 54
    delete(run, units[30:33])
    assert verify_run(run).damage == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"source": "digits", "num_train": 6}}, "needs at least 7 units, found 6"),
        ({"storage": {"block": 5}}, r"storage\.block is 5.*19 units together"),
        (
            {"model": {"name": "tests.examples.perceptron:normalised"}},
            "weighing does not follow batch normalisation",
        ),
    ],
)
def test_what_cannot_be_weighed_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = digits(**changes)
    if "data" in changes:
        training = config.training.model_copy(update={"batch_size": 4})
        config = config.model_copy(update={"training": training})
    with pytest.raises(ConfigError, match=said):
        train(config, tmp_path / "run")
