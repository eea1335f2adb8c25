"""Names in error messages: the nearest known name, and short lists."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

# A longer list is not read, and may grow to megabytes.
MOST_NAMED = 10
_LONGEST = 80


def named(names: Sequence[str]) -> str:
    """Return the names, quoted and at most ten of them, and how many more there are."""
    return _joined([repr(_short(name)) for name in names[:MOST_NAMED]], len(names))


def listed(words: Sequence[str]) -> str:
    """Return the words without quotes, at most ten of them, and how many more there are."""
    return _joined([" ".join(_short(word).split()) for word in words[:MOST_NAMED]], len(words))


def _short(word: str) -> str:
    return word if len(word) <= _LONGEST else f"{word[:_LONGEST]}..."


def _joined(words: Sequence[str], total: int) -> str:
    more = total - len(words)
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "is unknown; did you mean ...?", or the list of what is known if nothing is near."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"is unknown; did you mean {close[0]!r}?"
    return f"is unknown; known are {listed(known)}"
