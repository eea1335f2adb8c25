"""A connection to Ray: started here, or an existing cluster."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cluster.errors import UnreachableError
from cluster.resources import Resources


def draw_token() -> None:
    """Give a cluster that is started here a token of its own, unless the person has one set up.

    It lives in the environment of this process and its children only.
    """
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def connect(address: str | None, num_cpus: int | None = None) -> Resources:
    """Start Ray on this machine, or join the cluster at `address`; return what it has.

    Raises:
        UnreachableError: If nobody answers at the address, or with another version of Ray.
    """
    # Started from another thread than the main one, Ray warns that it handles no signals: we do.
    logging.getLogger("ray").setLevel(logging.ERROR)
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
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        raise UnreachableError(
            f"no Ray cluster could be reached at {address or 'this machine'}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    totals = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Resources(totals.get("CPU", 0.0), totals.get("GPU", 0.0))


@contextmanager
def session(address: str | None, num_cpus: int | None = None) -> Iterator[Resources]:
    """Connect for the length of a block; a cluster that was started here ends with it."""
    try:
        yield connect(address, num_cpus)
    finally:
        ray.shutdown()
