"""Keyed pseudonyms: how the ledger remembers a unit without holding its name.

    pseudonym(name) = BLAKE2b-128, keyed, personalised by what kind of thing is named

The key lives outside every run, in a file that only its owner may read, named by the environment
variable `UNLEARN_KEY_FILE` (by default `unlearn/pseudonym.key` under `XDG_CONFIG_HOME` or
`~/.config`). Without the key a pseudonym cannot be tied to a name by trying names; with it, it can:
destroying the key makes the suppression list permanently unreadable, and unusable too.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from storage.errors import LedgerError

KEY_FILE_VARIABLE = "UNLEARN_KEY_FILE"
_KEY_BYTES = 32
_DIGEST_BYTES = 16


class PseudonymKey:
    """A secret that turns names into pseudonyms; its bytes are never shown."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _KEY_BYTES:
            raise LedgerError(f"expected a key of {_KEY_BYTES} bytes, found {len(secret)}")
        self._unit = self._keyed(secret, b"unit")
        self._request = self._keyed(secret, b"request")
        self._check = self._keyed(secret, b"key-check")
        self._ledger = self._keyed(secret, b"ledger")

    def __repr__(self) -> str:
        return "PseudonymKey(...)"

    @staticmethod
    def _keyed(secret: bytes, kind: bytes) -> "hashlib.blake2b":
        return hashlib.blake2b(key=secret, digest_size=_DIGEST_BYTES, person=kind)

    def unit(self, name: str) -> str:
        """Return the pseudonym of a unit: 32 hexadecimal digits."""
        return _finish(self._unit, name)

    def units(self, names: Iterable[str]) -> list[str]:
        """Return the pseudonyms of units in the order given; about a microsecond each."""
        return [self.unit(name) for name in names]

    def request(self, request_id: str) -> str:
        """Return the pseudonym of a request id, which clients may have filled with a name."""
        return _finish(self._request, request_id)

    def seal(self, digest: str) -> str:
        """Return the seal of a ledger whose file has this digest; it cannot be made without the key."""
        return _finish(self._ledger, digest)

    def check_value(self) -> str:
        """Return what a ledger keeps to notice that it is opened with another key."""
        return self._check.hexdigest()


def is_pseudonym(text: str) -> bool:
    """Whether a text has the form of a pseudonym: 32 hexadecimal digits, lower case."""
    return len(text) == 2 * _DIGEST_BYTES and set(text) <= set("0123456789abcdef")


def _finish(keyed: "hashlib.blake2b", text: str) -> str:
    digest = keyed.copy()
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def default_key_file() -> Path:
    """Return the key file that the environment names."""
    named = os.environ.get(KEY_FILE_VARIABLE)
    if named:
        return Path(named)
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "unlearn" / "pseudonym.key"


def unkept_key() -> PseudonymKey:
    """Return a fresh key that is stored nowhere."""
    return PseudonymKey(os.urandom(_KEY_BYTES))


def load_key(run_dir: Path, path: Path | None = None, *, create: bool = True) -> PseudonymKey:
    """Read the key, creating it with mode 0600 where there is none.

    Args:
        run_dir: The run that the key must not lie in.
        path: The key file; by default what the environment names.
        create: Whether to make a key where there is none.

    Raises:
        LedgerError: The file lies inside the run, others may read it, or it is not a key.
    """
    path = path or default_key_file()
    return PseudonymKey(read_secret(run_dir, path, _fresh if create else None))


def _fresh() -> bytes:
    return os.urandom(_KEY_BYTES)


def read_secret(run_dir: Path, path: Path, fresh: Callable[[], bytes] | None) -> bytes:
    """Read a key file that only its owner may read, creating it where there is none.

    Args:
        run_dir: The run that the key must not lie in.
        path: The key file.
        fresh: Makes a new key's content; None refuses to make one.

    Raises:
        LedgerError: The file lies inside the run, others may read it, or it is not there.
    """
    path = path.absolute()
    if path.resolve().is_relative_to(run_dir.resolve()):
        raise LedgerError(
            f"the key {path} lies inside the run {run_dir}, and would travel with it; name a file "
            f"outside in {KEY_FILE_VARIABLE}"
        )
    if not path.exists():
        if fresh is None:
            raise LedgerError(f"the key file {path} is not there; name it in {KEY_FILE_VARIABLE}")
        _create_key(path, fresh())
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise LedgerError(
            f"expected the key {path} to be readable by its owner alone, found mode {mode:04o}; "
            "run chmod 600 on it"
        )
    return path.read_bytes()


def _create_key(path: Path, content: bytes) -> None:
    """Create the key beside its place and link it in, so that of two processes one key wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}-{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
        os.link(fresh, path)
    except FileExistsError:
        pass  # another process created it first, and its key is the one
    finally:
        os.close(descriptor)
        fresh.unlink()
