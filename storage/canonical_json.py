"""Canonical JSON by RFC 8785: one sequence of bytes for one value, to be signed.

Keys are sorted by their UTF-16 code units, nothing stands between tokens, strings are UTF-8 with the
shortest escapes, and numbers are written as ECMAScript writes a double.
"""

import json
import math
from decimal import Decimal

# Beyond it a double, and so most readers of JSON, cannot tell whole numbers apart.
_LARGEST_WHOLE = 2**53 - 1


def canonical_json(value: object) -> bytes:
    """Return the canonical bytes of a value of dicts, lists, texts, numbers, truth values and None.

    Raises:
        ValueError: It has no canonical form: not finite, too large a whole number, half a
            surrogate pair, or a key that is no text.

    >>> canonical_json({"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 1e-27], "a": None})
    b'{"a":null,"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27]}'
    """
    return _text(value).encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, a ValueError


def _text(value: object) -> str:
    if value is None or isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        if abs(value) > _LARGEST_WHOLE:
            raise ValueError(f"expected a whole number of at most 2^53 - 1, found {value:.3e}")
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{_text(key)}:{_text(value[key])}" for key in keys) + "}"
    raise ValueError(f"expected a value of JSON, found {type(value).__name__}")


def _number(value: float) -> str:
    """Return a double as ECMAScript's `Number::toString` does; both take the shortest digits."""
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value}")
    if value == 0:
        return "0"
    parts = Decimal(repr(abs(value))).normalize().as_tuple()
    digits, sign = "".join(map(str, parts.digits)), "-" if value < 0 else ""
    point = len(digits) + int(parts.exponent)  # how many digits stand before the decimal point
    if len(digits) <= point <= 21:
        return sign + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{point - 1:+d}"
