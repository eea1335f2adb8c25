"""A connection to Ray: started here, or an existing cluster."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.errors import UnreachableError
from cluster.resources import Resources

CONNECT_SECONDS = 10.0


def draw_token() -> None:
    """Give a cluster that is started here a token of its own, unless the person has one set up.

    It lives in the environment of this process and its children only.
    """
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def connect(address: str | None, num_cpus: int | None = None) -> Resources:
    """Start Ray on this machine, or join the cluster at `address`; return what it has.

    Raises:
        UnreachableError: If nobody answers at the address, it asks for another token, or it runs
            another version of Ray.
    """
    # Started from another thread than the main one, Ray warns that it handles no signals: we do.
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address == "auto":
        # Inside a job this names the job's own cluster; a machine may hold several.
        address = os.environ.get("RAY_ADDRESS", address)
    if address is not None:
        _check_answers(address)
    try:
        if address is None:
            draw_token()
            ray.init(
                num_cpus=num_cpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=False,
            )
        else:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=True)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError, RayError) as error:
        raise UnreachableError(
            f"no Ray cluster could be joined at {address or 'this machine'}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return resources_now()


def resources_now() -> Resources:
    """Return what the nodes that are alive have."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in known if node["Alive"]]
    return Resources(
        cpus=sum(node.get("CPU", 0.0) for node in nodes),
        gpus=sum(node.get("GPU", 0.0) for node in nodes),
        # Ray sets a part of the free memory aside for its object store, which we leave empty.
        memory_bytes=tuple(
            node.get("memory", 0.0) + node.get("object_store_memory", 0.0) for node in nodes
        ),
    )


def _check_answers(address: str) -> None:
    """Knock first: left alone, Ray tries for minutes."""
    if address == "auto":
        return
    if "://" in address:
        raise UnreachableError(
            f"{address} is no address of a cluster's head, such as 10.0.0.5:6379; for a dashboard's "
            "http:// address use `unlearn submit`"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UnreachableError(f"address {address!r} is not of the form host:port, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UnreachableError(
            f"nobody answers at {address} ({error}); is the cluster up, and its port reachable from "
            "here?"
        ) from error


@contextmanager
def session(address: str | None, num_cpus: int | None = None) -> Iterator[Resources]:
    """Connect for the length of a block; a cluster that was started here ends with it."""
    try:
        yield connect(address, num_cpus)
    finally:
        ray.shutdown()
