"""Adult, Obesity and HAPT from small files in the UCI repository's formats."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data import DataConfig, load
from pipeline.data.adult import COLUMNS as ADULT_COLUMNS
from pipeline.data.obesity import COLUMNS as OBESITY_COLUMNS
from pipeline.data.obesity import FILE as OBESITY_FILE
from pipeline.data.obesity import LEVEL
from pipeline.data.tables import Column
from pipeline.errors import DataError

ADULT_ROW = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
    "2174, 0, 40, United-States, <=50K"
)
ADULT_UNKNOWN = "50, ?, 83311, HS-grad, 9, Divorced, ?, Husband, Black, Female, 0, 0, 13, ?, >50K"


def write_adult(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adult.data").write_text(f"{ADULT_ROW}\n{ADULT_UNKNOWN}\n\n")
    test = [f"{row}." for row in (ADULT_UNKNOWN, ADULT_ROW.replace("39,", "61,"))]
    (folder / "adult.test").write_text("|1x3 Cross validator\n" + "\n".join(test) + "\n\n")


def features(columns: tuple[Column, ...]) -> list[str]:
    """Return a name for each feature: the column's, or column=category."""
    return [
        name
        for column in columns
        for name in ([f"{column.name}={c}" for c in column.categories] or [column.name])
    ]


@pytest.mark.parametrize("below", ["", "adult"])
def test_adult_is_encoded_by_the_published_lists(tmp_path: Path, below: str) -> None:
    write_adult(tmp_path / below)
    data = load(DataConfig(source="adult", path=str(tmp_path)), seed=0)
    names = features(ADULT_COLUMNS)
    assert data.inputs.shape == (2, 108)
    assert data.targets.tolist() == [0, 1]
    assert data.test_targets.tolist() == [1, 0]
    first = dict(zip(names, data.inputs[0].tolist(), strict=True))
    second = dict(zip(names, data.inputs[1].tolist(), strict=True))
    assert {name for name in names if "=" in name and first[name] == 1} == {
        "workclass=State-gov",
        "education=Bachelors",
        "marital-status=Never-married",
        "occupation=Adm-clerical",
        "relationship=Not-in-family",
        "race=White",
        "sex=Male",
        "native-country=United-States",
    }
    assert second["workclass=?"] == second["occupation=?"] == second["native-country=?"] == 1
    assert sum(value for name, value in second.items() if "=" in name) == 8
    # Ages 39 and 50: standardised by the training part's mean 44.5 and deviation 5.5.
    assert (first["age"], second["age"]) == (-1, 1)
    assert float(data.test_inputs[1, names.index("age")]) == pytest.approx((61 - 44.5) / 5.5)
    assert first["capital-loss"] == second["capital-loss"] == 0, "a constant is centred only"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Never-married", "Never-maried", r"line 1: marital-status is 'Never-maried'"),
        ("77516", "many", r"line 1: fnlwgt is 'many', expected a number"),
        ("13, ?, >50K", "13, ?, >5", r"line 2: income is '>5'.*cut short"),
        ("13, ?, >50K\n\n", "13", r"line 2 has 13 cells, expected 15.*half downloaded"),
    ],
)
def test_damaged_adult_row_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_adult(tmp_path)
    text = (tmp_path / "adult.data").read_text()
    assert old in text
    (tmp_path / "adult.data").write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message):
        load(DataConfig(source="adult", path=str(tmp_path)), seed=0)


def write_obesity(folder: Path, num_rows: int = 140) -> np.ndarray:
    """Write rows that cycle through categories and levels; return the ages."""
    ages = 20 + np.arange(num_rows) / 7
    lines = [",".join([*(column.name for column in OBESITY_COLUMNS), LEVEL.name])]
    for i in range(num_rows):
        cells = [
            column.categories[i % column.width] if column.categories else f"{ages[i]:.6f}"
            for column in OBESITY_COLUMNS
        ]
        lines.append(",".join([*cells, LEVEL.categories[i % 7]]))
    (folder / OBESITY_FILE).write_text("\n".join(lines) + "\n")
    return ages


