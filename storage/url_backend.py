"""Objects behind a URL (S3 and similar) through obstore, with retries and conditional puts.

A put is atomic and durable in itself, so nothing is renamed. A lock is a small object that is put
only if it is not there; its holder may die, so it is a lease and may be taken over, by a put on
condition that it is still the same one, after LEASE_SECONDS.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import obstore
import tenacity
from obstore import exceptions
from obstore.store import from_url

from storage.backend import PUTS_AT_ONCE
from storage.chunks import BytesReader
from storage.encoding import ByteArray
from storage.errors import BackendUnavailableError, LayoutError, WriterConflictError
from storage.names import shown

if TYPE_CHECKING:
    from obstore import UpdateVersion

# Longer than any writer holds a block or the manifest: 256 rows of 45 MB at 15 MB/s.
LEASE_SECONDS = 900.0
_LOCK_POLL_SECONDS = 0.5
_ATTEMPTS = 5
WAIT: tenacity.wait.wait_base = tenacity.wait_random_exponential(multiplier=0.1, max=5)

T = TypeVar("T")


class UrlBackend:
    """Objects below a URL prefix; credentials come from the environment.

    Args:
        url: for example `s3://bucket/prefix`.
    """

    readers_hold_bytes = True
    locks_outlive_holders = True

    def __init__(self, url: str) -> None:
        self.url = url
        # Retrying is done here, where it is counted and waited for in one place.
        self._objects = from_url(url, retry_config={"max_retries": 0})

    def read(self, key: str) -> bytes:
        """All bytes of an object."""
        return self._try(lambda: bytes(obstore.get(self._objects, key).bytes()))

    def open(self, key: str) -> BytesReader:
        """An object's bytes, held in memory."""
        return BytesReader(np.frombuffer(self.read(key), np.uint8))

    def put(self, key: str, data: bytes | ByteArray) -> None:
        """Replace an object."""
        content = data if isinstance(data, bytes) else data.tobytes()
        # A killed multipart upload would leave its parts, bytes of rows, where no listing shows them.
        self._try(lambda: obstore.put(self._objects, key, content, use_multipart=False))

    def put_all(self, objects: Mapping[str, bytes | ByteArray]) -> None:
        """Put objects by several threads."""
        with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
            list(pool.map(lambda item: self.put(*item), objects.items()))

    def settle(self) -> None:
        """Nothing to do: a put that has returned is durable."""

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        try:
            self._try(lambda: obstore.delete(self._objects, key))
        except FileNotFoundError:
            return

    def delete_folder(self, prefix: str) -> None:
        """Remove every object below a prefix."""
        for key in self.sizes(prefix):
            self.delete(key)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Sizes of the objects below a prefix."""
        return self._try(
            lambda: {
                item["path"]: item["size"]
                for page in obstore.list(self._objects, f"{prefix}/")
                for item in page
            }
        )

    def folders(self, prefix: str) -> list[str]:
        """Prefixes directly below a prefix."""
        found = self._try(lambda: obstore.list_with_delimiter(self._objects, f"{prefix}/"))
        return [folder.rstrip("/") for folder in found["common_prefixes"]]

    def version(self, key: str) -> str | None:
        """The object's entity tag."""
        try:
            return self._try(lambda: str(obstore.head(self._objects, key)["e_tag"]))
        except FileNotFoundError:
            return None

    @contextmanager
    def lock(self, key: str, *, wait: bool) -> Iterator[None]:
        """Hold a lease."""
        token = secrets.token_bytes(16)
        while not self._take(key, token):
            if not wait:
                raise WriterConflictError(
                    f"{self.url}/{key} is held by another writer; wait for it, or up to "
                    f"{LEASE_SECONDS:.0f} seconds if that writer has died"
                )
            time.sleep(_LOCK_POLL_SECONDS)
        try:
            yield
        finally:
            self._release(key, token)

    def _take(self, key: str, token: bytes) -> bool:
        try:
            self._try(lambda: obstore.put(self._objects, key, token, mode="create"))
        except exceptions.AlreadyExistsError:
            # Perhaps it is ours: an attempt whose answer was lost has been repeated.
            return self._holds(key, token) or self._take_over(key, token)
        return True

    def _holds(self, key: str, token: bytes) -> bool:
        try:
            return self.read(key) == token
        except FileNotFoundError:
            return False

    def _take_over(self, key: str, token: bytes) -> bool:
        """Replace a lease that has run out, if no other process does so first."""
        try:
            found = self._try(lambda: obstore.head(self._objects, key))
            if time.time() - found["last_modified"].timestamp() < LEASE_SECONDS:
                return False
            condition: UpdateVersion = {"e_tag": str(found["e_tag"])}
            self._try(lambda: obstore.put(self._objects, key, token, mode=condition))
        except (FileNotFoundError, exceptions.PreconditionError):
            return False
        return True

    def _release(self, key: str, token: bytes) -> None:
        if self._holds(key, token):
            self.delete(key)

    def _try(self, operation: Callable[[], T]) -> T:
        """Carry out an idempotent operation, again if the backend fails to answer."""
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=WAIT,
            retry=tenacity.retry_if_exception_type(exceptions.GenericError),
            reraise=True,
        )
        try:
            return retrying(operation)
        except exceptions.InvalidPathError as error:
            raise LayoutError(
                f"{self.url} holds an object that no store writes: {shown(str(error))}; remove it, "
                "or give the store a prefix of its own"
            ) from error
        except (
            exceptions.GenericError,
            exceptions.PermissionDeniedError,
            exceptions.UnauthenticatedError,
        ) as error:
            # Behind the reason stands the library's own state, of use to its makers alone.
            reason = " ".join(str(error).partition("Debug source:")[0].split())
            raise BackendUnavailableError(
                f"{self.url} failed {_ATTEMPTS} times or refused access: {reason}; check the "
                "address and the credentials in the environment"
            ) from error
