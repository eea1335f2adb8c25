"""What a report is made of: a headline, and sections of words, plots and tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.evaluation.figures import Plot


@dataclass(frozen=True)
class Table:
    """Numbers as text.

    Attributes:
        headers: One per column; the first column names the row.
        rows: Cells of each row.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        title: A heading that says what was found.
        text: Paragraphs.
        plots: Drawings, side by side where there is room.
        table: Their numbers.
    """

    title: str
    text: Sequence[str] = ()
    plots: Sequence[Plot] = field(default=())
    table: Table | None = None


@dataclass(frozen=True)
class Headline:
    """The report in one look.

    Attributes:
        title: What was deleted and how fast.
        text: How near to retraining, in a sentence.
        figures: Pairs of a number and what it is.
    """

    title: str
    text: str
    figures: Sequence[tuple[str, str]]
