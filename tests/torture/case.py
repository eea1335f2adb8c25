"""One case of the fuzz: a command line, and whether it should succeed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """What is run, and what must come of it.

    Attributes:
        about: What is odd about the input.
        words: The command line, without the program.
        good: True if it must succeed, False if it must be refused, None if either will do.
    """

    about: str
    words: tuple[str, ...]
    good: bool | None


@dataclass(frozen=True)
class Workshop:
    """Where a case is made.

    Attributes:
        random: Decides everything.
        folder: An empty folder of the case's own.
        base: A folder with the finished runs `fresh` and `deleted`, not to be changed.
    """

    random: Random
    folder: Path
    base: Path

    def pick(self, *choices: T) -> T:
        """Return one of the choices."""
        return self.random.choice(choices)

    def write(self, name: str, content: bytes | str) -> Path:
        """Write a file and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        )
        return path

    def damage(self, content: bytes) -> bytes:
        """Return bytes with a random piece cut off, flipped, doubled, or filled with something else."""
        if not content:
            return self.random.randbytes(16)
        start = self.random.randrange(len(content))
        stop = min(len(content), start + 1 + self.random.randrange(64))
        kind = self.random.randrange(6)
        if kind == 0:
            return content[:start]
        if kind == 1:
            flipped = content[start] ^ (1 << self.random.randrange(8))
            return content[:start] + bytes([flipped]) + content[start + 1 :]
        if kind == 2:
            return content[:start] + content[start:stop] * 2 + content[stop:]
        if kind == 3:
            return content[:start] + self.random.randbytes(stop - start) + content[stop:]
        if kind == 4:
            return content[:start] + content[stop:]
        return content[:start] + bytes(stop - start) + content[stop:]


Maker = Callable[[Workshop], Case]
