"""Submitting a run to a cluster: a Ray job through its dashboard.

The job gets our three packages and the configuration, never data: those lie where every node sees
them. What it writes goes to `out`, on storage that outlives the cluster, so that a job that is
submitted again continues.
"""

import asyncio
import logging
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.job_submission import JobStatus, JobSubmissionClient
from tenacity import retry, retry_if_exception_message, stop_after_delay, wait_fixed

import cluster
from cluster import logs
from cluster.address import Dashboard, is_loopback, probe
from cluster.errors import UnreachableError
from pipeline.config import RunConfig
from pipeline.errors import ConfigError

CONFIG_NAME = "job.yaml"
# A cluster that has just started says this until its agents are up.
NOT_YET = "No available agent"
ACCEPT_SECONDS = 25.0
# A cluster without machines gets its first within some minutes.
GROW_SECONDS = 1200
PACKAGES = ("storage", "pipeline", "cluster")
# What fixes the bits of rows and the formats on disk; `--install` pins these on the cluster.
PINNED = (
    "torch", "torchvision", "numpy", "zarr", "numcodecs", "pyarrow", "safetensors", "pydantic",
    "blake3", "cryptography", "scikit-learn", "scipy", "matplotlib", "jinja2", "fsspec",
    "dp-accounting", "structlog", "rich", "typer", "pyyaml", "tenacity", "psutil", "pillow", "requests",
)  # fmt: skip
# Rows at a URL need this as well.
PINNED_FOR_URLS = ("obstore",)


# Ray tells how it packs and uploads a folder; ours is small, so these lines are hidden.
for chatty in (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
):
    logging.getLogger(chatty).setLevel(logging.WARNING)


@dataclass(frozen=True)
class JobOptions:
    """How a job is submitted.

    Attributes:
        out: Run directory as the cluster's nodes see it.
        include: Further files or folders to send, a user's own model for example.
        install: Have every node install the versions that are installed here.
        allow_unauthenticated: Submit to a dashboard that asks for no token.
        follow: Stream the job's lines until it ends.
    """

    out: str
    include: Sequence[Path] = ()
    install: bool = False
    allow_unauthenticated: bool = False
    follow: bool = True


def submit(
    config: RunConfig, address: str, options: JobOptions, say: Callable[[str], None]
) -> tuple[str, int]:
    """Submit a run; with `follow`, wait for its end. Return the job's name and its exit code.

    Raises:
        UnreachableError: If nothing answers, or another version of Ray.
        UnauthenticatedError: If a token is missing, wrong, or not asked for.
    """
    dashboard = probe(address, ray.__version__, options.allow_unauthenticated)
    client = JobSubmissionClient(dashboard.url)
    packages = pinned_packages(config) if options.install else []
    environment = runtime_environment(packages, _own_programs(dashboard))
    with working_folder(config, options.include) as folder:
        job = _accepted(
            client,
            entrypoint=entrypoint(options.out),
            runtime_env={"working_dir": str(folder), **environment},
            metadata={"run": config.name},
        )
    say(f"submitted {job}; stop it with `unlearn submit --address {address} --stop {job}`")
    if not options.follow:
        return job, 0
    return job, follow(client, job, say)


@retry(
    retry=retry_if_exception_message(match=f".*{NOT_YET}"),
    stop=stop_after_delay(ACCEPT_SECONDS),
    wait=wait_fixed(1),
    reraise=True,
)
def _try_to_submit(client: JobSubmissionClient, **job: Any) -> str:
    return client.submit_job(**job)


def _accepted(client: JobSubmissionClient, **job: Any) -> str:
    try:
        return _try_to_submit(client, **job)
    except RuntimeError as error:
        raise UnreachableError(
            f"the cluster does not take the job: {' '.join(str(error).split())[:300]}"
        ) from error


def follow(client: JobSubmissionClient, job: str, say: Callable[[str], None]) -> int:
    """Stream a job's lines until it ends; return its exit code, 1 if it has none."""

    async def stream() -> None:
        async for lines in client.tail_job_logs(job):
            say(lines.rstrip("\n"))

    asyncio.run(stream())
    info = client.get_job_info(job)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    say(f"job {job} ended as {info.status}: {' '.join(str(info.message).split())[:300]}")
    return info.driver_exit_code or 1


def stop(address: str, job: str, allow_unauthenticated: bool) -> str:
    """Stop a job; return a line that says what became of it.

    Raises:
        UnreachableError: If nothing answers, or the cluster knows no such job.
    """
    dashboard = probe(address, ray.__version__, allow_unauthenticated)
    client = JobSubmissionClient(dashboard.url)
    try:
        stopped = client.stop_job(job)
    except RuntimeError as error:
        raise UnreachableError(f"{dashboard.url} knows no job {job!r}") from error
    return f"stopping {job}" if stopped else f"{job} had ended already"


def entrypoint(out: str) -> str:
    """Return the command that the job runs."""
    words = ["python", "-m", "cluster", "run", CONFIG_NAME, "--out", out]
    settings = ["cluster.address=auto", f"cluster.grow_seconds={GROW_SECONDS}"]
    return shlex.join(words + [word for setting in settings for word in ("--set", setting)])


def _own_programs(dashboard: Dashboard) -> dict[str, str]:
    """Let a cluster on this machine find our Python first; elsewhere the folder does not exist."""
    host = urlsplit(dashboard.url).hostname or ""
    folder = Path(sys.executable).parent
    return {"PATH": f"{folder}:${{PATH}}"} if is_loopback(host) else {}


def runtime_environment(
    packages: Sequence[str], more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return what every process of the job gets: variables, and packages to install."""
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1", **logs.wanted()}
    variables |= more or {}
    environment: dict[str, Any] = {"env_vars": variables}
    if packages:
        environment["uv"] = {"packages": list(packages)}
    return environment


def pinned_packages(config: RunConfig) -> list[str]:
    """Return the packages that a run needs, at the versions installed here, Ray apart.

    Raises:
        ConfigError: If one of them is not installed here.
    """
    found = []
    for name in PINNED + (() if config.storage.url is None else PINNED_FOR_URLS):
        try:
            # A local build label such as +cpu is no version that a package index knows.
            found.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError as error:
            raise ConfigError(f"{name} is not installed here, so it cannot be pinned") from error
    return found


@contextmanager
def working_folder(config: RunConfig, include: Sequence[Path]) -> Iterator[Path]:
    """Make the folder that is sent to the cluster: our packages, the configuration, `include`.

    Raises:
        ConfigError: If something to include is missing, or bears the name of one of our packages.
    """
    root = Path(cluster.__file__).parent.parent
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in PACKAGES:
            shutil.copytree(
                root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        (folder / CONFIG_NAME).write_text(config.to_yaml(), encoding="utf-8")
        for path in include:
            target = folder / path.resolve().name
            if target.exists() or not path.exists():
                raise ConfigError(f"--include {path}: there is no such file, or its name is taken")
            if path.is_dir():
                shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(path, target)
        yield folder
