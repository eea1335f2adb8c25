"""A connection to Ray: started here, or an existing cluster. Ray is imported when one is made."""

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from cluster.errors import UnreachableError
from cluster.ray_choice import LOCAL
from cluster.resources import Resources

CONNECT_SECONDS = 10.0
Made = TypeVar("Made")


def draw_token() -> None:
    """Give a cluster that is started here a token of its own, unless the environment has one.

    It lives in the environment of this process and its children only.
    """
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def connect(address: str, num_cpus: int | None = None) -> Resources:
    """Start Ray on this machine ("local"), or join a cluster; return what it has.

    Args:
        address: "local", host:port of a cluster's head, or "auto" for the one that Ray finds.
        num_cpus: Processors that a local Ray counts; None counts those of the machine.

    Raises:
        UnreachableError: If the address does not answer, it asks for another token, or it runs
            another version of Ray.
    """
    import ray
    from ray.exceptions import RayError

    # Started from another thread than the main one, Ray warns that it handles no signals: we do.
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address != LOCAL:
        _check_answers(address)
    try:
        if address == LOCAL:
            draw_token()
            ray.init(
                # By name: without one, Ray would join the cluster that RAY_ADDRESS names.
                address=LOCAL,
                num_cpus=num_cpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=False,
            )
        else:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=True)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError, RayError) as error:
        where = "started on this machine" if address == LOCAL else f"joined at {address}"
        raise UnreachableError(
            f"no Ray cluster could be {where}: {' '.join(str(error).split())[:300]}"
        ) from error
    return resources_now()


def resources_now() -> Resources:
    """Return what the nodes that are alive have."""
    import ray

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
    """Try the port first: left alone, Ray tries for minutes."""
    if address == "auto":
        return
    if "://" in address:
        raise UnreachableError(
            f"{address} is no address of a cluster's head, such as 10.0.0.5:6379; for a dashboard's "
            "http:// address use `unlearn submit`"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UnreachableError(f"address {address!r} is not of the form host:port, local or auto")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UnreachableError(
            f"no answer from {address} ({error}); is the cluster up, and its port reachable from "
            "here?"
        ) from error


def _disconnect() -> None:
    import ray

    ray.shutdown()


@contextmanager
def session(address: str, num_cpus: int | None = None) -> Iterator[Resources]:
    """Connect for the length of a block; a cluster that was started here ends with it."""
    try:
        yield connect(address, num_cpus)
    finally:
        _disconnect()


class RaySession:
    """Ray for the length of a command: connected by the first run that needs it, then kept.

    Its processes end with the thread that started them, so that thread is one of its own, and what
    connects is submitted to it: the caller trains meanwhile. A command that needs no Ray never
    imports it.
    """

    def __init__(self) -> None:
        """Connect to nothing yet."""
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._joined: tuple[str, int | None] | None = None

    def __enter__(self) -> "RaySession":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def submit(self, work: Callable[[], Made]) -> "Future[Made]":
        """Have work that connects done by the session's thread."""
        return self._thread.submit(work)

    def connect(self, address: str, num_cpus: int | None = None) -> Resources:
        """Connect, unless that is done; another address or size ends the connection before it.

        To be called by the session's thread; see `cluster.session.connect`.
        """
        if self._joined != (address, num_cpus):
            self._end()
            connect(address, num_cpus)
            self._joined = (address, num_cpus)
        return resources_now()

    def _end(self) -> None:
        if self._joined is not None:
            self._joined = None
            _disconnect()

    def close(self) -> None:
        """Wait for what was submitted, and end Ray if it was started."""
        self._thread.submit(lambda: None).result()
        self._end()
        self._thread.shutdown()
