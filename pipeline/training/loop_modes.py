"""What a user's network does in training alone: dropout drawn by key, and the modes of its parts.

torch draws dropout by the place of a sample in the minibatch, which no replay without the sample could
follow. So the active dropout modules of the loop's own network are replaced, in place, by ones that
draw from (seed, step, sample id), as the run's network does. Batch normalisation stays torch's.
"""

# B minibatch rows

from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models.train_mode import (
    FOLLOWED_DROPOUT,
    KeyedDropout,
    active_parts,
    keyed_dropouts,
    minibatch_norms,
    refuse_unfollowed,
    set_keys,
)

_EVAL = ("eval", "train")


class LoopDropout(KeyedDropout):
    """Keyed dropout in a loop: train mode needs keys, and eval mode drops nothing.

    Args:
        number: Of the run's layer.
        replaced: torch's own, whose place it takes.
    """

    def __init__(self, number: int, replaced: nn.Module) -> None:
        assert isinstance(replaced, FOLLOWED_DROPOUT)
        super().__init__(replaced.p, number, by_channel=type(replaced) is not nn.Dropout)
        # In a tuple, so that it is no part of the network.
        self.replaced = (replaced,)
        self.train(replaced.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs (B, ...), in train mode some values zero and the others scaled up.

        Raises:
            ModelError: In train mode, if no minibatch of this size was announced for the coming step.
        """
        if not self.training:
            return inputs
        if len(self.keys) != len(inputs):
            found = f"one of {len(self.keys)}" if len(self.keys) else "none"
            raise ModelError(
                f"dropout is drawn by sample: the minibatch has {len(inputs)}, and {found} is "
                "announced; take minibatches from recorder.loader or announce each to recorder.draw, "
                "and call the model in train mode on it alone"
            )
        return super().forward(inputs)


class LoopModes:
    """The parts of a loop's network that act in training alone; it replaces the dropout.

    Args:
        model: The loop's network.
        training: The run's, in its training form.

    Raises:
        ModelError: If a part draws or normalises otherwise than the run's; the message names it.
    """

    def __init__(self, model: nn.Module, training: nn.Module) -> None:
        parts = keyed_dropouts(training)
        self._model, self._norms = model, frozenset(minibatch_norms(training))
        self._replaced = {name: _same_dropout(model, name, part) for name, part in parts.items()}
        self._refuse(active_parts(model) - self._norms - parts.keys())
        for name, part in parts.items():
            model.set_submodule(name, LoopDropout(part.number, self._replaced[name]))

    def announce(self, keys: Tensor | None) -> None:
        """Give the dropout the keys of the samples that are passed next (B,); None: of none."""
        if self._replaced:
            device = next(self._model.parameters()).device
            set_keys(
                keyed_dropouts(self._model).values(), None if keys is None else keys.to(device)
            )

    def check(self) -> None:
        """Refuse parts whose mode differs from that in which the run's network is trained.

        Raises:
            ModelError: The message names the part.
        """
        refuse_unfollowed(self._model)
        parts = dict(self._model.named_modules())
        active = active_parts(self._model)
        active |= {name for name in self._replaced if parts[name].training}
        self._refuse(active ^ (self._norms | self._replaced.keys()))

    def _refuse(self, others: frozenset[str]) -> None:
        if not others:
            return
        name = min(others)
        part = self._replaced.get(name) or self._model.get_submodule(name)
        here, there = ("train", "eval") if self._model.get_submodule(name).training else _EVAL
        raise ModelError(
            f"{name} ({_kind(part)}) is in {here} mode in the loop and in {there} mode in what "
            "model.name makes; make them agree"
        )

    def restore(self) -> None:
        """Put torch's dropout back."""
        for name, part in self._replaced.items():
            mode = self._model.get_submodule(name).training
            self._model.set_submodule(name, part.train(mode))


def _same_dropout(model: nn.Module, name: str, expected: KeyedDropout) -> nn.Module:
    """Return the loop's dropout of this name, checked to be the run's."""
    part: nn.Module | None = dict(model.named_modules()).get(name)
    if isinstance(part, LoopDropout):
        # Of a recording that was broken off.
        mode, (part,) = part.training, part.replaced
        part.train(mode)
    if isinstance(part, FOLLOWED_DROPOUT):
        by_channel = type(part) is not nn.Dropout
        if (by_channel, part.p) == (expected.by_channel, expected.p):
            return part
    kind = "nothing" if part is None else _kind(part)
    raise ModelError(
        f"at {name!r} the model has {kind}, and what model.name makes has dropout "
        f"{'of channels ' if expected.by_channel else ''}with p={expected.p}; make them agree"
    )


def _kind(part: nn.Module) -> str:
    p = getattr(part, "p", None)
    return type(part).__name__ if p is None else f"{type(part).__name__}, p={p}"
