"""Shares as text, for messages, certificates and reports. Imports nothing."""


def percent(value: float, digits: int = 1) -> str:
    """Return a share as a percentage without needless zeros.

    >>> percent(0.042), percent(0.2, 0), percent(0.00083)
    ('4.2%', '20%', '0.083%')
    """
    hundred = 100 * value
    if hundred != 0 and abs(hundred) < 1:
        return f"{hundred:.2g}%"
    text = f"{hundred:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "%"
