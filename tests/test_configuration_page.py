"""docs/configuration.md says what the code does: it is what the generator makes, key by key."""

from pathlib import Path

from pipeline.config import RunConfig
from pipeline.config_page import COMMAND, meanings, page, sections, type_text
from tests.test_imports import imported_by

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
MODELS = [("", RunConfig), *sections(RunConfig)]


def test_the_page_is_what_the_generator_makes() -> None:
    current = PAGE.read_text(encoding="utf-8") == page()
    assert current, f"docs/configuration.md is not what pipeline/config.py says; run `{COMMAND}`"


def test_every_key_has_a_meaning() -> None:
    without = [
        f"{key}.{name}"
        for key, model in MODELS
        for name in model.model_fields.keys() - meanings(model).keys()
        if not any(found.endswith(name) for found, _ in sections(model))
    ]
    assert not without, f"say behind their fields what these keys mean: {', '.join(without)}"
    text = page()
    written = RunConfig.from_values(
        {"training": {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}}
    ).model_dump(mode="json")
    assert len(written["cluster"]) > 3
    for section, values in written.items():
        keys = [f"{section}.{key}" for key in values] if isinstance(values, dict) else [section]
        for key in keys:
            # A section of a section has a heading instead of a line.
            assert f"| `{key}` |" in text or f"## {key}\n" in text, key


def test_types_are_written_in_words() -> None:
    assert type_text(bool | None) == "true or false, or null"
    assert "`certificate.budget.delta` | number (above 0, below 1), or null | `null` |" in page()
    assert "`cluster.grow_seconds` | number (at least 0) | `0` | seconds |" in page()


def test_the_page_is_made_without_torch() -> None:
    assert "torch" not in imported_by("import pipeline.config_page")
