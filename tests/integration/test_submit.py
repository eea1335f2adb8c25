"""`unlearn submit` against a real Ray with dashboard and token, as a person types it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import ray

from pipeline.run.directory import RunDirectory
from tests.cluster.small_run import config, rows_of

pytestmark = [pytest.mark.ray, pytest.mark.torture]

TOKEN = "0123456789abcdef0123456789abcdef"
HEAD = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1",
         dashboard_port=int(sys.argv[1]), log_to_driver=False)
print("up", flush=True)
sys.stdin.read()
ray.shutdown()
"""


def environment(**variables: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return kept | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"} | variables


def submit(url: str, arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster", "submit", "--address", url, *arguments],
        capture_output=True,
        text=True,
        env=environment(**variables),
        check=False,
    )


@contextmanager
def dashboard(python: str = sys.executable) -> Iterator[str]:
    """A cluster of its own, alive as long as its standard input is open."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [python, "-c", HEAD, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(RAY_AUTH_TOKEN=TOKEN),
        text=True,
    ) as head:
        assert head.stdout is not None and head.stdin is not None
        assert head.stdout.readline() == "up\n"
        yield f"http://127.0.0.1:{port}"
        head.stdin.close()
        head.wait(60)


def test_a_job_succeeds_streams_its_lines_and_hands_on_its_exit_code(
    tmp_path: Path, expected_rows: npt.NDArray[np.float32]
) -> None:
    settings = config(evaluation={"deletions": [1]}, cluster={"num_workers": 2})
    (tmp_path / "small.yaml").write_text(settings.to_yaml())
    arguments = [str(tmp_path / "small.yaml"), "--out", str(tmp_path / "run")]
    with dashboard() as url:
        refused = submit(url, arguments, RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"))
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: ")
        assert "RAY_AUTH_TOKEN" in refused.stderr
        wrong = submit(url, arguments, RAY_AUTH_TOKEN="wrong")
        assert (wrong.returncode, "refuses the token" in wrong.stderr) == (1, True)
        done = submit(url, arguments, RAY_AUTH_TOKEN=TOKEN)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "precompute: " in done.stdout
        # The run's own configuration is refused for another one's folder, with its exit code.
        other = submit(url, [*arguments, "--set", "seed=7"], RAY_AUTH_TOKEN=TOKEN)
        assert other.returncode == 2
        assert "belongs to another configuration" in other.stdout
    assert np.array_equal(rows_of(RunDirectory.open(tmp_path / "run")), expected_rows)


def test_nodes_that_have_ray_alone_install_the_rest(tmp_path: Path) -> None:
    uv, bare = Path(sys.executable).parent / "uv", tmp_path / "bare"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, bare], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", bare / "bin" / "python"]
    subprocess.run([*install, f"ray[default]=={ray.__version__}", "pip"], check=True)
    settings = config(evaluation={"deletions": [1]}, cluster={"num_workers": 2})
    (tmp_path / "small.yaml").write_text(settings.to_yaml())
    arguments = [str(tmp_path / "small.yaml"), "--out", str(tmp_path / "run"), "--install"]
    with dashboard(str(bare / "bin" / "python")) as url:
        done = submit(url, arguments, RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
