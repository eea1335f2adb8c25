"""Numbers as text, for reports and for the terminal."""

from pipeline.formats import percent as percent

MISSING = "-"


def duration(seconds: float) -> str:
    """Return a duration in the unit a person would choose.

    >>> duration(0.0047), duration(12.34), duration(0.00005), duration(300)
    ('4.7 ms', '12.3 s', '0.05 ms', '5.0 min')
    >>> duration(7200), duration(400_000)
    ('2.0 h', '4.6 d')
    """
    if seconds < 1:
        milliseconds = 1000 * seconds
        return f"{milliseconds:.2g} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number to `digits` significant digits, or a dash for none."""
    if value is None:
        return MISSING
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def correlation(value: float | None) -> str:
    """Return a coefficient to four decimals, or a dash for none."""
    return MISSING if value is None else f"{value:.4f}"


def size(num_bytes: float) -> str:
    """Return a number of bytes in the unit a person would choose.

    >>> size(950), size(1_870_000), size(44_700_000_000)
    ('950 B', '1.9 MB', '44.7 GB')
    """
    for unit, bound in (("B", 1e3), ("kB", 1e6), ("MB", 1e9), ("GB", 1e12)):
        if num_bytes < bound:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes / bound * 1e3:.1f} {unit}"
    return f"{num_bytes / 1e12:.2f} TB"
