"""docs/architecture.md is the map: every file is on it, with the words its docstring begins with."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_module_stands_on_the_map_in_its_own_words() -> None:
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    shown = {" ".join(line.split()) for line in lines}
    modules = [
        path
        for package in ("storage", "pipeline", "cluster")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert len(modules) > 100
    missing = []
    for path in modules:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        words = docstring.split("\n")[0].rstrip(".")
        if " ".join(f"{path.name} {words}".split()) not in shown:
            missing.append(str(path.relative_to(ROOT)))
    assert not missing


def test_every_package_that_the_map_shows_exists() -> None:
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    folders = [line.strip() for line in lines if line.startswith("    ") and line.endswith("/")]
    known = [
        folder for folder in folders if folder.split("/")[0] in ("storage", "pipeline", "cluster")
    ]
    assert known
    assert all((ROOT / folder).is_dir() for folder in known)
