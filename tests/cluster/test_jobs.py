"""What is sent to a cluster: our packages and a configuration, no data, versions pinned."""

import json
import re
import shlex
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster import kuberay as manifests
from cluster.jobs import entrypoint, pinned_packages, runtime_environment, working_folder
from cluster.kuberay import Kubernetes, manifest
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from tests.cluster.small_run import config

ROOT = Path(__file__).parent.parent.parent


def test_the_folder_that_is_sent_holds_our_packages_and_the_configuration_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text("def factory(shape, classes): ...")
    with working_folder(config(), [tmp_path / "mine.py"]) as folder:
        names = {path.name for path in folder.iterdir()}
        assert names == {"storage", "pipeline", "cluster", "job.yaml", "mine.py"}
        assert RunConfig.load(folder / "job.yaml") == config()
        assert (folder / "cluster" / "cli.py").is_file()
        assert (folder / "pipeline" / "evaluation" / "templates").is_dir()
        assert not list(folder.rglob("*.pyc"))
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 3 << 20
    assert not folder.exists()


def test_nothing_missing_is_included_and_nothing_of_ours_replaced(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    for path in (tmp_path / "none.py", tmp_path / "storage"):
        with pytest.raises(ConfigError, match="--include"), working_folder(config(), [path]):
            pass


def test_the_job_joins_its_cluster_waits_for_machines_and_quotes_its_folder() -> None:
    words = shlex.split(entrypoint("/runs/my run; rm"))
    assert words[:6] == ["python", "-m", "cluster", "run", "job.yaml", "--out"]
    assert words[6] == "/runs/my run; rm"
    overrides = words[8::2]
    settings = RunConfig.from_text(config().to_yaml(), "test", overrides)
    assert settings.cluster.address == "auto"
    assert settings.cluster.grow_seconds > 0


def test_every_node_gets_the_versions_that_are_installed_here() -> None:
    pinned = pinned_packages(config())
    assert all("==" in package and "+" not in package for package in pinned)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = {re.split(r"[\[>]", package)[0] for package in declared} - {"ray"}
    assert {package.split("==")[0] for package in pinned} == needed
    assert runtime_environment(pinned)["uv"]["packages"] == pinned
    assert "uv" not in runtime_environment([])


def test_rows_at_a_url_need_one_package_more() -> None:
    pinned = pinned_packages(config(storage={"url": "s3://bucket/rows.zarr"}))
    assert {package.split("==")[0] for package in pinned} >= {"obstore", "zarr"}


def test_the_manifest_is_a_ray_job_with_a_token_a_volume_and_the_configuration() -> None:
    text = manifest(config(), Kubernetes(image="registry.example/unlearn:1", workers=3, gpus=2))
    config_map, job = list(yaml.safe_load_all(text))
    settings = RunConfig.from_text(config_map["data"]["job.yaml"], "the manifest")
    assert settings == config()
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["entrypoint"].split()[4] == "/etc/unlearn/job.yaml"
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"], dict)
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-auth-token"}
    workers = cluster["workerGroupSpecs"][0]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (0, 3)
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "2"


@pytest.mark.parametrize("name", ["-small", "my run", "x" * (manifests.NAME_LENGTH + 1), ""])
def test_a_name_that_kubernetes_would_refuse_is_refused_here(name: str) -> None:
    with pytest.raises(ConfigError, match="Kubernetes name"):
        manifest(config().model_copy(update={"name": name}), Kubernetes(image="image"))


def launcher() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / "ray_config.yaml").read_text())
    return values


def test_the_launchers_file_is_valid_against_rays_own_schema() -> None:
    schema = json.loads(resources.files("ray.autoscaler").joinpath("ray-schema.json").read_text())
    jsonschema.validate(launcher(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(launcher() | {"unknown_key": 1}, schema)


def test_every_node_of_the_launchers_cluster_asks_for_the_token() -> None:
    values = launcher()
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = [command for command in values[key] if "ray start" in command]
        assert start and all("RAY_AUTH_MODE=token" in command for command in start)
    head = " ".join(values["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "~/.ray/auth_token" in values["file_mounts"]


def test_the_launchers_workers_grow_from_none_and_have_gpus() -> None:
    values = launcher()
    assert values["head_node_type"] in values["available_node_types"]
    workers = values["available_node_types"]["gpu_worker"]
    assert workers["min_workers"] == 0
    assert 0 < workers["max_workers"] <= values["max_workers"]
    assert workers["resources"]["GPU"] >= 1
