"""Distances, loss changes and accuracy against values worked out by hand or by numpy alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.accuracy import held_out_quality, sample_losses, training_curve
from pipeline.evaluation.comparison import LossChange, compare, distances, median_correlations
from pipeline.evaluation.trials import (
    MOST_POINTS,
    TrialSeconds,
    deletion_entry,
    draw_forget_set,
    loss_change_points,
    num_units_to_delete,
)
from pipeline.run.problem import Problem
from pipeline.training.retraining import retrain
from pipeline.training.train import record


def small_problem(**training: object) -> Problem:
    values = {
        "name": "small",
        "data": {"source": "digits", "num_train": 60},
        "training": {"epochs": 2, "batch_size": 20, "learning_rate": 0.5, "l2": 0.01} | training,
        "recursion": {"dtype": "float64"},
    }
    return Problem.of(RunConfig.from_values(values))


def numpy_losses(weights_CF: np.ndarray, bias_C: np.ndarray, x: np.ndarray, y: np.ndarray):  # type: ignore[no-untyped-def]
    scores = x.reshape(len(x), -1) @ weights_CF.T + bias_C
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    return log_sum - shifted[np.arange(len(y)), y], scores.argmax(axis=1)


def test_losses_and_accuracy_agree_with_softmax_regression_written_out() -> None:
    problem = small_problem()
    w_P = torch.randn(problem.num_parameters, dtype=torch.float64)
    weights, bias = w_P[:640].reshape(10, 64).numpy(), w_P[640:].numpy()
    data = problem.data

    losses, _ = numpy_losses(weights, bias, data.inputs.numpy(), data.targets.numpy())
    ids = torch.tensor([3, 59, 0])
    np.testing.assert_allclose(sample_losses(problem, w_P, ids), losses[ids], rtol=1e-12)

    test_losses, predicted = numpy_losses(
        weights, bias, data.test_inputs.numpy(), data.test_targets.numpy()
    )
    quality = held_out_quality(problem, w_P)
    assert quality.mean_loss == pytest.approx(test_losses.mean(), rel=1e-12)
    assert quality.accuracy == np.mean(predicted == data.test_targets.numpy())


def test_many_samples_are_evaluated_in_parts_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = small_problem()
    w_P = torch.randn(problem.num_parameters, dtype=torch.float64)
    whole = held_out_quality(problem, w_P)
    monkeypatch.setattr("pipeline.evaluation.accuracy.SAMPLES_AT_ONCE", 7)
    parts = held_out_quality(problem, w_P)
    assert parts.accuracy == whole.accuracy
    assert parts.mean_loss == pytest.approx(whole.mean_loss, rel=1e-12)


def test_training_curve_has_every_checkpoint_and_starts_at_chance(tmp_path: Path) -> None:
    problem = small_problem()
    trajectory = record(problem, tmp_path / "trajectory")
    curve = training_curve(problem, trajectory)
    assert [point["step"] for point in curve] == list(trajectory.checkpoints)
    # Softmax regression starts at zero: every class has probability 1/10.
    assert curve[0]["train_loss"] == pytest.approx(np.log(10))
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]
    assert curve[-1]["test_accuracy"] == held_out_quality(problem, trajectory.trained()).accuracy


def test_distances_and_relative_error() -> None:
    trained, unlearned, retrained = (torch.tensor(v) for v in ([0.0, 0.0], [3.0, 3.0], [3.0, 4.0]))
    found = distances(trained, unlearned, retrained)
    assert (found.unlearned, found.no_update) == (1.0, 5.0)
    assert found.relative_error == 0.2
    assert found.update == pytest.approx(18**0.5)


def test_relative_error_where_retraining_moves_nothing() -> None:
    origin, moved = torch.zeros(2), torch.ones(2)
    assert distances(origin, origin, origin).relative_error == 0.0
    assert distances(origin, moved, origin).relative_error == float("inf")


def test_correlations_of_a_monotone_but_bent_prediction() -> None:
    actual = np.array([0.0, 1.0, 2.0, 3.0, 10.0])
    pearson, spearman = LossChange(actual**3, actual).correlations() or (0.0, 0.0)
    assert spearman == pytest.approx(1.0)
    assert pearson == pytest.approx(np.corrcoef(actual**3, actual)[0, 1])
    assert pearson < 0.99


@pytest.mark.parametrize(
    ("predicted", "actual"), [([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])]
)
def test_no_correlation_without_enough_samples_or_variation(
    predicted: list[float], actual: list[float]
) -> None:
    assert LossChange(np.array(predicted), np.array(actual)).correlations() is None


def test_trials_of_one_unit_are_pooled_and_larger_ones_give_a_median() -> None:
    single = [LossChange(np.array([v]), np.array([-v])) for v in (1.0, 2.0, 4.0)]
    assert median_correlations(single) == pytest.approx((-1.0, -1.0))
    line = np.arange(5.0)
    up, down = LossChange(line, line), LossChange(-line, line)
    assert median_correlations([up, up, down]) == pytest.approx((1.0, 1.0))
    assert median_correlations(single[:2]) == (None, None)


def test_points_are_thinned_in_ascending_order_and_keep_both_ends() -> None:
    values = np.random.default_rng(0).permutation(1000).astype(float)
    points = loss_change_points([LossChange(2 * values, values)])
    assert len(points) == MOST_POINTS
    assert points == sorted(points)
    assert (points[0], points[-1]) == ([0.0, 0.0], [999.0, 1998.0])


def test_comparison_of_the_retrained_model_with_itself_is_perfect(tmp_path: Path) -> None:
    problem = small_problem()
    trajectory = record(problem, tmp_path / "trajectory")
    forgotten = problem.data.samples_of(draw_forget_set(60, 9, (1, 2)))
    assert int(forgotten.sum()) == 9
    retrained = retrain(problem, trajectory.schedule, forgotten)

    trial = compare(problem, trajectory.trained(), retrained, retrained, forgotten)
    entry = deletion_entry(9, [trial], [TrialSeconds(0.1, 0.2, 3.0)])
    assert entry["distance"] == entry["relative_error"] == 0.0
    assert entry["loss_change_pearson"] == pytest.approx(1.0)
    assert entry["test_accuracy"]["unlearned"] == entry["test_accuracy"]["retrained"]
    assert entry["no_update_distance"] > 0.01

    nothing = compare(problem, trajectory.trained(), trajectory.trained(), retrained, forgotten)
    assert deletion_entry(9, [nothing], [TrialSeconds(0, 0, 0)])["relative_error"] == 1.0
    # Deleted samples are not learned any more: on average their loss must have risen.
    assert trial.loss_change.actual_m.mean() > 0


def test_entry_holds_medians_over_repeats(tmp_path: Path) -> None:
    problem = small_problem()
    w = record(problem, tmp_path / "trajectory").trained()
    forgotten = problem.data.samples_of(torch.tensor([4, 5, 6, 7]))
    shifts = (1.0, 5.0, 2.0)
    trials = [compare(problem, w, w + s, w + 10.0, forgotten) for s in shifts]
    seconds = [TrialSeconds(s, 10 * s, 100 * s) for s in shifts]
    entry = deletion_entry(4, trials, seconds)
    assert entry["repeats"] == 3
    assert entry["relative_error"] == pytest.approx(0.8)
    assert entry["relative_error_range"] == pytest.approx([0.5, 0.9])
    assert (entry["sum_seconds"], entry["total_seconds"], entry["retrain_seconds"]) == (2, 20, 200)


def test_entries_of_evaluation_stand_for_units() -> None:
    assert num_units_to_delete(3, 10) == 3
    assert num_units_to_delete(0.05, 142) == 7
    assert num_units_to_delete(0.001, 50) == 1
    with pytest.raises(ConfigError, match="only 10 units"):
        num_units_to_delete(10, 10)


def test_forget_sets_are_distinct_sorted_and_fixed_by_the_seed() -> None:
    first, again, other = (draw_forget_set(100, 30, (7, r)) for r in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.tolist() == sorted(set(first.tolist()))
    assert len(first) == 30
