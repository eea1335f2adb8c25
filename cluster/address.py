"""Probing a dashboard's address: its version, and whether it is safe to send it a job.

A dashboard runs whatever code it is sent. One that does not ask for a token does so for anyone who
can reach it (CVE-2023-48022), so we send nothing there unless it is on this machine or we are told to.
"""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests

from cluster.errors import UnauthenticatedError, UnreachableError

ANSWER_SECONDS = 10.0
# Jobs are submitted by an interface that changes between minor versions.
UNAUTHORIZED, FORBIDDEN = 401, 403


@dataclass(frozen=True)
class Dashboard:
    """A dashboard that answered.

    Attributes:
        url: Where, without a trailing slash.
        ray_version: What it runs; "" if it does not say without the right token.
        authenticated: Whether it asks for a token.
    """

    url: str
    ray_version: str
    authenticated: bool


def token() -> str | None:
    """Return the token that Ray's clients send from here: from the environment or ~/.ray."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def is_loopback(host: str) -> bool:
    """Return whether a host name means this machine.

    >>> is_loopback("localhost"), is_loopback("127.0.0.7"), is_loopback("::1"), is_loopback("10.0.0.1")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def probe(address: str, own_version: str, allow_unauthenticated: bool) -> Dashboard:
    """Ask a dashboard for its version, first without a token, and refuse what is unsafe or too old.

    Raises:
        UnreachableError: If nothing answers within some seconds, or another version of Ray does.
        UnauthenticatedError: If it asks for no token and is not on this machine, or asks for one
            that is missing or wrong here.
    """
    url = address.rstrip("/")
    try:
        parts = urlsplit(url)
        # Asked for, because a port that is no number is found out only then.
        host = parts.hostname if parts.port != 0 and parts.scheme in ("http", "https") else None
    except ValueError:
        host = None
    if not host:
        raise UnreachableError(
            f"{address!r} is no dashboard's address, such as http://127.0.0.1:8265"
        )
    answer = _ask(url, None)
    authenticated = answer.status_code in (UNAUTHORIZED, FORBIDDEN)
    if authenticated:
        answer = _ask_with_token(url)
    elif not is_loopback(host) and not allow_unauthenticated:
        raise UnauthenticatedError(
            f"{url} asks for no token: anyone who reaches it can run code on that cluster and read "
            "its data. Start it with RAY_AUTH_MODE=token, or tunnel to it and use a loopback address; "
            "--allow-unauthenticated submits anyway"
        )
    version = _version(url, answer)
    if version.split(".")[:2] != own_version.split(".")[:2]:
        raise UnreachableError(
            f"{url} runs Ray {version}, this machine {own_version}; install the same minor version on "
            "both"
        )
    return Dashboard(url, version, authenticated)


def _ask(url: str, bearer: str | None) -> requests.Response:
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    try:
        # Redirects are not followed: they could carry the token elsewhere.
        return requests.get(
            f"{url}/api/version", headers=headers, timeout=ANSWER_SECONDS, allow_redirects=False
        )
    except requests.exceptions.RequestException as error:
        raise UnreachableError(
            f"no answer from {url} ({type(error).__name__}); is the cluster up, and its dashboard "
            "reachable from here?"
        ) from error


def _ask_with_token(url: str) -> requests.Response:
    bearer = token()
    if bearer is None:
        raise UnauthenticatedError(
            f"{url} asks for a token and there is none here; set RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH to the file that holds it (on the head: `ray get-auth-token`)"
        )
    answer = _ask(url, bearer)
    if answer.status_code in (UNAUTHORIZED, FORBIDDEN):
        raise UnauthenticatedError(
            f"{url} refuses the token that is set here; take the cluster's own (on the head: "
            "`ray get-auth-token`)"
        )
    return answer


def _version(url: str, answer: requests.Response) -> str:
    try:
        return str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise UnreachableError(
            f"what answers at {url} is no Ray dashboard (status {answer.status_code})"
        ) from error
