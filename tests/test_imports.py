"""Imports point one way: storage < pipeline < cluster. Function-local imports count too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for package in ("storage", "pipeline", "cluster")
    for path in (ROOT / package).rglob("*.py")
)
# What of `cluster` is tested without a cluster, and so must not need one.
WITHOUT_RAY = {"cluster/planner.py", "cluster/scheduler.py", "cluster/workers.py"}
# Formats that run code when they are read.
# CIFAR-10 is published as pickles; behind its digest, an unpickler of plain arrays reads it.
GUARDED = {"pipeline/data/cifar10.py": "pickle"}
UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
}


RUNS_CODE = {"torch.load", "pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load"}


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module that a file imports, wherever in the file; `package` resolves relative ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _named(node.func) in {
            "importlib.import_module",
            "import_module",
            "__import__",
        }:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _named(node: ast.AST) -> str:
    """The dotted name of an expression, or an empty one."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_named(node.value)}.{node.attr}"
    return ""


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def modules_of(path: Path) -> set[str]:
    return set(imported(ast.parse(path.read_text(encoding="utf-8")), package_of(path)))


def uses(modules: set[str], name: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for module in modules)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_walk() -> None:
    assert {name.split("/")[0] for name in map(name_of, FILES)} == {
        "storage",
        "pipeline",
        "cluster",
    }


def test_the_walk_sees_every_kind_of_import() -> None:
    source = """
import a.b
from c import d
from . import e
from ..f import g
def inside():
    import h
    import importlib
    importlib.import_module("i.j")
    from k.l import m as n
"""
    found = set(imported(ast.parse(source), "top.sub"))
    for name in ("a.b", "c", "c.d", "top.sub.e", "top.f", "top.f.g", "h", "i.j", "k.l", "k.l.m"):
        assert name in found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    modules = modules_of(path)
    package = package_of(path).split(".")[0]
    above = {"storage": ("pipeline", "cluster"), "pipeline": ("cluster",), "cluster": ()}[package]
    for forbidden in (*above, "tests", "benchmarks"):
        assert not uses(modules, forbidden), f"{name_of(path)} imports {forbidden}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_ray_stands_at_the_rim(path: Path) -> None:
    if package_of(path) != "cluster" or name_of(path) in WITHOUT_RAY:
        assert not uses(modules_of(path), "ray"), f"{name_of(path)} imports ray"
    calls = {_named(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))}
    assert "ray.remote" not in calls or name_of(path) == "cluster/actors.py"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_read_from_disk_can_run_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = modules_of(path)
    for unsafe in UNSAFE_MODULES - {GUARDED.get(name_of(path))}:
        assert not uses(modules, unsafe), f"{name_of(path)} imports {unsafe}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = _named(node.func)
        assert called not in RUNS_CODE, f"{name_of(path)}:{node.lineno} calls {called}"
        for keyword in node.keywords:
            allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            assert keyword.arg != "allow_pickle" or allowed, f"{name_of(path)}:{node.lineno}"
        if called in {"np.load", "numpy.load"}:
            assert "allow_pickle" in {keyword.arg for keyword in node.keywords}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The folder of a module; what lies in `pipeline/` itself is at the bottom, and one room."""
    return ".".join(MODULES[module].relative_to(ROOT).parent.parts[:2])


# The facade names the modules of the library without importing them.
FACADES = {"pipeline", "cluster", "storage"}
MODULES = {module_of(path): path for path in FILES if module_of(path) not in FACADES}
GRAPH = {module: set(MODULES) & modules_of(path) - {module} for module, path in MODULES.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes that lead back to themselves, or none: what is left when all others are taken away."""
    left = {node: set(targets) for node, targets in graph.items()}
    while ends := {node for node, targets in left.items() if not targets & left.keys()}:
        left = {node: targets for node, targets in left.items() if node not in ends}
    return sorted(left)


def test_no_file_imports_itself_by_a_detour() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]
    assert circle(GRAPH) == []


def test_no_folder_imports_itself_by_a_detour() -> None:
    rooms: dict[str, set[str]] = {}
    for module, targets in GRAPH.items():
        here = room_of(module)
        rooms.setdefault(here, set()).update(room_of(target) for target in targets)
    rooms = {room: targets - {room} for room, targets in rooms.items()}
    assert len(rooms) > 10
    assert circle(rooms) == []


def test_configuration_is_at_the_bottom_and_certificates_know_nothing_of_deletion() -> None:
    below = {
        "pipeline.bounds",
        "pipeline.config_yaml",
        "pipeline.errors",
        "pipeline.schema",
        "pipeline.suggestions",
        "storage.names",
    }
    assert GRAPH["pipeline.config"] <= below | {"pipeline.config_text"}
    assert GRAPH["pipeline.config_text"] <= below
    assert GRAPH["pipeline.config_yaml"] <= below
    for module, targets in GRAPH.items():
        if room_of(module) == "pipeline.certificates":
            assert not any(room_of(target) == "pipeline.deletion" for target in targets)


def imported_by(code: str) -> set[str]:
    """The modules that are imported after running `code` in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        check=True,
        cwd=ROOT,
        text=True,
    )
    return set(found.stdout.split())


def test_a_deletion_needs_neither_torch_nor_ray() -> None:
    unwanted = {"torch", "torchvision", "sklearn", "scipy", "ray", "matplotlib", "dp_accounting"}
    assert not unwanted & imported_by(
        "import pipeline.deletion.delete, cluster.cli, cluster.inspection"
    )


def test_the_recursion_alone_needs_torch_alone() -> None:
    unwanted = {"zarr", "pyarrow", "yaml", "pydantic", "safetensors", "ray", "matplotlib"}
    assert not unwanted & imported_by("import pipeline.approximators.recursion")


def test_everything_the_library_promises_is_there() -> None:
    assert all(callable(getattr(pipeline, name)) for name in pipeline.__all__)
    assert not hasattr(pipeline, "nothing")
