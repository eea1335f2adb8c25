"""What a person may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "is unknown; did you mean ...?", or the list of what is known if nothing is near."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"is unknown; did you mean {close[0]!r}?"
    return f"is unknown; known are {', '.join(known)}"
