"""Dashboards that answer, refuse, are too old, or are none: what `submit` says before it sends."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import address
from cluster.address import probe
from cluster.errors import UnauthenticatedError, UnreachableError

OURS = "2.60.0"
TOKEN = "0123456789abcdef"


@contextmanager
def dashboard(version: object = OURS, token: str | None = None) -> Iterator[str]:
    """A dashboard's version page on loopback, behind a token or open."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            allowed = token is None or given == f"Bearer {token}"
            self.send_response(200 if allowed else 403 if given else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": version}).encode() if allowed else b"no")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))


def test_a_dashboard_behind_a_token_is_taken_with_the_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with dashboard(token=TOKEN) as url:
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        assert probe(url + "/", OURS, False) == address.Dashboard(url, OURS, authenticated=True)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        (tmp_path / "token").write_text(TOKEN + "\n")
        assert probe(url, OURS, False).authenticated


def test_without_the_token_the_refusal_says_where_it_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with dashboard(token=TOKEN) as url:
        with pytest.raises(UnauthenticatedError, match="RAY_AUTH_TOKEN_PATH"):
            probe(url, OURS, False)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
        with pytest.raises(UnauthenticatedError, match="refuses the token"):
            probe(url, OURS, True)


def test_an_open_dashboard_is_taken_on_this_machine_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with dashboard() as url:
        assert not probe(url, OURS, False).authenticated
        # The same server, as if its name were another machine's.
        monkeypatch.setattr(address, "is_loopback", lambda host: False)
        with pytest.raises(UnauthenticatedError, match=r"RAY_AUTH_MODE=token.*--allow-unauth"):
            probe(url, OURS, False)
        assert probe(url, OURS, True).ray_version == OURS


def test_no_token_is_sent_to_who_does_not_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    asked = []
    real = address._ask

    def ask(url: str, bearer: str | None) -> object:
        asked.append(bearer)
        return real(url, bearer)

    monkeypatch.setattr(address, "_ask", ask)
    with dashboard() as url:
        probe(url, OURS, False)
    assert asked == [None]


@pytest.mark.parametrize("version", ["2.9.3", "1.13.0", "3.0.0"])
def test_another_version_of_ray_is_refused_with_both_named(version: str) -> None:
    with dashboard(version) as url, pytest.raises(UnreachableError, match=f"{version}.*{OURS}"):
        probe(url, OURS, False)


def test_another_patch_of_the_same_version_is_taken() -> None:
    with dashboard("2.60.9") as url:
        assert probe(url, OURS, False).ray_version == "2.60.9"


def test_what_is_no_dashboard_is_named() -> None:
    with (
        dashboard(None) as url,
        pytest.raises(UnreachableError, match=r"Ray None|no Ray dashboard"),
    ):
        probe(url, OURS, False)
    for wrong in ("127.0.0.1:8265", "ray://127.0.0.1:10001", "http://"):
        with pytest.raises(UnreachableError, match="no dashboard's address"):
            probe(wrong, OURS, False)


def test_an_address_without_an_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "ANSWER_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(UnreachableError, match="no answer from"):
            probe(f"http://127.0.0.1:{port}", OURS, False)
        # One that takes the call and says nothing.
        silent.listen()
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="no answer from"):
            probe(f"http://127.0.0.1:{port}", OURS, False)
        assert time.monotonic() - began < 20
