"""Imports point one way: storage < pipeline < cluster. Function-local imports count too."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
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
WITHOUT_RAY = {
    "cluster/driver.py",
    "cluster/in_process.py",
    "cluster/counted_plan.py",
    "cluster/planner.py",
    "cluster/workload.py",
    "cluster/ray_choice.py",
    "cluster/scheduler.py",
    "cluster/precompute_stage.py",
    "cluster/worker_pool.py",
    "cluster/workers.py",
}
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


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def modules_of(path: Path) -> set[str]:
    return set(imported(tree_of(path), package_of(path)))


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


def against_the_order(path: Path) -> Iterator[str]:
    """What a file imports although it stands above it, or is no part of the program."""
    above = {"storage": ("pipeline", "cluster"), "pipeline": ("cluster",), "cluster": ()}
    modules = modules_of(path)
    for forbidden in (*above[package_of(path).split(".")[0]], "tests", "benchmarks"):
        if uses(modules, forbidden):
            yield f"{name_of(path)} imports {forbidden}"


def ray_elsewhere(path: Path) -> Iterator[str]:
    """Where a file that must not know Ray knows it."""
    without = package_of(path) != "cluster" or name_of(path) in WITHOUT_RAY
    if without and uses(modules_of(path), "ray"):
        yield f"{name_of(path)} imports ray"
    calls = {_named(node) for node in ast.walk(tree_of(path))}
    if "ray.remote" in calls and name_of(path) != "cluster/actors.py":
        yield f"{name_of(path)} calls ray.remote"


def runs_code(path: Path) -> Iterator[str]:
    """Where a file reads a format that runs code, or may."""
    modules = modules_of(path)
    for unsafe in sorted(UNSAFE_MODULES - {GUARDED.get(name_of(path))}):
        if uses(modules, unsafe):
            yield f"{name_of(path)} imports {unsafe}"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            for reason in _unsafe_call(_named(node.func), node):
                yield f"{name_of(path)}:{node.lineno} {reason}"


def _unsafe_call(called: str, node: ast.Call) -> Iterator[str]:
    if called in RUNS_CODE:
        yield f"calls {called}"
    for keyword in node.keywords:
        allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg == "allow_pickle" and not allowed:
            yield "allows pickle"
    says = {keyword.arg for keyword in node.keywords}
    if called in {"np.load", "numpy.load"} and "allow_pickle" not in says:
        yield "does not say allow_pickle=False"


def failures(check: Callable[[Path], Iterator[str]]) -> list[str]:
    return [failure for path in FILES for failure in check(path)]


def test_imports_point_one_way() -> None:
    assert failures(against_the_order) == []


def test_only_cluster_imports_ray() -> None:
    assert failures(ray_elsewhere) == []


def test_nothing_read_from_disk_can_run_code() -> None:
    assert failures(runs_code) == []


def test_each_check_finds_what_it_looks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that can find nothing would pass on any code."""
    bad = tmp_path / "storage" / "bad.py"
    bad.parent.mkdir()
    bad.write_text(
        "import pipeline.config, ray, pickle\nray.remote(int)\ntorch.load(1)\nnp.load(2)\n"
        "f(allow_pickle=x)\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    checks = (against_the_order, ray_elsewhere, runs_code)
    assert [list(check(bad)) for check in checks] == [
        ["storage/bad.py imports pipeline"],
        ["storage/bad.py imports ray", "storage/bad.py calls ray.remote"],
        [
            "storage/bad.py imports pickle",
            "storage/bad.py:3 calls torch.load",
            "storage/bad.py:4 does not say allow_pickle=False",
            "storage/bad.py:5 allows pickle",
        ],
    ]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def folder_of(module: str) -> str:
    """The folder of a module; what lies in `pipeline/` itself is at the bottom, and one folder."""
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
    folders: dict[str, set[str]] = {}
    for module, targets in GRAPH.items():
        here = folder_of(module)
        folders.setdefault(here, set()).update(folder_of(target) for target in targets)
    folders = {folder: targets - {folder} for folder, targets in folders.items()}
    assert len(folders) > 10
    assert circle(folders) == []


# docs/architecture.md gives the reasons for this order.
ORDER = (
    "data < models < hessian < run < training < certificates < deletion < approximators"
    " < baselines < evaluation"
)


def test_a_folder_imports_only_folders_before_it() -> None:
    assert ORDER in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    place = {f"pipeline.{name}": number for number, name in enumerate(ORDER.split(" < "))}
    folders = {folder_of(module) for module in MODULES if module.startswith("pipeline.")}
    assert folders == {*place, "pipeline"}
    for module, targets in GRAPH.items():
        for target in targets:
            here, there = place.get(folder_of(module)), place.get(folder_of(target))
            # Files directly in `pipeline/` stand below every folder of it.
            below = there is None if folder_of(module) == "pipeline" else True
            in_order = here is None or there is None or there <= here
            assert below and in_order, f"{module} imports {target}, which stands above it"


def test_configuration_is_at_the_bottom_and_certificates_know_nothing_of_deletion() -> None:
    below = {
        "pipeline.bounds",
        "pipeline.config_yaml",
        "pipeline.errors",
        "pipeline.schema",
        "pipeline.suggestions",
        "storage.names",
    }
    parts = {f"pipeline.config_{part}" for part in ("data", "text", "training", "yaml")}
    assert GRAPH["pipeline.config"] <= below | parts
    for part in parts:
        assert GRAPH[part] <= below
    for module, targets in GRAPH.items():
        if folder_of(module) == "pipeline.certificates":
            assert not any(folder_of(target) == "pipeline.deletion" for target in targets)


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


def test_a_recorder_needs_no_library_of_trainers() -> None:
    unwanted = {"lightning", "pytorch_lightning", "transformers", "accelerate", "huggingface_hub"}
    assert not unwanted & imported_by("from pipeline import Recorder, train, precompute, delete")


def test_everything_the_library_promises_is_there() -> None:
    assert all(callable(getattr(pipeline, name)) for name in pipeline.__all__)
    assert not hasattr(pipeline, "nothing")
