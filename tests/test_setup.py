"""The set-up of a fresh machine: a Debian without python3-venv has no ensurepip."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_environment_is_made_without_ensurepip(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "ensurepip.py").write_text("raise ImportError('this Debian has no ensurepip')\n")
    base = Path(sys.base_prefix) / "bin" / "python3"
    venv = tmp_path / "venv"
    environment = {
        key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        ["make", "-C", str(ROOT), f"VENV={venv}", f"PYTHON={base}", f"{venv}/bin/uv"],
        env=environment | {"PYTHONPATH": str(hidden)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version = subprocess.run([venv / "bin" / "uv", "--version"], capture_output=True, check=True)
    assert version.stdout.startswith(b"uv ")


def test_no_package_host_or_path_of_a_machine_is_pinned() -> None:
    pinned = (ROOT / "constraints.txt").read_text()
    assert "://" not in pinned
    assert "file:" not in pinned
    assert all("==" in line for line in pinned.split("\n") if line)
