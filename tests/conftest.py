"""One thread for every test: the problems are tiny, and the machine is shared."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # torch itself calls the function it deprecates when forward-mode differentiation is first used.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script:FutureWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start Ray first: its tests mostly wait, and would otherwise be left at the end."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file in one of `make test`'s two workers, and those of Ray all in one.

    So what they share is made once, and one Ray is started. `--dist loadgroup` would do the same, but
    pytest-xdist 3.8 does not group under pytest 9.2.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "ray" if file.startswith("tests/integration/") else file

    return ByFile(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many behaviours were checked: a test function is one, however many cases it has."""
    ended = ("passed", "failed", "xfailed", "xpassed")
    reports = [report for outcome in ended for report in terminalreporter.getreports(outcome)]
    cases = {report.nodeid for report in reports}
    behaviours = {name.partition("[")[0] for name in cases}
    if cases:
        terminalreporter.write_line(f"{len(behaviours):,} behaviours ({len(cases):,} cases)")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """A real S3 API on loopback, started for the first test that asks; its imports take a second."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def prefix(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[str]:
    """An empty bucket's URL; credentials stand in the environment."""
    import boto3

    settings = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{abs(hash(request.node.nodeid)):x}"[:40]
    boto3.client("s3").create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/run"
