"""One Ray for all tests that need it: it takes seconds to start."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from cluster.resources import Resources
from cluster.session import session
from tests.cluster.small_run import serial_rows

RAY_CPUS = 4


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Resources]:
    with session("local", RAY_CPUS) as resources:
        yield resources


@pytest.fixture(scope="session")
def expected_rows(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.float32]:
    """The rows of the small run, computed in this process."""
    return serial_rows(tmp_path_factory.mktemp("serial") / "run")
