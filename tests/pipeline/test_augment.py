"""Augmentation: transforms against torchvision's, draws of (seed, step, sample id) alone."""

from math import pi
from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as reference
from torch import Tensor

from pipeline import RunConfig
from pipeline.certificates.declaration import check_settings
from pipeline.config import TransformConfig
from pipeline.data import augment as module
from pipeline.data.augment import augment, key_of
from pipeline.errors import ConfigError
from pipeline.run.problem import Problem

EXAMPLES = "tests.examples.augmentation"
ALL: list[dict[str, Any]] = [
    {"flip": {}},
    {"vertical_flip": {}},
    {"crop": {"padding": 3}},
    {"jitter": {"brightness": 0.2, "contrast": 0.3, "saturation": 0.4, "hue": 0.1}},
    {"noise": {"deviation": 0.05}},
    {"cutout": {"side": 4}},
]


def transforms(*entries: dict[str, Any]) -> tuple[TransformConfig, ...]:
    return tuple(TransformConfig(**entry) for entry in entries)


def pictures(dtype: torch.dtype = torch.float64, num: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    # Far enough from 0 and 1 that torchvision's clamp changes nothing.
    values = 0.4 + 0.2 * torch.rand(num, 3, 9, 7, generator=generator, dtype=torch.float64)
    return values.to(dtype)


IDS = torch.arange(24) * 7 + 3


def draws(count: int, step: int = 2, seed: int = 42) -> Tensor:
    """What each sample draws first, (24, count)."""
    rows = [
        torch.rand(
            count,
            generator=torch.Generator().manual_seed(key_of(seed, step, sample_id)),
            dtype=torch.float64,
        )
        for sample_id in IDS.tolist()
    ]
    return torch.stack(rows)


def one_by_one(name: str, x: Tensor, u: Tensor) -> Tensor:
    """The transform of one picture by torchvision, from the numbers that were drawn for it."""
    found: Tensor
    if name in ("flip", "vertical_flip"):
        mirror = reference.horizontal_flip if name == "flip" else reference.vertical_flip
        found = mirror(x) if u[0] < 0.5 else x
    elif name == "crop":
        top, left = (int(7 * part) for part in u)
        found = reference.crop(reference.pad(x, [3]), top, left, 9, 7)
    elif name == "cutout":
        top, left = int(9 * u[0]) - 2, int(7 * u[1]) - 2
        rows, columns = slice(max(0, top), top + 4), slice(max(0, left), left + 4)
        found = x.clone()
        found[:, rows, columns] = 0.0
    else:
        factors = [
            1 + (2 * float(part) - 1) * b for part, b in zip(u, (0.2, 0.3, 0.4), strict=False)
        ]
        found = reference.adjust_brightness(x, factors[0])
        found = reference.adjust_contrast(found, factors[1])
        found = reference.adjust_saturation(found, factors[2])
    return found


@pytest.mark.parametrize(
    "name, count", [("flip", 1), ("vertical_flip", 1), ("crop", 2), ("cutout", 2)]
)
def test_pictures_move_as_torchvision_moves_them(name: str, count: int) -> None:
    entry = next(entry for entry in ALL if name in entry)
    found = augment(pictures(), IDS, 2, 42, transforms(entry))
    for x, mine, u in zip(pictures(), found, draws(count), strict=True):
        assert torch.equal(mine, one_by_one(name, x, u))
    assert not torch.equal(found, pictures())


def test_jitter_is_torchvisions_where_nothing_is_clamped() -> None:
    colours = {"brightness": 0.2, "contrast": 0.3, "saturation": 0.4}
    found = augment(pictures(), IDS, 2, 42, transforms({"jitter": colours}))
    for x, mine, u in zip(pictures(), found, draws(4), strict=True):
        torch.testing.assert_close(mine, one_by_one("jitter", x, u), rtol=1e-6, atol=1e-6)
    # Normalised pictures keep their dark half, which a clamp to 0..1 would cut off.
    dark = augment(-pictures(), IDS, 2, 42, transforms({"jitter": colours}))
    torch.testing.assert_close(dark, -found)


def test_a_third_of_a_turn_of_hue_makes_red_green() -> None:
    red = torch.tensor([0.8, 0.2, 0.1], dtype=torch.float64).view(1, 3, 1, 1)
    turned = module._turned(red, torch.tensor([2 * pi / 3], dtype=torch.float64))
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.1, 0.8, 0.2]).double())
    expected = reference.adjust_hue(red[0], 1 / 3)
    torch.testing.assert_close(turned[0], expected, rtol=1e-6, atol=1e-6)
    hue = transforms({"jitter": {"hue": 0.3}})
    found, grey = augment(pictures(), IDS, 2, 42, hue), pictures().mean(1)
    torch.testing.assert_close(found.mean(1), grey)
    assert float((found - pictures()).abs().max()) > 0.05


