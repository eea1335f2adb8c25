"""More than exists: what is refused, and what the refusal says exists."""

import socket
import time
from pathlib import Path

import pytest
from ray.exceptions import AuthenticationError

from cluster import session
from cluster.errors import ResourcesError, UnreachableError
from cluster.resources import (
    LOOK_SECONDS,
    Growth,
    Placement,
    Resources,
    ask_for_room,
    check_block_fits,
    place,
    wait_until_grown,
)
from cluster.session import connect
from pipeline.bounds import MAX_WORKERS
from pipeline.config import ClusterConfig
from pipeline.run.directory import exclusive
from pipeline.run.problem import Problem
from storage.errors import WriterConflictError
from tests.cluster.small_run import config, trained_run

GIB = 1 << 30


@pytest.mark.parametrize(
    ("asked", "found", "expected"),
    [
        ({}, Resources(8, 0), (4, Placement(1, 0.0))),
        ({}, Resources(8, 2), (2, Placement(1, 1.0))),
        ({"gpus_per_worker": 0.5}, Resources(8, 2), (4, Placement(1, 0.5))),
        ({"gpus_per_worker": 0}, Resources(8, 2), (4, Placement(1, 0.0))),
        ({"num_workers": 3, "cpus_per_worker": 2}, Resources(6, 0), (3, Placement(2, 0.0))),
        ({}, Resources(8, 0, (1.5 * GIB, 2.5 * GIB)), (3, Placement(1, 0.0))),
    ],
)
def test_workers_get_what_there_is(
    asked: dict[str, float], found: Resources, expected: tuple[int, Placement]
) -> None:
    settings = ClusterConfig.model_validate(asked)
    assert place(settings, found, num_blocks=4, needed_bytes=GIB) == expected


@pytest.mark.parametrize(
    "asked", [{"num_workers": 9}, {"gpus_per_worker": 3}, {"cpus_per_worker": 9}]
)
def test_more_than_exists_is_refused_and_what_exists_is_named(asked: dict[str, int]) -> None:
    with pytest.raises(ResourcesError, match="8 CPUs and 2 GPUs"):
        place(ClusterConfig.model_validate(asked), Resources(8, 2), num_blocks=99)


def test_a_block_that_fits_on_no_node_is_refused_with_one_that_does() -> None:
    problem = Problem.of(
        config(data={"num_train": 1000}, storage={"block": 1000}, model={"name": "cnn"})
    )
    check_block_fits(problem, Resources(1, 0, (GIB,)))
    with pytest.raises(
        ResourcesError, match=r"block of 1000 units needs .* at most \d+"
    ) as refusal:
        check_block_fits(problem, Resources(1, 0, (0.65 * GIB, 0.6 * GIB)))
    fitting = int(str(refusal.value).rsplit(" ", 1)[1])
    smaller = Problem.of(
        config(data={"num_train": 1000}, storage={"block": fitting}, model={"name": "cnn"})
    )
    check_block_fits(smaller, Resources(1, 0, (0.65 * GIB,)))
    with pytest.raises(ResourcesError, match="larger machines"):
        check_block_fits(problem, Resources(1, 0, (0.1 * GIB,)))


def test_room_is_asked_for_now_and_then_and_none_is_no_error() -> None:
    now, sizes, asked = [0.0], [Resources(1, 0), Resources(0, 0), Resources(5, 0)], []

    def resources_now() -> Resources:
        asked.append(now[0])
        return sizes[len(asked) - 1]

    room = Growth(ClusterConfig(), resources_now, num_blocks=4, clock=lambda: now[0])
    found = []
    for moment in (0.0, LOOK_SECONDS / 2, LOOK_SECONDS, 2 * LOOK_SECONDS):
        now[0] = moment
        found.append(room())
    assert found == [1, 1, 0, 4]
    assert asked == [0.0, LOOK_SECONDS, 2 * LOOK_SECONDS]


def test_a_cluster_that_grows_in_time_is_waited_for_and_one_that_does_not_is_not() -> None:
    settings = ClusterConfig(grow_seconds=0.2)
    sizes = iter([Resources(0, 0), Resources(2, 0)])
    wait_until_grown(settings, lambda: next(sizes), 4)
    with pytest.raises(ResourcesError, match="0 CPUs"):
        wait_until_grown(settings, lambda: Resources(0, 0), 4)


def test_an_address_without_an_answer_is_named_within_seconds() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=f"no answer from 127.0.0.1:{port}"):
            connect(f"127.0.0.1:{port}")
        assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "unlearn submit"),
        ("ray://127.0.0.1:10001", "no address of a cluster's head"),
        ("somewhere", "host:port"),
        ("127.0.0.1:99999", "no answer from"),
    ],
)
def test_what_is_no_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(UnreachableError, match=message):
        connect(address)


def test_a_run_that_another_driver_uses_is_refused_with_its_owner_named(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run")
    with (
        exclusive(run),
        pytest.raises(WriterConflictError, match=r"in use by process \d+ on \S+"),
        exclusive(run),
    ):
        pass


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.3"),
        AuthenticationError("Token authentication is enabled but no token was found"),
        ConnectionError("Could not find any running Ray instance"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_line_with_rays_reason(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**arguments: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(UnreachableError) as refusal:
        session.connect("auto")
    assert "no Ray cluster could be joined at auto: " in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_ray_is_started_here_though_the_environment_names_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("ray.init", lambda address, **rest: asked.append(address))
    monkeypatch.setattr(session, "resources_now", lambda: Resources(1, 0))
    session.connect("local", 2)
    assert asked == ["local"]


def test_the_runs_of_a_command_share_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(session, "connect", lambda address, num_cpus: done.append(address))
    monkeypatch.setattr(session, "resources_now", lambda: Resources(1, 0))
    monkeypatch.setattr(session, "_disconnect", lambda: done.append("end"))
    with session.RaySession() as shared:
        for _ in range(3):
            shared.submit(lambda: shared.connect("local", 2)).result()
        # A run that asks for another number of workers needs another size.
        shared.submit(lambda: shared.connect("local", 3)).result()
    assert done == ["local", "end", "local", "end"]
    with session.RaySession():
        pass
    assert len(done) == 4


@pytest.mark.parametrize(("num_blocks", "asked"), [(3, 3), (200_000, MAX_WORKERS)])
def test_the_autoscaler_gets_no_more_bundles_than_there_can_be_workers(
    num_blocks: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles: list[dict[str, float]] = []

    def request(bundles: list[dict[str, float]], into: list[dict[str, float]] = bundles) -> None:
        into.extend(bundles)

    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", request)
    ask_for_room(ClusterConfig(gpus_per_worker=1), num_blocks)
    assert bundles == [{"CPU": 1, "GPU": 1.0}] * asked
