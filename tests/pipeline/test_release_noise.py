"""Noise in releases: its scale, its freshness, one draw for each release, and the mutations."""

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.certificates import privacy as gaussian_mechanism
from pipeline.certificates import sensitivity
from pipeline.certificates.privacy import Budget
from pipeline.certificates.sensitivity import Declaration, UnitsBound
from pipeline.deletion import staging as release_staging
from pipeline.deletion.context import DeletionContext, TensorShape
from pipeline.deletion.releases import open_releases
from pipeline.deletion.requests import DeletionRequest
from pipeline.deletion.weights import DeletionRule, DeletionState, apply_deletion
from pipeline.errors import BudgetSpentError, RequestError, RetrainRequiredError
from storage.errors import LedgerError
from tests.pipeline.fake_store import FakeStore, make_facts, make_rows, use_key

UNITS, SIZE = 12, 60_000  # two chunks of 32,768 values
TENSORS = (
    TensorShape("first", (100, 200)),
    TensorShape("second", (39_000,)),
    TensorShape("b", (1000,)),
)
DECLARED = Declaration(
    "certified",
    (UnitsBound(1, residual=0.02), UnitsBound(5, residual=0.5), UnitsBound(8, 9.0, distance=2.0)),
    row_error=0.001,
)
SIGMA_1 = 3.7306316348159374  # dp_accounting.get_sigma_gaussian(1, 1e-5)


def noisy_facts(**changes: Any) -> DeletionContext:
    rule = DeletionRule("batch", "left-out", UNITS, 4)
    fields = {"tensors": TENSORS, "declaration": DECLARED, "rule": rule, **changes}
    return make_facts(UNITS, SIZE, **fields)


def private(*units: str, **changes: Any) -> DeletionRequest:
    return DeletionRequest(units=units, **{"epsilon": 1.0, "delta": 1e-5, **changes})


def noise_of(
    run_dir: Path, release: int, facts: DeletionContext, units: list[str]
) -> dict[str, Any]:
    """Released tensors minus the noise-free ones."""
    rows = make_rows(UNITS, SIZE)
    total_P = np.sum([rows[unit] for unit in units], axis=0) if units else np.zeros(SIZE)
    clean_P = apply_deletion(facts.rule, facts.trained_P, DeletionState(total_P, len(units)))
    tensors = load_file(run_dir / "releases" / str(release) / "model.safetensors")
    found, start = {}, 0
    for tensor in facts.tensors:
        size = math.prod(tensor.shape)
        found[tensor.name] = tensors[tensor.name].ravel() - clean_P[start : start + size]
        start += size
    return found


def check_scale(noise: dict[str, Any], sigma: float) -> None:
    """Every tensor has noise of the scale that the certificate says, within six of its errors."""
    for name, values in noise.items():
        error = sigma / math.sqrt(2 * values.size)
        assert values.std() == pytest.approx(sigma, abs=6 * error), name


def delete_one_then_four(run_dir: Path, facts: DeletionContext) -> None:
    with open_releases(run_dir, facts, FakeStore(make_rows(UNITS, SIZE))) as releases:
        releases.delete(private("0"))
        releases.delete(private("1", "2", "3", "4"))


def check_two_releases(run_dir: Path, facts: DeletionContext) -> None:
    """What must be true of noise after `delete_one_then_four`."""
    one = noise_of(run_dir, 1, facts, ["0"])
    five = noise_of(run_dir, 2, facts, ["0", "1", "2", "3", "4"])
    check_scale(one, SIGMA_1 * (0.02 + 0.001))
    check_scale(five, SIGMA_1 * (0.5 + 5 * 0.001))
    for name in one:  # the same draw twice would be collinear
        correlation = np.corrcoef(one[name], five[name])[0, 1]
        assert abs(correlation) < 6 / math.sqrt(one[name].size), name


def test_every_layer_has_fresh_noise_of_the_declared_scale(run_dir: Path) -> None:
    facts = noisy_facts()
    delete_one_then_four(run_dir, facts)
    check_two_releases(run_dir, facts)


