"""What is let go of at the end of a `with` block."""

from types import TracebackType
from typing import Self


class Closeable:
    """Calls `close` when its `with` block ends, however it ends."""

    def close(self) -> None:
        """Let go; here nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
