"""Bad input of every kind ends in one line, exit 1 or 2. A thousand cases: `make torture`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.base_run import make_base
from tests.torture.outcome import Outcome, explain, make_case, run_here, wrong

ROOT = Path(__file__).resolve().parents[2]
SEED = 1
NUMBERS = range(100)
# Some of them once more, each as a process of its own.
APART = [2, 7]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_KEY_FILE", str(folder / "key"))
        return make_base(folder)


@pytest.fixture(autouse=True)
def _key(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARN_KEY_FILE", str(base / "key"))


@pytest.mark.parametrize("number", NUMBERS)
def test_odd_input_is_carried_out_or_refused_in_one_line(
    number: int, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(SEED, number, tmp_path / "case", base)
    monkeypatch.chdir(tmp_path / "case")
    outcome = run_here(case)
    assert not wrong(case, outcome), explain(SEED, number, case, outcome)


@pytest.mark.parametrize("number", APART)
def test_a_process_of_its_own_ends_the_same_way(number: int, base: Path, tmp_path: Path) -> None:
    case = make_case(SEED, number, tmp_path / "case", base)
    done = subprocess.run(
        [sys.executable, "-m", "cluster", *case.words],
        cwd=tmp_path / "case",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert not wrong(case, outcome), explain(SEED, number, case, outcome)


def test_a_number_makes_the_same_case_again(base: Path, tmp_path: Path) -> None:
    for number in range(8):
        first = make_case(SEED, number, tmp_path / f"first-{number}", base)
        second = make_case(SEED, number, tmp_path / f"second-{number}", base)
        assert (first.about, first.good) == (second.about, second.good)


def test_what_ends_badly_is_found(base: Path, tmp_path: Path) -> None:
    case = make_case(SEED, 0, tmp_path / "case", base)
    bad = type(case)(case.about, case.words, good=False)
    assert not wrong(bad, Outcome(2, "", "error: no\n"))
    for outcome in (
        Outcome(0, "", ""),
        Outcome(-11, "", ""),
        Outcome(99, "", "Traceback (most recent call last)"),
        Outcome(1, "", ""),
        Outcome(2, "", "error: no\nand more\n"),
        Outcome(2, "", "error: one\nerror: two\n"),
        Outcome(2, "", f"error: {'x' * 10_000}\n"),
    ):
        assert wrong(bad, outcome)
        assert f"--seed {SEED} --number 0" in explain(SEED, 0, bad, outcome)


@pytest.mark.torture
def test_a_thousand_cases_within_bounds_of_time_and_memory() -> None:
    words = [sys.executable, "-m", "tests.torture.fuzz", "--seed", str(SEED), "--count", "1200"]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:]
