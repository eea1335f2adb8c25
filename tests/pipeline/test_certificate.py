import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.certificates.privacy import Budget, sigma_for
from pipeline.certificates.sensitivity import Condition, Declaration, UnitsBound
from pipeline.deletion.certificate import NOT_COVERED, STILL_HELD
from pipeline.deletion.releases import open_releases
from pipeline.deletion.requests import DeletionRequest
from pipeline.deletion.weights import DeletionRule
from storage.durable_write import file_digest
from tests.pipeline.fake_store import FakeStore, make_facts, make_rows

BOUNDS = (UnitsBound(2, 0.02, 0.001), UnitsBound(5, 0.5, 0.002))


def declared(kind: Any) -> Declaration:
    return Declaration(
        kind,
        BOUNDS,
        row_error=0.003,
        residual_source="where B comes from",
        row_error_source="where q comes from",
        conditions=(Condition("nothing odd", True, "nothing"),),
        evidence={"R": 1.0, "audits": {"random": {"num_audits": 20}}},
    )


def certificates(run_dir: Path, *requests: DeletionRequest, **changes: Any) -> list[dict[str, Any]]:
    facts = make_facts(**changes)
    with open_releases(run_dir, facts, FakeStore(make_rows(20))) as releases:
        for request in requests:
            releases.delete(request)
        assert releases.verify() == []
    numbers = range(1, len(requests) + 1)
    return [
        json.loads((run_dir / "releases" / str(k) / "certificate.json").read_text())
        for k in numbers
    ]


def private(*units: str) -> DeletionRequest:
    return DeletionRequest(units, epsilon=1.0, delta=1e-5)


def test_the_numbers_of_a_certificate(run_dir: Path) -> None:
    first, second = certificates(
        run_dir,
        private("3"),
        private("4", "5"),
        declaration=declared("certified"),
        budget=Budget(3.0, 1e-5),
    )
    assert list(first)[:5] == ["kind", "epsilon", "delta", "sensitivity", "sigma"]
    assert (first["kind"], first["epsilon"], first["delta"]) == ("certified", 1.0, 1e-5)
    assert first["sensitivity"] == pytest.approx(0.02 + 2 * 0.003 + 0.001)
    assert first["sigma"] == pytest.approx(sigma_for(first["sensitivity"], 1.0, 1e-5), rel=1e-9)
    assert second["sensitivity"] == pytest.approx(0.5 + 5 * 0.003 + 0.002)
    assert [term["value"] for term in second["grounds"]["terms"]] == pytest.approx(
        [0.5, 0.015, 0.002]
    )
    assert [term["source"] for term in second["grounds"]["terms"]][:2] == [
        "where B comes from",
        "where q comes from",
    ]
    assert second["grounds"]["deletion_capacity"] == 5
    assert second["grounds"]["conditions"] == [
        {"name": "nothing odd", "held": True, "found": "nothing"}
    ]
    assert first["all_releases"]["epsilon"] == pytest.approx(1.0, rel=1e-6)
    assert second["all_releases"]["epsilon"] == pytest.approx(1.47, rel=5e-3)
    assert second["all_releases"]["budget"] == {"epsilon": 3.0, "delta": 1e-5}


def test_the_number_of_units_is_told_as_a_bucket(run_dir: Path) -> None:
    first, second = certificates(
        run_dir, private("3"), private("4", "5"), declaration=declared("certified")
    )
    assert first["deleted"] == {"unit": "sample", "at_most": 1}
    assert second["deleted"]["at_most"] == 5


def test_without_a_capacity_the_bucket_depends_on_nothing_but_the_number(run_dir: Path) -> None:
    (body,) = certificates(run_dir, DeletionRequest(["3", "4", "5"]))
    assert body["deleted"]["at_most"] == 5


def test_digests_tie_a_certificate_to_both_models(run_dir: Path) -> None:
    first, second = certificates(run_dir, DeletionRequest(["3"]), DeletionRequest(["4"]))
    models = [run_dir / "releases" / k / "model.safetensors" for k in "12"]
    assert first["digests"]["model_after"] == file_digest(models[0])
    assert second["digests"]["model_before"] == file_digest(models[0])
    assert second["digests"]["model_after"] == file_digest(models[1])
    assert first["digests"]["model_before"] != first["digests"]["model_after"]


@pytest.mark.parametrize("kind", ["calibrated", "published", "none"])
def test_the_word_certified_is_used_for_the_first_kind_alone(run_dir: Path, kind: str) -> None:
    request = DeletionRequest(["3"]) if kind == "none" else private("3")
    declaration = Declaration() if kind == "none" else declared(kind)
    certificates(run_dir, request, declaration=declaration)
    for path in (run_dir / "releases" / "1").glob("certificate.*"):
        assert "certified" not in path.read_text()
        assert kind in path.read_text()


def test_a_calibrated_certificate_says_that_it_is_no_proof(run_dir: Path) -> None:
    (body,) = certificates(run_dir, private("3"), declaration=declared("calibrated"))
    assert "not a proof" in body["claim"]
    assert body["grounds"]["evidence"]["audits"]["random"]["num_audits"] == 20


def test_without_noise_nothing_is_claimed(run_dir: Path) -> None:
    first, second = certificates(
        run_dir, DeletionRequest(["3"]), private("4"), declaration=declared("certified")
    )
    assert (first["epsilon"], first["delta"], first["sensitivity"]) == (None, None, None)
    assert first["sigma"] == 0.0
    assert "can compute the approximators of the units deleted in between" in first["claim"]
    assert second["all_releases"]["epsilon"] is None


def test_what_is_not_covered_and_what_is_still_held_stand_on_each(run_dir: Path) -> None:
    (body,) = certificates(run_dir, DeletionRequest(["3"]))
    assert body["not_covered"] == list(NOT_COVERED)
    assert body["still_held_by_the_operator"] == list(STILL_HELD)
    text = (run_dir / "releases" / "1" / "certificate.txt").read_text()
    for sentence in (*NOT_COVERED, *STILL_HELD):
        assert sentence in text


def test_the_text_has_the_numbers_of_the_json(run_dir: Path) -> None:
    (body,) = certificates(
        run_dir,
        private("3"),
        declaration=declared("certified"),
        rule=DeletionRule("batch", "left-out", 20, 4),
    )
    text = (run_dir / "releases" / "1" / "certificate.txt").read_text()
    for name in ("epsilon", "delta", "sensitivity", "sigma"):
        assert f"{name}: {body[name]}\n" in text
    assert "name: residual; value: 0.02; source: where B comes from" in text
    assert body["digests"]["model_after"] in text
