"""The base of every configuration section: strict, frozen, no unknown keys."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from storage.masking import masked


class Section(BaseModel):
    """One section of the configuration."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )


def _absolute(path: str) -> str:
    if "://" not in path:
        return str(Path(path).absolute())
    if masked(path) != path:
        raise ValueError(
            "credentials or parameters in a URL would be copied into config.yaml; give them through "
            "the environment (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    return path


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
"""A URL, or a path made absolute when it is read: a run is continued from any folder."""
