"""Random augmentation, drawn for each sample from (seed, step, sample id) alone.

Each sample has a generator of its own, seeded by a keyed hash of these three numbers. So a sample
changes in the same way whichever others are in its minibatch, and removing some changes nobody
else's draw: what retraining and every approximator rely on. Drawn by position in the minibatch, as
torchvision's transforms are, one removed sample would give all that follow it other pictures.

The result for a sample has the same bits in any minibatch: what is computed for all samples at once
treats each value by itself, and sums are taken for one sample after another.

Values are not clamped. Jitter's formulas are those of torchvision's `adjust_brightness`,
`adjust_contrast` and `adjust_saturation` without their clamp to 0..1, which would cut off the dark
half of pictures that are normalised. Hue is a rotation of the colours around grey, which leaves
(R + G + B) / 3 as it is; torchvision's goes through HSV and needs values in 0..1.
"""

# B samples, C channels, H height, W width, D numbers drawn for a sample

import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.config import TransformConfig
from pipeline.config_yaml import one_line
from pipeline.errors import ConfigError
from pipeline.user_code import user_function

Augmentation = tuple[TransformConfig, ...] | str
"""`data.augment`: transforms in order, or a user's function."""

# Samples and steps that a user's function is tried on before a run starts.
TRIED, TRIED_STEPS = 4, 3
# Luminance of R, G and B (ITU-R 601), as torchvision's and Pillow's.
_GREY = (0.2989, 0.587, 0.114)


def augment(
    inputs: Tensor, sample_ids: Tensor, step: int, seed: int, augmentation: Augmentation
) -> Tensor:
    """Return the samples as a step sees them.

    Args:
        inputs: (B, C, H, W) float32 or float64 on any device; of any shape (B, ...) for a user's
            function.
        sample_ids: Ids of the samples (B,), int64: their rows in the source.
        step: t, from 0.
        seed: The run's, from 0 to 2^63 - 1.
        augmentation: What is done.

    Returns:
        As `inputs`. No generator of torch's or Python's own is touched.

    Raises:
        ConfigError: If a user's function fails, or returns what is no sample.

    >>> transforms = (TransformConfig(noise={"deviation": 0.1}),)
    >>> ids, pictures = torch.tensor([3, 17]), torch.zeros(2, 1, 4, 4)
    >>> both = augment(pictures, ids, 5, 42, transforms)
    >>> alone = augment(pictures[1:], ids[1:], 5, 42, transforms)
    >>> torch.equal(both[1:], alone)
    True
    """
    ids = sample_ids.tolist()
    if not ids:
        return inputs
    if isinstance(augmentation, str):
        return _by_user(augmentation, inputs, ids, step, seed)
    drawn: list[list[Tensor]] = [[] for _ in augmentation]
    generator, shape = torch.Generator(), inputs.shape[1:]
    for sample_id in ids:
        generator.manual_seed(key_of(seed, step, sample_id))
        for draws, transform in zip(drawn, augmentation, strict=True):
            draws.append(_TRANSFORMS[transform.name].draw(generator, shape))
    for draws, transform in zip(drawn, augmentation, strict=True):
        draws_BD = torch.stack(draws).to(inputs.device)
        inputs = _TRANSFORMS[transform.name].apply(inputs, draws_BD, transform.settings)
    return inputs


def key_of(seed: int, step: int, sample_id: int) -> int:
    """Return the seed of a sample's generator at a step, 63 bits.

    Torch's generator on the CPU takes the last 32 of them: of a million pairs of step and sample,
    about 116 draw as another pair does. That is chance, and nothing relies on its absence.
    """
    packed = struct.pack("<3q", seed, step, sample_id)
    digest = blake2b(packed, digest_size=8, key=b"augmentation").digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class _Transform:
    """One change of pictures.

    Attributes:
        draw: Of a generator and the shape (C, H, W): what is drawn for a sample, float64 on the CPU.
            Always as many numbers, so that the transforms after it do not depend on the result.
        apply: Of pictures (B, C, H, W), the samples' draws (B, ...) and settings: the pictures changed.
    """

    draw: Callable[[torch.Generator, torch.Size], Tensor]
    apply: Callable[[Tensor, Tensor, Any], Tensor]


