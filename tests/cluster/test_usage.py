"""Words that no command understands: one line on standard error and exit 2, never a traceback."""

from pathlib import Path

import pytest

from tests.cluster.test_cli import unlearn

CONFIG = str(Path(__file__).parents[2] / "configs" / "digits.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["delete", "x", "--frob"], "No such option"),
        (["train"], "Missing argument"),
        (["train", CONFIG, "--set"], "requires an argument"),
        (["repair", "x", "--epochs", "many"], "--epochs"),
        (["plan", CONFIG, "--gpus", "9" * 30], "--gpus is 9999"),
        (["plan", CONFIG, "--gpus", "9" * 5000], "--gpus"),
        (["plan", CONFIG, "--gpus", "0"], "--gpus"),
        (
            ["plan", CONFIG, "--gpus", "2", "--tflops", "1e308"],
            "--tflops is 1e+308; expected 0.001",
        ),
        (["plan", CONFIG, "--gpus", "2", "--tflops", "nan"], "--tflops"),
        (["plan", CONFIG, "--gpus", "2", "--gpu-memory", "inf"], "--gpu-memory is inf"),
        (["plan", CONFIG, "--gpus", "2", "--price", "nan"], "--price"),
        (["plan", CONFIG, "--price", "inf"], "--price is inf"),
        (["plan", CONFIG, "--workers", "1000000000"], "--workers is 1000000000; expected 1 to"),
        (["plan", CONFIG, "--workers", "10000", "--set", "storage.block=1"], "--workers, or state"),
        (["run", CONFIG, "--set", "name=../x"], "makes no folder name; give --out"),
        (["train", CONFIG, "--set", "name=a/b"], "makes no folder name; give --out"),
        (["sweep", CONFIG, "--set", "name=/etc"], "makes no folder name; give --out"),
        (["submit", CONFIG, "--manifest", "--image", "i:1", "--set", "name=../x"], "name"),
    ],
)
def test_a_slip_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = unlearn(capsys, *words)
    assert (code, out, said in err) == (2, "", True), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["data"]):
        code, _, err = unlearn(capsys, *words)
        assert (code, "Usage:" in err, "Commands:" in err) == (2, True, True)