def test_obesity_is_split_by_seed_and_standardised_by_the_training_part(tmp_path: Path) -> None:
    write_obesity(tmp_path)
    config = DataConfig(source="obesity", path=str(tmp_path), test_fraction=0.3)
    data, other = load(config, seed=0), load(config, seed=1)
    assert data.inputs.shape == (98, 31)
    assert len(data.test_targets) == 42
    assert data.num_classes == 7
    assert data.targets.tolist() != other.targets.tolist()
    names = features(OBESITY_COLUMNS)
    for place, name in enumerate(names):
        values = data.inputs[:, place].double()
        if "=" in name:
            assert set(values.tolist()) == {0.0, 1.0}
        else:
            assert abs(float(values.mean())) < 1e-6
            assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-6)
    walking = names.index("MTRANS=Walking")
    assert int(data.inputs[:, walking].sum() + data.test_inputs[:, walking].sum()) == 28


def test_obesity_needs_its_header(tmp_path: Path) -> None:
    write_obesity(tmp_path)
    lines = (tmp_path / OBESITY_FILE).read_text().splitlines()
    (tmp_path / OBESITY_FILE).write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match="expected the column names Gender, Age"):
        load(DataConfig(source="obesity", path=str(tmp_path)), seed=0)


def test_obesity_without_one_level_is_refused(tmp_path: Path) -> None:
    write_obesity(tmp_path)
    lines = (tmp_path / OBESITY_FILE).read_text().splitlines()
    kept = [line for line in lines if not line.endswith("Obesity_Type_III")]
    (tmp_path / OBESITY_FILE).write_text("\n".join(kept))
    with pytest.raises(DataError, match=r"training part .* has none of class Obesity_Type_III"):
        load(DataConfig(source="obesity", path=str(tmp_path)), seed=0)


def write_hapt(folder: Path) -> np.ndarray:
    """Write 24 training and 12 test windows of 5 features; return the training features."""
    generator = np.random.default_rng(0)
    train = np.empty(0)
    for part, count in (("Train", 24), ("Test", 12)):
        values = generator.uniform(-1, 1, (count, 5))
        train = values if part == "Train" else train
        low = part.lower()
        (folder / part).mkdir(parents=True)
        rows = "\n".join(" ".join(f"{value:.8e}" for value in row) + " " for row in values)
        (folder / part / f"X_{low}.txt").write_text(rows + "\n")
        classes = "\n".join(str(i % 12 + 1) for i in range(count))
        (folder / part / f"y_{low}.txt").write_text(classes + "\n")
        subjects = "\n".join(str(i % 3 + 1) for i in range(count))
        (folder / part / f"subject_id_{low}.txt").write_text(subjects + "\n")
    return train


@pytest.mark.parametrize("below", ["", "HAPT Data Set"])
def test_hapt_reads_features_classes_and_subjects(tmp_path: Path, below: str) -> None:
    train = write_hapt(tmp_path / below)
    data = load(DataConfig(source="hapt", path=str(tmp_path), unit="user"), seed=0)
    expected = (train - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(data.inputs.numpy(), expected, atol=1e-5)
    assert data.targets.tolist() == [i % 12 for i in range(24)]
    assert data.units == ("1", "2", "3")
    assert data.unit_of_sample.tolist() == [i % 3 for i in range(24)]
    assert len(data.test_targets) == 12


@pytest.mark.parametrize(
    ("name", "share", "message"),
    [
        ("X_train.txt", 0.99, "half downloaded"),
        ("X_train.txt", 0.0, "is empty"),
        ("y_train.txt", 0.5, r"holds 24 windows, \d+ classes and 24 subjects"),
    ],
)
def test_half_downloaded_hapt_file_is_refused(
    tmp_path: Path, name: str, share: float, message: str
) -> None:
    write_hapt(tmp_path)
    path = tmp_path / "Train" / name
    text = path.read_text()
    path.write_text(text[: int(share * len(text)) - 30 * (share > 0.9)])
    with pytest.raises(DataError, match=message):
        load(DataConfig(source="hapt", path=str(tmp_path)), seed=0)