def _uniform(count: int) -> Callable[[torch.Generator, torch.Size], Tensor]:
    """Return a draw of numbers in [0, 1), (count,)."""
    return lambda generator, _: torch.rand(count, generator=generator, dtype=torch.float64)


def _normal(generator: torch.Generator, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _each(values_B: Tensor) -> Tensor:
    """Return one value per sample in a shape that goes with (B, C, H, W)."""
    return values_B.view(-1, 1, 1, 1)


def _flip(inputs: Tensor, draws_B1: Tensor, settings: Any) -> Tensor:
    return torch.where(_each(draws_B1 < settings.probability), inputs.flip(3), inputs)


def _vertical_flip(inputs: Tensor, draws_B1: Tensor, settings: Any) -> Tensor:
    return torch.where(_each(draws_B1 < settings.probability), inputs.flip(2), inputs)


def _crop(inputs: Tensor, draws_B2: Tensor, settings: Any) -> Tensor:
    num, channels, height, width = inputs.shape
    padded = pad(inputs, [settings.padding] * 4)
    corners_B2 = (draws_B2 * (2 * settings.padding + 1)).long()
    rows_BH1 = corners_B2[:, 0].view(-1, 1, 1) + torch.arange(height, device=inputs.device).view(
        -1, 1
    )
    columns_B1W = corners_B2[:, 1].view(-1, 1, 1) + torch.arange(width, device=inputs.device)
    places = (rows_BH1 * padded.shape[3] + columns_B1W).view(num, 1, -1)
    return padded.flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(inputs)


def _cutout(inputs: Tensor, draws_B2: Tensor, settings: Any) -> Tensor:
    height, width = inputs.shape[2:]
    sides = torch.tensor([height, width], device=inputs.device)
    first_B2 = (draws_B2 * sides).long() - settings.side // 2
    rows = torch.arange(height, device=inputs.device).view(1, 1, -1, 1) - _each(first_B2[:, 0])
    columns = torch.arange(width, device=inputs.device) - _each(first_B2[:, 1])
    inside = (rows >= 0) & (rows < settings.side) & (columns >= 0) & (columns < settings.side)
    return inputs.masked_fill(inside, 0.0)


def _noise(inputs: Tensor, draws: Tensor, settings: Any) -> Tensor:
    noise = draws * float(settings.deviation)
    return inputs + noise.to(inputs.dtype)


def _jitter(inputs: Tensor, draws_B4: Tensor, settings: Any) -> Tensor:
    sides_B4 = 2 * draws_B4 - 1
    factors = [
        _each(1 + sides_B4[:, column] * width).to(inputs.dtype)
        for column, width in enumerate(
            (settings.brightness, settings.contrast, settings.saturation)
        )
    ]
    if settings.brightness:
        inputs = inputs * factors[0]
    if settings.contrast:
        # A sum over all samples at once may be split otherwise in another minibatch.
        means = _each(torch.stack([picture.mean() for picture in _grey(inputs)]))
        inputs = inputs * factors[1] + means * (1 - factors[1])
    if settings.saturation:
        inputs = inputs * factors[2] + _grey(inputs) * (1 - factors[2])
    if settings.hue:
        inputs = _turned(inputs, 2 * pi * settings.hue * sides_B4[:, 3])
    return inputs


def _grey(inputs: Tensor) -> Tensor:
    """Return the luminance of pictures with three channels (B, 1, H, W); others as they are."""
    if inputs.shape[1] != len(_GREY):
        return inputs
    red, green, blue = (inputs[:, [channel]] * share for channel, share in enumerate(_GREY))
    return red + green + blue


def _turned(inputs: Tensor, angles_B: Tensor) -> Tensor:
    """Return pictures (B, 3, H, W) whose colours are turned around grey, red towards green."""
    red, green, blue = (inputs[:, [channel]] for channel in range(3))
    mean = (red + green + blue) / 3
    cosine, sine = _each(angles_B.cos()).to(inputs), _each(angles_B.sin() / sqrt(3)).to(inputs)
    across = torch.cat([blue - green, red - blue, green - red], dim=1)
    return mean + cosine * (inputs - mean) + sine * across


_TRANSFORMS = {
    "flip": _Transform(_uniform(1), _flip),
    "vertical_flip": _Transform(_uniform(1), _vertical_flip),
    "crop": _Transform(_uniform(2), _crop),
    "jitter": _Transform(_uniform(4), _jitter),
    "noise": _Transform(_normal, _noise),
    "cutout": _Transform(_uniform(2), _cutout),
}


def _by_user(name: str, inputs: Tensor, ids: list[int], step: int, seed: int) -> Tensor:
    function = user_function("data.augment", name)
    changed = [
        _changed(function, name, x, key_of(seed, step, sample_id))
        for x, sample_id in zip(inputs, ids, strict=True)
    ]
    result = torch.stack(changed)
    finite_B = torch.isfinite(result).flatten(1).all(1)
    if not bool(finite_B.all()):
        found = ids[int((~finite_B).nonzero()[0])]
        raise ConfigError(
            f"data.augment {name} returns values that are not finite, for sample {found} at step {step}"
        )
    return result


def _changed(function: Callable[..., Any], name: str, x: Tensor, key: int) -> Tensor:
    """Call a user's function on one sample and check what it returns."""
    try:
        found = function(x.clone(), torch.Generator().manual_seed(key))
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"data.augment {name} fails on a sample of shape {tuple(x.shape)}: "
            f"{type(error).__name__}: {one_line(error)}; it is called with one sample and a "
            "torch.Generator on the CPU"
        ) from error
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"data.augment {name} returns a {type(found).__name__}; expected a tensor of shape "
            f"{tuple(x.shape)}"
        )
    if (found.shape, found.dtype, found.device) != (x.shape, x.dtype, x.device):
        raise ConfigError(
            f"data.augment {name} returns shape {tuple(found.shape)} of {found.dtype} on "
            f"{found.device} for a sample of shape {tuple(x.shape)} of {x.dtype} on {x.device}; "
            "expected all three as they are"
        )
    return found.detach()


