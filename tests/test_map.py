"""The pages name files that exist; docs/architecture.md, the map, names them all."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("storage", "pipeline", "cluster")


def shown() -> dict[str, list[str]]:
    """The file names that the map shows, by folder."""
    found: dict[str, list[str]] = {}
    folder = ""
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"    ((?:storage|pipeline|cluster)[\w/]*)/(\s.*)?", line):
            folder = match[1]
            found[folder] = []
        elif folder and (match := re.fullmatch(r"      (\w+\.py)\s+\S.*", line)):
            found[folder].append(match[1])
        elif line and not line.startswith("      "):
            folder = ""
    return found


def test_every_file_has_its_line_on_the_map_and_every_line_its_file() -> None:
    there: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name != "__init__.py":
                folder = path.parent.relative_to(ROOT).as_posix()
                there.setdefault(folder, []).append(path.name)
    assert sum(map(len, there.values())) > 100
    assert {folder: sorted(names) for folder, names in shown().items()} == there


def test_every_path_that_a_page_names_exists() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = {
        f"{page.name}: {path}"
        for page in pages
        for path in re.findall(
            r"\b(?:benchmarks|cluster|configs|docs|pipeline|storage|tests)/[\w./-]*\w",
            page.read_text(encoding="utf-8"),
        )
    }
    assert len(named) > 50
    assert not sorted(name for name in named if not (ROOT / name.split(": ")[1]).exists())