def halved_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gaussian_mechanism.sigma_for
    monkeypatch.setattr("pipeline.certificates.privacy.sigma_for", lambda *a: real(*a) / 2)


def ignored_number_of_units(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sensitivity.Declaration.for_units
    monkeypatch.setattr(sensitivity.Declaration, "for_units", lambda self, m: real(self, 1))


def layer_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    real = release_staging.released_chunks

    def forgets_the_bias(facts: Any, state: Any, mechanism: Any, normals: Any) -> Any:
        drawn = 0

        def forgetful(count: int) -> Any:
            nonlocal drawn
            values = normals(count)
            values[max(0, SIZE - 1000 - drawn) :] = 0.0
            drawn += count
            return values

        return real(facts, state, mechanism, forgetful)

    monkeypatch.setattr(release_staging, "released_chunks", forgets_the_bias)


def one_seed_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real = release_staging.released_chunks

    def seeded(facts: Any, state: Any, mechanism: Any, normals: Any) -> Any:
        generator = np.random.default_rng(1)
        return real(facts, state, mechanism, generator.standard_normal)

    monkeypatch.setattr(release_staging, "released_chunks", seeded)


@pytest.mark.parametrize(
    "mutate",
    [halved_sigma, ignored_number_of_units, layer_without_noise, one_seed_for_all],
    ids=lambda mutate: mutate.__name__,
)
def test_each_mutation_is_noticed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, mutate: Any
) -> None:
    mutate(monkeypatch)
    facts = noisy_facts()
    delete_one_then_four(run_dir, facts)
    with pytest.raises(AssertionError):
        check_two_releases(run_dir, facts)


def test_the_noise_free_sum_gathers_no_noise(run_dir: Path) -> None:
    facts = noisy_facts()
    delete_one_then_four(run_dir, facts)
    sums = load_file(run_dir / "internal" / "weighted-sum-2.safetensors")
    rows = make_rows(UNITS, SIZE)
    assert np.array_equal(sums["weighted_sum"], sum(rows[str(unit)] for unit in range(5)))


def test_where_rows_do_not_help_the_trained_parameters_are_released(run_dir: Path) -> None:
    facts = noisy_facts()
    with open_releases(run_dir, facts, FakeStore(make_rows(UNITS, SIZE))) as releases:
        releases.delete(private(*map(str, range(7))))
        releases.verify()
    check_scale(noise_of(run_dir, 1, facts, []), SIGMA_1 * 2.0)


def test_a_global_seed_changes_no_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_key(monkeypatch, tmp_path)
    models = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        random.seed(3)
        np.random.seed(3)
        with open_releases(folder, noisy_facts(), FakeStore(make_rows(UNITS, SIZE))) as releases:
            releases.delete(private("0"))
        models.append((folder / "releases" / "1" / "model.safetensors").read_bytes())
    assert models[0] != models[1]


def test_noise_is_rounded_once(run_dir: Path) -> None:
    """A known draw gives float32(float64 sum + sigma * draw), bit for bit."""
    facts = noisy_facts()
    normals = np.random.default_rng(2).standard_normal(SIZE)
    given = iter(np.split(normals, [32_768]))
    dependencies = release_staging.Dependencies(normals=lambda count: next(given))
    store = FakeStore(make_rows(UNITS, SIZE))
    with open_releases(run_dir, facts, store, dependencies=dependencies) as releases:
        releases.delete(private("0"))
    clean_P = facts.trained_P.astype(np.float64) + make_rows(UNITS, SIZE)["0"]
    sigma = gaussian_mechanism.sigma_for(0.02 + 0.001, 1.0, 1e-5)
    tensors = load_file(run_dir / "releases" / "1" / "model.safetensors")
    flat_P = np.concatenate([tensors[tensor.name].ravel() for tensor in TENSORS])
    assert np.array_equal(flat_P, (clean_P + sigma * normals).astype(np.float32))


def unchanged(run_dir: Path) -> list[str]:
    return sorted(str(path) for path in (run_dir / "releases").rglob("*"))


