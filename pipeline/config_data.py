"""The configuration of the data: their source, what is deleted as one, and random augmentation."""

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from pipeline.bounds import MAX_IMAGE_SIDE, MAX_SAMPLES, Positive, Probability, at_most
from pipeline.schema import AbsolutePath, Section


class FlipConfig(Section):
    """Mirroring a picture."""

    probability: Probability = 0.5
    """Of being mirrored: left and right by flip, top and bottom by vertical_flip."""


class CropConfig(Section):
    """Shifting a picture: zeros are put around it, and a part of its own size is cut out."""

    padding: Annotated[int, Field(ge=1), at_most(MAX_IMAGE_SIDE, "no picture is larger")]
    """Zeros on each side, below the picture's smaller side. Unit: pixels."""


class JitterConfig(Section):
    """Changing a picture's values by factors of 1 - b to 1 + b, drawn for each b below."""

    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """All values times a factor."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The distance to the picture's mean grey times a factor."""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The distance of each pixel to its own grey times a factor; three channels."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Colours turned around grey by at most this share of a whole turn; three channels."""

    @model_validator(mode="after")
    def check_any(self) -> "JitterConfig":
        """Refuse a jitter that changes nothing."""
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("expected one of brightness, contrast, saturation, hue above 0")
        return self


class NoiseConfig(Section):
    """Adding normal noise to each value."""

    deviation: Positive
    """Standard deviation, in the units of the data."""


class CutoutConfig(Section):
    """Setting a square to zero."""

    side: Annotated[int, Field(ge=1), at_most(MAX_IMAGE_SIDE, "no picture is larger")]
    """Of the square, below the picture's smaller side; its centre is drawn anywhere in the picture.
    Unit: pixels."""


class TransformConfig(Section):
    """One random change of a picture; `data.augment` is a list of them, each with one name.

        augment: [{flip: {probability: 0.5}}, {crop: {padding: 4}}]

    They are applied in this order. What is drawn depends on the seed, the step and the sample's id
    alone. Values are not clamped.
    """

    flip: FlipConfig | None = None
    """Mirror left and right."""
    vertical_flip: FlipConfig | None = None
    """Mirror top and bottom."""
    crop: CropConfig | None = None
    """Shift."""
    jitter: JitterConfig | None = None
    """Change brightness and colours."""
    noise: NoiseConfig | None = None
    """Add noise."""
    cutout: CutoutConfig | None = None
    """Set a square to zero."""

    @model_validator(mode="before")
    @classmethod
    def check_form(cls, values: object) -> object:
        """Refuse what is no mapping with one name; take `flip:` without anything for its defaults."""
        if not isinstance(values, dict):
            raise ValueError("expected a mapping with one name, such as {flip: {probability: 0.5}}")
        if len(values) != 1:
            names = ", ".join(map(str, values)) or "none"
            raise ValueError(f"expected one name in each entry of the list, found {names:.80}")
        return {name: {} if value is None else value for name, value in values.items()}

    @property
    def name(self) -> str:
        """Which change it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def settings(self) -> Section:
        """Its settings."""
        found: Section = getattr(self, self.name)
        return found

    @model_serializer(mode="wrap")
    def _one_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


_FORMS_OF_AUGMENT = "expected a list such as [{flip: {probability: 0.5}}], or module:function"


def _form_of_augment(value: object) -> str | None:
    if isinstance(value, str):
        return "function"
    return "transforms" if isinstance(value, list | tuple) else None


class DataConfig(Section):
    """Where the samples come from and what is deleted as one."""

    source: str = "digits"
    """The data source: adult, arrays, celeba, cifar10, diabetes, digits, fashion-mnist, hapt, lfw,
    mnist, obesity, parquet or wine."""
    path: AbsolutePath | None = None
    """Folder or file of the source, for those that need one."""
    num_train: (
        Annotated[int, Field(ge=1), at_most(MAX_SAMPLES, "all are held in memory")] | None
    ) = None
    """Training samples to keep, drawn by `seed`; null: all. Unit: samples."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the samples held out for testing where the source has no test set of its own."""
    unit: Literal["sample", "user"] = "sample"
    """What is deleted as one: a sample, or a user with all samples that `user_column` gives them."""
    user_column: str | None = None
    """Column of the source that names the owner of each sample."""
    input_column: str | None = None
    """Parquet: column of image bytes or arrays; null: image, or else x."""
    label_column: str | None = None
    """Parquet: column of classes or numbers; null: label, or else y."""
    weight_column: str | None = None
    """Arrays and Parquet: what each training sample's loss is multiplied by; null: the array
    sample_weight if there is one, no column of Parquet."""
    image_size: (
        Annotated[
            int, Field(ge=8), at_most(MAX_IMAGE_SIDE, "all enlarged images are held in memory")
        ]
        | None
    ) = None
    """Side that images are brought to (digits); null: as they are. Unit: pixels."""
    sample_ids: Literal["source", "position"] = "source"
    """A sample's id: its row in the source, or (version 0.1.0) its position in the training set."""
    augment: (
        Annotated[
            Annotated[tuple[TransformConfig, ...], Tag("transforms")]
            | Annotated[str, Tag("function")],
            Discriminator(
                _form_of_augment,
                custom_error_type="augment",
                custom_error_message=_FORMS_OF_AUGMENT,
            ),
        ]
        | None
    ) = None
    """Random changes of the training samples at each step: a list of transforms, or
    "module:function" for a user's own; null: none."""

    @field_validator("augment")
    @classmethod
    def _check_augment(
        cls, augment: tuple[TransformConfig, ...] | str | None
    ) -> tuple[TransformConfig, ...] | str | None:
        if isinstance(augment, str) and augment:
            module, _, function = augment.partition(":")
            if not (module and function):
                raise ValueError(_FORMS_OF_AUGMENT)
        return augment or None
