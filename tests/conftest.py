"""One thread for every test: the problems are tiny, and the machine is shared."""

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # torch itself calls the function it deprecates when forward-mode differentiation is first used.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script:FutureWarning")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
