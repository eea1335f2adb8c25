"""Crashes: nothing accepted is lost, nothing is applied twice, no release is drawn twice."""

from typing import Any

import pytest

from tests.pipeline.crashes import serve


@pytest.fixture(scope="module")
def served() -> dict[str, Any]:
    """One server for all: what takes it longest is to import."""
    return serve("crash_server.py", "points", "kills:20:150", "noise")


def check(found: dict[str, Any], num_requests: int) -> None:
    assert found["requests_answered"] == num_requests
    assert found["units_deleted"] == found["units_asked"]
    assert found["erased_as_asked"]
    assert found["sum_equals_replay"]
    assert found["draws_in_last_model"] == 1
    assert set(found["states"]) <= {"cancelled", "done"}
    assert found["cancelled"] >= 1
    assert found["releases"] == list(range(1, len(found["releases"]) + 1))
    assert found["damages"] == []
    assert found["leftovers"] == [f"weighted-sum-{found['releases'][-1]}.safetensors"]


def check_points(found: dict[str, Any]) -> None:
    points = found["points"]
    assert len(points) >= 12
    for pair in (
        "commit:{}-commit",
        "publish:{}-rename",
        "model.safetensors:{}-fsync",
        "erase:{}",
        "cancel:{}-commit",
    ):
        assert pair.format("before") in points
        assert pair.format("after") in points
    assert len(found["trials"]) >= len(points)
    for trial in found["trials"]:
        assert trial["killed"], trial["point"]
        assert trial["republished"] == [], trial["point"]
        check(trial, num_requests=2)


def check_kills(found: dict[str, Any], num_kills: int, num_requests: int) -> None:
    assert found.get("kills") == num_kills, found
    assert found["changed"] == []
    assert found["published"] >= 1
    check(found, num_requests)


def test_a_crash_at_each_named_point(served: dict[str, Any]) -> None:
    check_points(served["points"])


def test_20_random_kills(served: dict[str, Any]) -> None:
    check_kills(served["kills:20:150"], num_kills=20, num_requests=150)


def test_forked_processes_draw_different_noise(served: dict[str, Any]) -> None:
    assert len(served["noise"]) == 3
    assert len(set(map(tuple, served["noise"]))) == 3


@pytest.mark.torture
def test_a_crash_at_each_occurrence_of_each_named_point() -> None:
    check_points(serve("crash_server.py", "all-points")["all-points"])


@pytest.mark.torture
def test_200_random_kills_over_10000_requests() -> None:
    check_kills(serve("crash_server.py", "kills:200:10000")["kills:200:10000"], 200, 10_000)
