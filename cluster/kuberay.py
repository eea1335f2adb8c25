"""A run as a KubeRay RayJob, for clusters on Kubernetes.

A failed job is repeated on a new cluster (`backoffLimit`), which continues from what the last one
left on the volume.
"""

from dataclasses import dataclass
from typing import Any

import ray
import yaml

from cluster.jobs import CONFIG_NAME, entrypoint, runtime_environment
from pipeline.config import RunConfig
from pipeline.errors import ConfigError

CONFIG_FOLDER = "/etc/unlearn"
VOLUME_FOLDER = "/runs"
NAME_LENGTH = 40


@dataclass(frozen=True)
class Kubernetes:
    """What the manifest must be told.

    Attributes:
        image: Container with this program, of the same Ray version.
        claim: PersistentVolumeClaim, readable and writable by many nodes, for run directories.
        secret: Secret whose key `auth_token` holds the cluster's token.
        workers: Most worker pods.
        gpus: GPUs of each worker pod.
    """

    image: str
    claim: str = "unlearn-runs"
    secret: str = "ray-auth-token"
    workers: int = 4
    gpus: int = 1


def manifest(config: RunConfig, settings: Kubernetes) -> str:
    """Return YAML for `kubectl apply -f -`: a ConfigMap with the configuration and the RayJob.

    Raises:
        ConfigError: If the run's name makes no Kubernetes name.
    """
    name = config.name.lower().replace("_", "-")
    if not name.replace("-", "").isalnum() or len(name) > NAME_LENGTH or name != name.strip("-"):
        raise ConfigError(
            f"name {config.name!r} makes no Kubernetes name; use at most {NAME_LENGTH} letters, digits "
            "and dashes"
        )
    documents = [_config_map(name, config), _ray_job(name, settings)]
    return yaml.safe_dump_all(documents, sort_keys=False)


def _config_map(name: str, config: RunConfig) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-config"},
        "data": {CONFIG_NAME: config.to_yaml()},
    }


def _ray_job(name: str, settings: Kubernetes) -> dict[str, Any]:
    command = entrypoint(f"{VOLUME_FOLDER}/{name}").replace(
        CONFIG_NAME, f"{CONFIG_FOLDER}/{CONFIG_NAME}"
    )
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": command,
            "runtimeEnvYAML": yaml.safe_dump(runtime_environment([])),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": 3,
            "rayClusterSpec": {
                "rayVersion": ray.__version__,
                "enableInTreeAutoscaling": True,
                "authOptions": {"mode": "token", "secretName": settings.secret},
                "headGroupSpec": {
                    # The head schedules; it computes nothing, so its processors are not offered.
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": _pod(name, settings, "ray-head", {"cpu": "4", "memory": "16Gi"}),
                },
                "workerGroupSpecs": [_worker_group(name, settings)],
            },
        },
    }


def _worker_group(name: str, settings: Kubernetes) -> dict[str, Any]:
    size = {"cpu": "8", "memory": "64Gi"}
    if settings.gpus:
        size["nvidia.com/gpu"] = str(settings.gpus)
    return {
        "groupName": "workers",
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": settings.workers,
        "rayStartParams": {},
        "template": _pod(name, settings, "ray-worker", size),
    }


def _pod(name: str, settings: Kubernetes, container: str, size: dict[str, str]) -> dict[str, Any]:
    mounts = [
        {"name": "runs", "mountPath": VOLUME_FOLDER},
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": settings.claim}},
        {"name": "config", "configMap": {"name": f"{name}-config"}},
    ]
    return {
        "spec": {
            "containers": [
                {
                    "name": container,
                    "image": settings.image,
                    "resources": {"requests": size, "limits": size},
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        }
    }
