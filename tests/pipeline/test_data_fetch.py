"""Fetching: whole or not at all, and plain words where a program cannot download."""

import hashlib
from pathlib import Path
from urllib.error import URLError

import pytest
from torchvision.datasets import MNIST, utils

from pipeline.data import SOURCES
from pipeline.data.fetch import RECIPES, ByHand, Download, fetch
from pipeline.errors import DataError


def write_all(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "a").write_text("1")
    (folder / "b").write_text("2")


FILES = ("deep/a", "b")


def recipes(run: object) -> dict[str, Download]:
    return {"mine": Download(FILES, run)}  # type: ignore[arg-type]


def test_download_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "mine"
    assert fetch("mine", folder, recipes(write_all)) == folder
    assert (folder / "deep" / "a").read_text() == "1"
    assert folder.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    write_all(tmp_path)
    fetch("mine", tmp_path, recipes(lambda folder: pytest.fail("was fetched again")))


def fails(folder: Path) -> None:
    (folder / "b").write_text("half")
    raise URLError("no route to host")


def is_corrupt(folder: Path) -> None:
    (folder / "b").write_text("half")
    raise RuntimeError("File not found or corrupted.")


def is_interrupted(folder: Path) -> None:
    (folder / "b").write_text("half")
    raise KeyboardInterrupt("stop")


def forgets(folder: Path) -> None:
    (folder / "b").write_text("2")


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (fails, DataError, r"no route to host.*by hand: deep/a, b"),
        (is_corrupt, DataError, r"corrupted.*by hand: deep/a, b"),
        (is_interrupted, KeyboardInterrupt, "stop"),
        (forgets, DataError, r"brought no deep/a"),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_failure_leaves_nothing_partial_behind(
    tmp_path: Path, run: object, error: type[BaseException], message: str, existing: bool
) -> None:
    folder = tmp_path / "mine"
    if existing:
        folder.mkdir()
    with pytest.raises(error, match=message):
        fetch("mine", folder, recipes(run))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] * existing
    fetch("mine", folder, recipes(write_all))
    assert (folder / "b").read_text() == "2"


def test_unrelated_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(DataError, match="holds something else or part of mine"):
        fetch("mine", tmp_path, recipes(write_all))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", sorted(n for n, r in RECIPES.items() if isinstance(r, ByHand)))
def test_sources_by_hand_say_which_files_go_where(tmp_path: Path, name: str) -> None:
    recipe = RECIPES[name]
    with pytest.raises(DataError) as caught:
        fetch(name, tmp_path / "here")
    for word in (*recipe.files, str(tmp_path / "here"), "http"):
        assert word in str(caught.value)
    assert not (tmp_path / "here").exists()
    for file in recipe.files:
        path = tmp_path / "here" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert fetch(name, tmp_path / "here") == tmp_path / "here"


def test_names_without_a_download_are_explained() -> None:
    for name in SOURCES.keys() - RECIPES.keys():
        with pytest.raises(DataError, match="needs no download"):
            fetch(name)
    with pytest.raises(DataError, match="'minst' is unknown; did you mean 'mnist'"):
        fetch("minst")


def test_mnist_mirrors_are_tried_in_turn_and_digests_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def retrieve(url: str, filename: str) -> None:
        asked.append(url)
        good = url.startswith("http://second/")
        Path(filename).write_bytes(Path(url).name.encode() if good else b"half")

    monkeypatch.setattr(utils, "_urlretrieve", retrieve)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(MNIST, "mirrors", ["http://first/", "http://second/"])
    digests = [
        (name, hashlib.md5(name.encode(), usedforsecurity=False).hexdigest())
        for name, _ in MNIST.resources
    ]
    monkeypatch.setattr(MNIST, "resources", digests)
    folder = fetch("mnist", tmp_path / "mnist")
    assert sorted(path.name for path in folder.iterdir()) == sorted(RECIPES["mnist"].files)
    for path in folder.iterdir():
        assert path.read_bytes() == path.name.encode(), "the damaged first answer was not kept"
    assert len(asked) == 8
    monkeypatch.setattr(MNIST, "mirrors", ["http://first/"])
    with pytest.raises(DataError, match="mnist could not be downloaded"):
        fetch("mnist", tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]