def test_past_the_capacity_nothing_is_released(run_dir: Path) -> None:
    store = FakeStore(make_rows(UNITS, SIZE))
    with open_releases(run_dir, noisy_facts(), store) as releases:
        releases.delete(private("0", "1", "2", "3"))
        releases.accept(private("4", "5"))
        before = unchanged(run_dir)
        for request in (private("6", "7", "8"), DeletionRequest(["6", "7", "8"])):
            with pytest.raises(RetrainRequiredError, match="9 units would be deleted"):
                releases.accept(request)
        assert unchanged(run_dir) == before
        assert len(store.rows) == UNITS - 4
        assert releases.delete(private("6", "7")).release == 3


def test_requests_that_became_two_releases_stay_within_the_budget(run_dir: Path) -> None:
    facts = noisy_facts(budget=Budget(1.0, 1e-5))
    store = FakeStore(make_rows(UNITS, SIZE), damaged="1")
    with open_releases(run_dir, facts, store) as releases:
        releases.accept(private("1"))
        # Both were to share a release; the first cannot be read, so the second goes alone.
        releases.delete(private("2"))
        store.damaged = ""
        assert "budget is 1" in releases.process_waiting()[0]
        assert len(list((run_dir / "releases").iterdir())) == 1


def test_a_spent_budget_refuses_and_spends_nothing(run_dir: Path) -> None:
    facts = noisy_facts(budget=Budget(1.5, 1e-5))
    store = FakeStore(make_rows(UNITS, SIZE))
    with open_releases(run_dir, facts, store) as releases:
        releases.delete(private("0"))
        with pytest.raises(BudgetSpentError, match="without noise"):
            releases.delete(DeletionRequest(["1"]))
        releases.accept(private("1"))
        # The request that waits holds its share of the budget until it is carried out.
        with pytest.raises(BudgetSpentError, match=r"budget is 1\.5"):
            releases.accept(private("2", epsilon=1.01))
        releases.accept(private("3"))  # the same privacy: the same release
        assert releases.process_waiting() == []
        before = unchanged(run_dir)
        with pytest.raises(BudgetSpentError, match=r"budget is 1\.5"):
            releases.delete(private("2", epsilon=0.5))
        assert unchanged(run_dir) == before
        assert releases.verify() == []
    assert "2" in store.rows


def test_noise_needs_a_declaration(run_dir: Path) -> None:
    store = FakeStore(make_rows(UNITS, SIZE))
    facts = noisy_facts(declaration=Declaration())
    with open_releases(run_dir, facts, store) as releases:
        with pytest.raises(RequestError, match="declares no sensitivity"):
            releases.delete(private("0"))
        assert releases.delete(DeletionRequest(["0"])).release == 1


def test_a_declaration_cannot_change_once_requests_arrived(run_dir: Path) -> None:
    store = FakeStore(make_rows(UNITS, SIZE))
    smaller = Declaration("certified", (UnitsBound(8, residual=1e-6),))
    open_releases(run_dir, noisy_facts(), store).close()
    open_releases(run_dir, noisy_facts(budget=Budget(9.0, 1e-5)), store).close()
    with open_releases(run_dir, noisy_facts(), store) as releases:
        releases.delete(private("0"))
    for changed in (noisy_facts(declaration=smaller), noisy_facts(budget=Budget(9.0, 1e-5))):
        with pytest.raises(LedgerError, match="declared before requests arrived"):
            open_releases(run_dir, changed, store)


def test_a_repaired_run_is_not_covered_by_what_was_declared_before(run_dir: Path) -> None:
    store = FakeStore(make_rows(UNITS, SIZE))
    with open_releases(run_dir, noisy_facts(), store) as releases:
        releases.delete(private("0"))
    with open_releases(run_dir, noisy_facts(generation=1), store) as releases:
        with pytest.raises(RequestError, match="declared for generation 0, the run is at 1"):
            releases.delete(private("1"))
        assert releases.delete(DeletionRequest(["1"])).release == 2
    anew = dataclasses.replace(DECLARED, generation=2)
    with open_releases(run_dir, noisy_facts(generation=2, declaration=anew), store) as releases:
        assert releases.delete(private("2")).release == 3
        assert releases.verify() == []
