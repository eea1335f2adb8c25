"""The Adult table of the UCI repository: does a person earn more than 50,000 dollars?

The published lists of categories (adult.names) fix the 108 features before any row is read: 6 numbers,
and 102 one-hot features in which an unknown value, "?", is a category of its own.
"""

from pathlib import Path

from pipeline.config import DataConfig
from pipeline.data.dataset import Dataset, assemble
from pipeline.data.files import require_files, source_folder
from pipeline.data.samples import Samples, require_every_class, training_positions
from pipeline.data.tables import Column, Row, classes_of, encode, read_rows, standardise

FILES = ("adult.data", "adult.test")


def _of(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COLUMNS = (
    Column("age"),
    Column(
        "workclass",
        _of(
            "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov Without-pay "
            "Never-worked ?"
        ),
    ),
    Column("fnlwgt"),
    Column(
        "education",
        _of(
            "Bachelors Some-college 11th HS-grad Prof-school Assoc-acdm Assoc-voc 9th 7th-8th 12th "
            "Masters 1st-4th 10th Doctorate 5th-6th Preschool"
        ),
    ),
    Column("education-num"),
    Column(
        "marital-status",
        _of(
            "Married-civ-spouse Divorced Never-married Separated Widowed Married-spouse-absent "
            "Married-AF-spouse"
        ),
    ),
    Column(
        "occupation",
        _of(
            "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
            "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing Transport-moving "
            "Priv-house-serv Protective-serv Armed-Forces ?"
        ),
    ),
    Column("relationship", _of("Wife Own-child Husband Not-in-family Other-relative Unmarried")),
    Column("race", _of("White Asian-Pac-Islander Amer-Indian-Eskimo Other Black")),
    Column("sex", _of("Female Male")),
    Column("capital-gain"),
    Column("capital-loss"),
    Column("hours-per-week"),
    Column(
        "native-country",
        _of(
            "United-States Cambodia England Puerto-Rico Canada Germany "
            "Outlying-US(Guam-USVI-etc) India Japan Greece South China Cuba Iran Honduras "
            "Philippines Italy Poland Jamaica Vietnam Mexico Portugal Ireland France "
            "Dominican-Republic Laos Ecuador Taiwan Haiti Columbia Hungary Guatemala Nicaragua "
            "Scotland Thailand Yugoslavia El-Salvador Trinadad&Tobago Peru Hong "
            "Holand-Netherlands ?"
        ),
    ),
)

INCOME = Column("income", ("<=50K", ">50K"))


def adult(config: DataConfig, seed: int) -> Dataset:
    """48,842 people of the 1994 census in the published split; 108 features, 2 classes.

    Numbers are standardised by the training part.
    """
    folder = source_folder(config, ("adult",), FILES[0])
    require_files(config.source, folder, FILES)
    train_rows, test_rows = (_rows(folder / name) for name in FILES)
    positions = training_positions(len(train_rows), config, seed)
    train = _samples(folder / FILES[0], train_rows).numbered().take(positions)
    test = _samples(folder / FILES[1], test_rows)
    require_every_class(train, test, INCOME.categories)
    return assemble(*standardise(train, test, COLUMNS), config, len(INCOME.categories))


def _rows(path: Path) -> list[Row]:
    # The test file begins with a line about cross validation, and ends its classes with a period.
    rows = read_rows(path, len(COLUMNS) + 1, skip_prefix="|")
    return [Row(row.line, (*row.cells[:-1], row.cells[-1].removesuffix("."))) for row in rows]


def _samples(path: Path, rows: list[Row]) -> Samples:
    return Samples(encode(path, rows, COLUMNS), classes_of(path, rows, len(COLUMNS), INCOME))
