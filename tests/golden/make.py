"""Make the golden run directories of the version at hand: python tests/golden/make.py FOLDER."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from pipeline import RunConfig, RunDirectory, delete, precompute, train

CASES: dict[str, dict[str, Any]] = {
    "softmax": {
        "name": "softmax",
        "data": {"source": "digits", "num_train": 24},
        "training": {"epochs": 3, "batch_size": 8, "learning_rate": 0.1, "l2": 0.01},
        "recursion": {"checkpoint_every": 3},
    },
    "perceptron-momentum": {
        "name": "perceptron",
        "data": {"source": "wine", "num_train": 24},
        "model": {"name": "mlp", "hidden": [8], "activation": "tanh"},
        "training": {
            "epochs": 3,
            "batch_size": 8,
            "learning_rate": 0.05,
            "learning_rate_decay": 0.99,
            "momentum": 0.5,
            "clip_norm": 1.0,
        },
        "retraining": {"denominator": "batch"},
        "recursion": {"checkpoint_every": 4},
        "storage": {"encoding": "int8"},
    },
    "perceptron-adamw": {
        "name": "perceptron",
        "data": {"source": "wine", "num_train": 24},
        "model": {"name": "mlp", "hidden": [8], "activation": "tanh"},
        "training": {
            "epochs": 3,
            "batch_size": 8,
            "learning_rate": 0.01,
            "optimizer": "adamw",
            "schedule": "cosine",
            "label_smoothing": 0.1,
        },
        "recursion": {"checkpoint_every": 4},
    },
}


def main(out: Path) -> None:
    """Train, precompute and delete; keep what a further deletion would release."""
    out.mkdir(parents=True)
    os.environ["UNLEARN_KEY_FILE"] = str(out / "key")
    for name, values in CASES.items():
        run = train(RunConfig.from_values(values), out / name)
        units = precompute(run).units
        delete(run, [units[3], units[17]])
        scratch = RunDirectory.open(shutil.copytree(out / name, out / "scratch"))
        number = delete(scratch, [units[5]]).release
        (out / f"{name}.next").write_text(units[5])
        model = scratch.path / "releases" / str(number) / "model.safetensors"
        shutil.copyfile(model, out / f"{name}.after-next.safetensors")
        shutil.rmtree(scratch.path)
        for lock in (out / name).rglob("*.lock"):
            lock.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
