"""The base of every configuration section: strict, frozen, no unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of the configuration; owners derive theirs from it, `config.py` composes them."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )
