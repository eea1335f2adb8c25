"""Run directories that were damaged: by a disk, a crash, a hand, or on purpose."""

import json
import shutil
from pathlib import Path
from random import Random

from tests.torture.case import Case, Maker, Workshop
from tests.torture.odd_requests import run_copy


def commands(shop: Workshop, run: Path) -> tuple[str, ...]:
    unit = shop.pick("4", "7", "1")
    return shop.pick(
        ("status", str(run)),
        ("verify", str(run)),
        ("verify", str(run)),
        ("delete", str(run), "--ids", unit),
        ("delete", str(run), "--ids", unit),
        ("delete", str(run), "--ids", unit, "--dry-run"),
        ("release", str(run)),
        ("export", str(run), "--unit", "4", "--out", str(run.parent / "row.npy")),
        ("backup", str(run), "--to", str(run.parent / "backup")),
        ("prune", str(run), "--yes"),
        ("report", str(run)),
        ("delete", str(run), "--ids", unit, "--queue"),
    )


def any_file(random: Random, run: Path) -> Path:
    return random.choice(sorted(path for path in run.rglob("*") if path.is_file()))


def damaged_file(shop: Workshop) -> Case:
    run = run_copy(shop, shop.pick("fresh", "deleted"))
    about = []
    for _ in range(shop.pick(1, 1, 2)):
        path = any_file(shop.random, run)
        path.write_bytes(shop.damage(path.read_bytes()))
        about.append(str(path.relative_to(run)))
    return Case(f"damaged {', '.join(about)}", commands(shop, run), None)


def replaced_file(shop: Workshop) -> Case:
    run = run_copy(shop, shop.pick("fresh", "deleted"))
    path = any_file(shop.random, run)
    kind = shop.pick("gone", "empty", "folder", "another", "junk", "loop", "dangling", "huge")
    other = any_file(shop.random, run).read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
        (path / "x").write_text("x")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(shop.folder / "nowhere")
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(200 << 20)
    elif kind != "gone":
        path.write_bytes({"empty": b"", "another": other}.get(kind, shop.random.randbytes(700)))
    return Case(f"{kind}: {path.relative_to(run)}", commands(shop, run), None)


def replaced_folder(shop: Workshop) -> Case:
    run = run_copy(shop, shop.pick("fresh", "deleted"))
    path = shop.random.choice(sorted(path for path in run.rglob("*") if path.is_dir()))
    shutil.rmtree(path)
    kind = shop.pick("gone", "a file", "empty", "loop")
    if kind == "a file":
        path.write_text("x")
    elif kind == "empty":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    return Case(f"{kind}: {path.relative_to(run)}/", commands(shop, run), None)


def odd_json(shop: Workshop) -> Case:
    """Every JSON text of a run, replaced by something else that a parser may choke on."""
    run = run_copy(shop, shop.pick("fresh", "deleted"))
    (run / "report.json").write_text("{}")
    (run / "progress.json").write_text("{}")
    found = sorted(path for path in run.rglob("*") if path.suffix == ".json")
    path = shop.random.choice(found)
    text = shop.pick(
        "[" * 100_000,
        '{"a":' * 100_000,
        "[]",
        "null",
        "{}",
        "17",
        '"x"',
        '{"a": NaN}',
        f'{{"a": {"9" * 5000}}}',
        '{"a": 1, "a": 2}',
        "",
        "\udcff",
        '{"\\ud800": 1}',
        json.dumps({"x" * 100_000: 1}),
        "[1e999]",
        '{"seconds": "x"}',
    )
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return Case(f"{path.relative_to(run)} is {text[:20]!r}", commands(shop, run), None)


def odd_run_config(shop: Workshop) -> Case:
    run = run_copy(shop, shop.pick("fresh", "deleted"))
    path = run / "config.yaml"
    harm = shop.pick(
        "\nname: " + "[" * 3000,
        "\nname: !!int abc",
        "\nseed: 1\nseed: 2",
        "\nname: 2020-13-45",
        f"\nseed: {'9' * 5000}",
        "\na: &a [*a]",
        "\n7: 8",
        "\nnew_key: 1",
        "\n\x07",
    )
    path.write_text(path.read_text() + harm)
    return Case(f"config.yaml with {harm.strip()[:20]!r}", commands(shop, run), False)


def stray_files(shop: Workshop) -> Case:
    run = run_copy(shop, shop.pick("fresh", "deleted"))
    folder = shop.random.choice([run, *sorted(path for path in run.rglob("*") if path.is_dir())])
    name = shop.pick(
        "x",
        ".DS_Store",
        "generation-0-block-0 (1).parquet",
        "a.partial",
        "0",
        "-1",
        "99999999999999999999",
        "é" * 60,
        "block-1.safetensors",
        "c.9.9",
        "zarr.json.bak",
        "checkpoint-x.safetensors",
        "a\nb",
    )
    if shop.random.random() < 0.3:
        (folder / name).mkdir(exist_ok=True)
    elif not (folder / name).is_dir():
        (folder / name).write_bytes(shop.random.randbytes(30))
    return Case(f"stray {(folder / name).relative_to(run)}", commands(shop, run), None)


def damaged_backup(shop: Workshop) -> Case:
    run = run_copy(shop, "deleted")
    backup = Path(shutil.copytree(shop.base / "backup", shop.folder / "backup"))
    path = any_file(shop.random, backup)
    kind = shop.pick("damage", "gone", "folder", "empty", "whole", "another")
    if kind == "damage":
        path.write_bytes(shop.damage(path.read_bytes()))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "another":
        path.write_bytes(any_file(shop.random, run).read_bytes())
    elif kind != "whole":
        path.unlink()
        if kind == "folder":
            path.mkdir()
    return Case(
        f"backup {kind}: {path.name}",
        ("restore", str(run), "--from", str(backup)),
        True if kind == "whole" else None,
    )


MAKERS: tuple[Maker, ...] = (
    damaged_file,
    damaged_file,
    damaged_file,
    replaced_file,
    replaced_file,
    replaced_folder,
    odd_json,
    odd_run_config,
    stray_files,
    damaged_backup,
)
