"""The Obesity table of the UCI repository: levels of weight from eating and moving habits."""

from pipeline.config import DataConfig
from pipeline.data.dataset import Dataset, assemble
from pipeline.data.files import require_files, source_folder
from pipeline.data.samples import Samples, require_every_class, split
from pipeline.data.tables import Column, classes_of, encode, read_rows, standardise
from pipeline.errors import DataError

FILE = "ObesityDataSet_raw_and_data_sinthetic.csv"

_YES_NO = ("no", "yes")
_HOW_OFTEN = ("no", "Sometimes", "Frequently", "Always")

COLUMNS = (
    Column("Gender", ("Female", "Male")),
    Column("Age"),
    Column("Height"),
    Column("Weight"),
    Column("family_history_with_overweight", _YES_NO),
    Column("FAVC", _YES_NO),
    Column("FCVC"),
    Column("NCP"),
    Column("CAEC", _HOW_OFTEN),
    Column("SMOKE", _YES_NO),
    Column("CH2O"),
    Column("SCC", _YES_NO),
    Column("FAF"),
    Column("TUE"),
    Column("CALC", _HOW_OFTEN),
    Column("MTRANS", ("Automobile", "Bike", "Motorbike", "Public_Transportation", "Walking")),
)

LEVEL = Column(
    "NObeyesdad",
    (
        "Insufficient_Weight",
        "Normal_Weight",
        "Overweight_Level_I",
        "Overweight_Level_II",
        "Obesity_Type_I",
        "Obesity_Type_II",
        "Obesity_Type_III",
    ),
)


def obesity(config: DataConfig, seed: int) -> Dataset:
    """2,111 people; 31 features (8 numbers, 23 one-hot), 7 classes from thin to fat.

    The split is random. Numbers are standardised by the training part.
    """
    folder = source_folder(config, ("obesity",), FILE)
    require_files(config.source, folder, (FILE,))
    path = folder / FILE
    lines = read_rows(path, len(COLUMNS) + 1)
    names = (*(column.name for column in COLUMNS), LEVEL.name)
    if not lines or lines[0].cells != names:
        found = ", ".join(lines[0].cells)[:200] if lines else "nothing"
        raise DataError(f"{path} begins with {found}; expected the column names {', '.join(names)}")
    rows = lines[1:]
    targets = classes_of(path, rows, len(COLUMNS), LEVEL)
    samples = Samples(encode(path, rows, COLUMNS), targets).numbered()
    train, test = split(samples, config, seed)
    require_every_class(train, test, LEVEL.categories)
    return assemble(*standardise(train, test, COLUMNS), config, len(LEVEL.categories))