def test_noise_has_its_deviation_and_a_mean_of_zero() -> None:
    found = augment(pictures(), IDS, 2, 42, transforms({"noise": {"deviation": 0.05}}))
    noise = found - pictures()
    # 4,536 values: their deviation is known to about one percent.
    assert abs(float(noise.std()) - 0.05) < 0.002
    assert abs(float(noise.mean())) < 0.003


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_does_not_see_the_others(dtype: torch.dtype) -> None:
    everything, inputs = transforms(*ALL), pictures(dtype)
    whole = augment(inputs, IDS, 2, 42, everything)
    assert whole.dtype == dtype
    for chosen in ([5], [23, 0, 11], torch.randperm(24).tolist()):
        part = augment(inputs[chosen], IDS[chosen], 2, 42, everything)
        assert torch.equal(part, whole[chosen])
    assert augment(inputs[:0], IDS[:0], 2, 42, everything).shape == (0, 3, 9, 7)


def test_nothing_but_seed_step_and_id_is_drawn_from() -> None:
    everything, before = transforms(*ALL), torch.random.get_rng_state()
    whole = augment(pictures(), IDS, 2, 42, everything)
    assert torch.equal(torch.random.get_rng_state(), before)
    for ids, step, seed in ((IDS + 1, 2, 42), (IDS, 3, 42), (IDS, 2, 43)):
        other = augment(pictures(), ids, step, seed, everything)
        assert all(not torch.equal(mine, theirs) for mine, theirs in zip(other, whole, strict=True))
    # A transform more at the end leaves the draws of those before it.
    assert torch.equal(
        augment(pictures(), IDS, 2, 42, everything[:2]),
        augment(pictures(), IDS, 2, 42, transforms(*ALL[:2], {"noise": {"deviation": 1e-20}})),
    )


def test_draws_of_steps_and_samples_are_independent() -> None:
    u_TB = torch.stack([draws(1, step).squeeze(1) for step in range(200)])
    # 4,800 uniform numbers; columns are samples, rows are steps. Deviations of these means: .0042,
    # and of a correlation of 200 and of 4,776 pairs: .071 and .014.
    assert abs(float(u_TB.mean()) - 0.5) < 0.02
    between_samples = torch.corrcoef(u_TB.T) - torch.eye(24)
    assert float(between_samples.abs().max()) < 0.36
    in_time = torch.corrcoef(torch.stack([u_TB[:-1].flatten(), u_TB[1:].flatten()]))[0, 1]
    assert abs(float(in_time)) < 0.07


def test_keys_are_those_of_the_first_release() -> None:
    # Changed keys would change the bits of runs that exist.
    assert key_of(42, 0, 0) == 8884344672183534837
    assert key_of(2**63 - 1, 10**6, 10**9) == 577533364305767793


DIGITS: dict[str, Any] = {"source": "digits", "num_train": 40}
TRAINING: dict[str, Any] = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1}


def problem(data: dict[str, Any], augmentation: Any, **model: Any) -> Problem:
    return Problem.of(
        RunConfig.from_values(
            {"data": {**data, "augment": augmentation}, "model": model, "training": TRAINING}
        )
    )


