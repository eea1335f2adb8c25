"""Where a precomputation runs: what `cluster.address` may say, and what `auto` chooses."""

from dataclasses import replace

import pytest
import torch

from cluster.ray_choice import RAY_START_SECONDS, chosen_address, estimated_seconds
from pipeline.config import ClusterConfig, RunConfig
from pipeline.errors import ConfigError
from pipeline.run.problem import Problem
from tests.cluster.small_run import NUM_BLOCKS, config


@pytest.fixture(scope="module")
def small() -> Problem:
    return Problem.of(config())


@pytest.fixture(scope="module")
def large() -> Problem:
    return Problem.of(RunConfig.load("configs/digits-cnn.yaml"))


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("address", ["none", "local", "auto", "10.0.0.5:6379"])
def test_an_address_is_taken_as_it_is(address: str) -> None:
    assert config(cluster={"address": address}).cluster.address == address


def test_null_means_auto_and_is_written_so() -> None:
    read = config(cluster={"address": None})
    assert read == config()
    assert read.cluster.address == "auto"
    assert "address: auto" in read.to_yaml()


@pytest.mark.parametrize("address", ["ray", "Local", "", "yes", "somewhere"])
def test_other_words_are_refused_with_those_that_there_are(address: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.address.*none, local, auto, or host:port"):
        config(cluster={"address": address})


def test_the_demonstration_needs_no_ray_and_long_runs_do(large: Problem) -> None:
    demo = Problem.of(RunConfig.load("configs/digits.yaml"))
    assert 0 < estimated_seconds(demo, 6) < RAY_START_SECONDS
    assert chosen_address(ClusterConfig(num_workers=2), demo, 6) == "none"
    assert chosen_address(ClusterConfig(), large, 6) == "local"
    # What is left of a run decides, not the whole of it.
    assert chosen_address(ClusterConfig(), large, 0) == "none"
    assert chosen_address(ClusterConfig(address="none"), large, 6) == "none"


def test_the_estimate_grows_with_the_blocks_that_wait(small: Problem) -> None:
    seconds = [estimated_seconds(small, blocks) for blocks in range(NUM_BLOCKS + 2)]
    assert seconds[0] == 0
    assert seconds[1] == pytest.approx(seconds[NUM_BLOCKS] / NUM_BLOCKS)
    assert seconds[NUM_BLOCKS + 1] == seconds[NUM_BLOCKS]


def test_gpus_that_are_counted_are_rays_business(small: Problem) -> None:
    assert chosen_address(ClusterConfig(gpus_per_worker=0.5), small, 4) == "local"
    assert chosen_address(ClusterConfig(gpus_per_worker=0), small, 4) == "none"
    on_gpu = replace(small, device=torch.device("cuda"))
    assert chosen_address(ClusterConfig(gpus_per_worker=0), on_gpu, 4) == "local"
    assert chosen_address(ClusterConfig(), on_gpu, 4) == "none"


def test_a_job_joins_its_own_cluster_however_small_it_is(
    small: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    assert chosen_address(ClusterConfig(), small, 4) == "10.0.0.5:6379"
    assert chosen_address(ClusterConfig(address="local"), small, 4) == "local"
    assert chosen_address(ClusterConfig(address="none"), small, 4) == "none"
    # Where jobs are sent to is no cluster to join.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert chosen_address(ClusterConfig(), small, 4) == "none"
