"""`unlearn bench`: measured rates are kept, read again, and taken by a plan for GPUs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from cluster import bench_stage, plan_stage
from cluster.bench_stage import kind_of_module
from cluster.cli import app
from cluster.counted_plan import Hardware
from cluster.rates_file import Bench, Measured, bench_file, store, stored
from pipeline.errors import ConfigError
from pipeline.models.networks import cnn, logistic, mlp
from tests.cluster.small_run import config

# 6 * 1e9 operations in 1 ms are 6 TFLOP/s.
KIND = Measured("logistic", "float32", 64, 256, 1e-3, 1e-4, 1e9, 0.5)
GPU = Bench("a GPU", "cuda", 40 << 30, 2, "2.0", {"float32": 1e13}, (KIND,))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.torture
def test_this_machine_is_measured_and_what_was_measured_is_read_again() -> None:
    seen: list[tuple[int, int]] = []
    found = bench_stage.measure(torch.device("cpu"), 1.0, lambda *at: seen.append(at), cases=1)
    assert seen[0] == (0, 2) and seen[-1] == (2, 2)
    assert next((m.case, m.precision) for m in found.products) == ("logistic", "float32")
    for each in found.products:
        # One matrix of 784 by 10, two operations for each multiply-add of 256 samples.
        assert each.forward_flops == 2 * 784 * 10 * 256
        # Of these six forward passes the R-operator takes two: the first layer's.
        counted = each.share * found.matmul[each.precision]
        assert counted == pytest.approx(each.sustained / 3)
    store(found, bench_file())
    assert stored(bench_file()) == found
    assert bench_file().stat().st_mode & 0o777 == 0o600


def test_the_file_lies_where_xdg_says_and_a_relative_path_does_not_count(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench_file() == cache / "unlearn" / "bench.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(cache))
    assert bench_file() == cache / ".cache" / "unlearn" / "bench.json"
    assert stored(bench_file()) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2, "products": []}', '{"format": 1}'])
def test_a_damaged_file_is_refused_with_what_to_do(cache: Path, text: str) -> None:
    path = bench_file()
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="measure again with `unlearn bench`"):
        stored(path)


def test_the_nearest_kind_of_network() -> None:
    names = ("logistic", "perceptron", "cnn", "resnet18, ImageNet stem")
    all_kinds = replace(GPU, products=tuple(replace(KIND, case=name) for name in names))
    modules: list[tuple[nn.Module, int]] = [
        (logistic((4,), 2), 10),
        (mlp((4,), 2, (3,), "tanh"), 23),
        (cnn((1, 28, 28), 10, "tanh"), 21_840),
        (cnn((1, 28, 28), 10, "tanh"), 2_000_000),
    ]
    found = [all_kinds.nearest(kind_of_module(module, size), "float32") for module, size in modules]
    assert [each.case for each in found if each] == list(names)
    assert all_kinds.nearest("logistic", "tf32") is None


def test_a_plan_for_gpus_takes_the_measured_rate_unless_one_is_stated() -> None:
    assumed = plan_stage.plan(config(), Hardware(gpus=2))
    assert assumed["device"] == "GPU with 100 TFLOP/s sustained and 80 GiB, as assumed"
    store(GPU, bench_file())
    measured = plan_stage.plan(config(), Hardware(gpus=2))
    assert measured["device"] == (
        "GPU with 6 TFLOP/s sustained and 40 GiB, as `unlearn bench` measured a GPU"
    )
    said = plan_stage.plan(config(), Hardware(gpus=2, tflops=50))
    assert said["device"] == "GPU with 50 TFLOP/s sustained and 80 GiB, as stated"
    store(replace(GPU, device_type="cpu"), bench_file())
    assert plan_stage.plan(config(), Hardware(gpus=2)) == assumed


def test_the_command_refuses_a_gpu_that_is_not_there_and_prints_what_it_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench_stage, "measure", lambda *_: GPU)
    refused = CliRunner().invoke(app, ["bench", "--device", "cuda"])
    assert refused.exit_code == 1 and isinstance(refused.exception, ConfigError | SystemExit)
    done = CliRunner().invoke(app, ["bench", "--json"])
    assert done.exit_code == 0
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["path"] == str(bench_file()) and printed["products"][0]["case"] == "logistic"
    assert stored(bench_file()) == GPU
    table = CliRunner().invoke(app, ["bench"])
    assert "50.0%" in table.stdout and "kept in" in table.stdout