MISFITS = {
    "a table": ({"source": "wine"}, [{"flip": {}}], r"flip changes pictures.*shape \(13,\)"),
    "a wide crop": (DIGITS, [{"crop": {"padding": 8}}], r"padding 8.*\(1, 8, 8\).*below 8"),
    "a wide square": (DIGITS, [{"cutout": {"side": 9}}], r"side 9.*\(1, 8, 8\).*below 8"),
    "grey": (DIGITS, [{"jitter": {"hue": 0.1}}], r"hue, which takes 3 channels.*\(1, 8, 8\)"),
    "no module": (DIGITS, "nowhere:f", "data.augment is 'nowhere:f'.*cannot be imported"),
    "no function": (DIGITS, f"{EXAMPLES}:NOT_CALLABLE", "no callable 'NOT_CALLABLE'"),
    "a shape": (DIGITS, f"{EXAMPLES}:larger", r"larger returns shape \(1, 8, 16\).*\(1, 8, 8\)"),
    "a type": (DIGITS, f"{EXAMPLES}:doubled", "doubled returns.*float64.*float32"),
    "no tensor": (DIGITS, f"{EXAMPLES}:listed", "listed returns a list"),
    "infinite": (DIGITS, f"{EXAMPLES}:endless", "endless returns values that are not finite"),
    "an error": (DIGITS, f"{EXAMPLES}:failing", "failing fails on.*RuntimeError: no luck"),
    "its own draws": (DIGITS, f"{EXAMPLES}:unseeded", "unseeded gives something else.*generator"),
    "a state": (DIGITS, f"{EXAMPLES}:counting", "counting gives something else"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused_before_training(name: str) -> None:
    data, augmentation, message = MISFITS[name]
    with pytest.raises(ConfigError, match=message) as caught:
        problem(data, augmentation)
    assert "\n" not in str(caught.value)


def test_features_of_one_norm_and_augmentation_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"model\.feature_norm.*data\.augment"):
        problem(DIGITS, [{"flip": {}}], name="cnn", trainable="head", feature_norm=1.0)


def test_a_users_function_changes_samples_of_any_shape_and_not_the_data() -> None:
    table = problem({"source": "wine"}, f"{EXAMPLES}:faded")
    positions = torch.tensor([4, 0])
    plain, inputs = table.minibatch(positions), table.data.inputs.clone()
    changed = table.minibatch(positions, 3)
    assert torch.equal(table.data.inputs, inputs)
    factors = changed.inputs / plain.inputs
    assert float((factors.amax(1) - factors.amin(1)).max()) < 1e-5
    assert not torch.equal(factors[0], factors[1])


def test_a_minibatch_is_augmented_by_the_rows_of_the_source_and_only_at_a_step() -> None:
    noisy = problem(DIGITS, [{"noise": {"deviation": 0.1}}])
    positions = torch.tensor([3, 1])
    plain = noisy.data.inputs[positions]
    assert torch.equal(noisy.minibatch(positions).inputs, plain)
    ids = noisy.data.sample_ids[positions]
    assert not torch.equal(ids, positions)
    expected = augment(plain, ids, 5, 42, transforms({"noise": {"deviation": 0.1}}))
    assert torch.equal(noisy.minibatch(positions, 5).inputs, expected)


@pytest.mark.parametrize("kind", ["certified", "published"])
def test_bounds_that_know_no_augmentation_are_refused_before_training(kind: str) -> None:
    certificate = {"kind": kind, "max_units": 2, "feature_norm_cap": 5.0}
    training = {**TRAINING, "l2": 0.01, "clip_norm": 1.0}
    values = {"training": training, "certificate": certificate}
    check_settings(RunConfig.from_values(values))
    changed = RunConfig.from_values({**values, "data": {"augment": [{"flip": {}}]}})
    with pytest.raises(ConfigError, match=rf"{kind}.*data\.augment; choose calibrated"):
        check_settings(changed)
