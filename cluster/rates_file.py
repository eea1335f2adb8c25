"""The rates that `unlearn bench` measured, kept for `unlearn plan`. Needs no torch.

~/.cache/unlearn/bench.json        or below XDG_CACHE_HOME
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from storage.durable_write import write_atomically

FORMAT = 1
# The kinds of networks, as `pipeline.evaluation.throughput` names them.
LOGISTIC, PERCEPTRON, CNN, RESNET = "logistic", "perceptron", "cnn", "resnet18, ImageNet stem"
# Networks with convolutions and at least so many parameters are bound by them as ResNet-18 is.
LARGE = 1_000_000


def kind_of(num_linear: int, num_parameters: int, *, convolves: bool) -> str:
    """Return the kind of network that is measured nearest to one of these counts."""
    if convolves:
        return RESNET if num_parameters >= LARGE else CNN
    return PERCEPTRON if num_linear > 1 else LOGISTIC


@dataclass(frozen=True)
class Measured:
    """What one kind of network does in one precision.

    Attributes:
        case: The network, one of `CASES`.
        precision: Of the products.
        chunk: K.
        batch: |B|.
        product_seconds: One Hessian product with sources and update, the shared pass apart.
        primal_seconds: The shared pass.
        forward_flops: Of the network on the minibatch, as a plan counts them.
        share: Of a large matrix product in the same precision, by counted operations.
    """

    case: str
    precision: str
    chunk: int
    batch: int
    product_seconds: float
    primal_seconds: float
    forward_flops: float
    share: float

    @property
    def sustained(self) -> float:
        """Operations per second as a plan counts them: six forward passes for a product."""
        return 6 * self.forward_flops / self.product_seconds


@dataclass(frozen=True)
class Bench:
    """The rates of a machine.

    Attributes:
        device: Name of what computed.
        device_type: cpu or cuda.
        memory_bytes: Of the GPU; 0 without one.
        threads: Of the CPU.
        torch: Version.
        matmul: Operations per second of a large matrix product, by precision.
        products: By network and precision.
    """

    device: str
    device_type: str
    memory_bytes: int
    threads: int
    torch: str
    matmul: dict[str, float]
    products: tuple[Measured, ...]

    def nearest(self, kind: str, dtype: str) -> Measured | None:
        """Return what was measured of a kind of network, or None."""
        return next((m for m in self.products if (m.case, m.precision) == (kind, dtype)), None)


def bench_file() -> Path:
    """Return where the rates of this machine are kept."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # As the XDG specification says, a relative path does not count.
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return folder / "unlearn" / "bench.json"


def store(bench: Bench, path: Path) -> None:
    """Keep the rates, for this user alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **asdict(bench)}, indent=1)
    write_atomically(path, text.encode(), 0o600)


def stored(path: Path) -> Bench | None:
    """Return the rates that were kept, or None if there are none.

    Raises:
        ConfigError: If the file is damaged or of another version.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError("another version")
        products = tuple(Measured(**each) for each in values.pop("products"))
        return Bench(products=products, **values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} does not hold rates that this version reads ({type(error).__name__}); measure "
            "again with `unlearn bench`, or remove it"
        ) from error
