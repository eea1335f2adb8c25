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


def test_the_recursion_alone_needs_neither_zarr_nor_arrow() -> None:
    unwanted = {"zarr", "pyarrow", "yaml", "safetensors", "ray", "matplotlib"}
    code = f"import sys, pipeline.recursion; print(sorted({unwanted} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT, text=True
    )
    assert found.stdout == "[]\n"


def test_everything_the_library_promises_is_there() -> None:
    assert all(callable(getattr(pipeline, name)) for name in pipeline.__all__)
    assert not hasattr(pipeline, "nothing")