def check_augmentation(augmentation: Augmentation | None, inputs: Tensor) -> None:
    """Refuse an augmentation that does not fit the data.

    Args:
        augmentation: `data.augment`.
        inputs: Some training samples (B, ...); a handful is enough.

    Raises:
        ConfigError: The message names the transform and the samples' shape, or the function.
    """
    if isinstance(augmentation, str):
        _check_function(augmentation, inputs[:TRIED])
    elif augmentation is not None:
        for transform in augmentation:
            _check_transform(transform, tuple(inputs.shape[1:]))


def _check_transform(transform: TransformConfig, shape: tuple[int, ...]) -> None:
    name, settings = transform.name, transform.settings
    if len(shape) != 3:
        raise ConfigError(
            f"data.augment {name} changes pictures (channels, height, width), but samples have shape "
            f"{shape}; remove it, or name a function for samples of this shape (module:function)"
        )
    for key, limited in (("crop", "padding"), ("cutout", "side")):
        smaller = min(shape[1:])
        if name == key and getattr(settings, limited) >= smaller:
            raise ConfigError(
                f"data.augment {name} has {limited} {getattr(settings, limited)}, but pictures have "
                f"shape {shape}; choose a {limited} below {smaller}"
            )
    for colours in ("saturation", "hue"):
        if name == "jitter" and getattr(settings, colours) and shape[0] != len(_GREY):
            raise ConfigError(
                f"data.augment jitter changes {colours}, which takes {len(_GREY)} channels, but "
                f"pictures have shape {shape}; remove {colours}"
            )


def _check_function(name: str, inputs: Tensor) -> None:
    for step in range(TRIED_STEPS):
        ids = list(range(len(inputs)))
        first, again = (_by_user(name, inputs, ids, step, 0) for _ in range(2))
        if not torch.equal(first, again):
            raise ConfigError(
                f"data.augment {name} gives something else when it is called twice with an equal "
                "generator, so no step could be replayed; draw from the generator that it is given "
                "alone, and keep no state"
            )
