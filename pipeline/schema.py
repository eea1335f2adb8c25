"""The base of every configuration section: strict, frozen, no unknown keys."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Section(BaseModel):
    """One section of the configuration."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
"""A URL, or a path made absolute when it is read: a run is continued from any folder."""
