"""The configuration of training: network, optimizer, minibatches, loss, and what retraining means."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.bounds import (
    MAX_BATCH,
    MAX_EPOCHS,
    MAX_GROUPS,
    MAX_NAME,
    MAX_STEPS,
    NotNegative,
    NumSteps,
    Positive,
    Share,
    Widths,
    at_most,
)
from pipeline.schema import AbsolutePath, Section
from pipeline.suggestions import nearest

Activation = Literal["relu", "tanh", "silu", "gelu"]
# Average pooling is smooth; max pooling has kinks like ReLU's, which no Hessian sees.
Pooling = Literal["max", "average"]
Normalization = Literal["frozen-batch", "batch", "group"]
Stem = Literal["imagenet", "small"]
LOSSES = (
    "cross-entropy",
    "binary-cross-entropy",
    "squared-error",
    "huber",
    "poisson",
    "token-cross-entropy",
)
OVER_CLASSES = ("cross-entropy", "token-cross-entropy")
"""The losses of class numbers, which can weigh and smooth classes."""


class ModelConfig(Section):
    """Which network, how it starts, and which part of it is trained."""

    name: str = "logistic"
    """logistic, mlp, cnn, lenet, resnet18, or "module:factory" for a user's own."""
    hidden: Widths = (64,)
    """mlp: widths of the hidden layers."""
    activation: Activation = "relu"
    """Of every hidden layer; tanh, silu and gelu are smooth, and deletion is more exact for them."""
    pooling: Pooling = "max"
    """cnn and lenet: max, as published, or average, which is smooth."""
    normalization: Normalization = "frozen-batch"
    """resnet18: batch statistics fixed before training, those of each minibatch (batch), or groups,
    which have none."""
    stem: Stem = "imagenet"
    """resnet18: 7x7 of stride 2 with pooling, or 3x3 of stride 1, which costs 15 times as much."""
    head_hidden: Widths = ()
    """resnet18: widths of linear layers between the features and the classes."""
    init: AbsolutePath | None = None
    """A safetensors file of weights; null draws them."""
    trainable: str = "all"
    """all, head (the last linear layer), or a part's name: from that part to the end."""
    feature_norm: Positive | None = None
    """With trainable head: scale each feature vector to this L2 norm."""


class ParameterGroup(Section):
    """Parameters with a weight decay or a learning rate of their own, as in torch."""

    parameters: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    """Pattern of their names, such as `*.bias`; the first group that fits a name counts."""
    weight_decay: NotNegative | None = None
    """In place of `weight_decay` (of `l2`, with sgd and adam); null: as all others."""
    learning_rate: Positive | None = None
    """In place of `learning_rate`; it follows the same schedule. null: as all others."""


class TrainingConfig(Section):
    """The optimizer, its learning rates and its minibatches."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """As in torch: SGD, Adam (L2 in the gradient) or AdamW (decoupled weight decay)."""

    epochs: Annotated[
        int, Field(ge=1), at_most(MAX_EPOCHS, "the order of all samples is drawn before training")
    ]
    """Passes over the training set. Unit: epochs."""
    batch_size: Annotated[int, Field(ge=1), at_most(MAX_BATCH, "a minibatch is held in memory")]
    """Samples of a minibatch; the last one of an epoch may be smaller. Unit: samples."""
    learning_rate: Positive
    """Of the first step, eta_0; with warmup or one-cycle the largest."""
    learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor per step of the constant schedule: eta_t = learning_rate * decay**t."""
    schedule: Literal["constant", "step", "cosine", "linear", "one-cycle"] = "constant"
    """How the learning rate goes on after the warmup; cosine and linear end at 0."""
    warmup_steps: Annotated[int, Field(ge=0), at_most(MAX_STEPS, "training ends before")] = 0
    """Steps in which the rate rises linearly to `learning_rate`. Unit: steps."""
    step_size: NumSteps | None = None
    """step: steps between two reductions of the rate. Unit: steps."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """step: factor of each reduction."""
    learning_rates: tuple[Positive, ...] | None = None
    """A rate for every step, in place of a schedule."""
    l2: NotNegative = 0.0
    """Factor of |w|^2 / 2 in each step's objective; with sgd and adam also called `weight_decay`."""
    weight_decay: NotNegative | None = None
    """adamw: decoupled decay, w (1 - eta * weight_decay) in each step; null: 0.01, as in torch."""
    groups: Annotated[tuple[ParameterGroup, ...], Field(max_length=MAX_GROUPS)] = ()
    """Parameters with a weight decay or a learning rate of their own: `parameters` (a pattern of their
    names, such as `*.bias`; the first that fits counts), `weight_decay`, `learning_rate`."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """adam, adamw: decay of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """adam, adamw: added to the root of the second moment."""
    loss: str = "cross-entropy"
    """As in torch, with reduction mean: cross-entropy, binary-cross-entropy (scores of one truth value
    or of several labels), squared-error, huber, poisson (log rates of counts), token-cross-entropy
    (classes at each position), or "module:function" for a user's own."""
    class_weights: tuple[Positive, ...] | None = None
    """cross-entropy, token-cross-entropy: a factor for each class, as in torch; null: all 1."""
    huber_delta: Positive = 1.0
    """huber: the difference from which on the loss is linear. Unit: that of the targets."""
    label_smoothing: Share = 0.0
    """Share of each target that the cross-entropy spreads evenly over all classes, as in torch."""
    clip_norm: Positive | None = None
    """Threshold C of the L2 norm of a minibatch's mean gradient with its L2 term; null: no clipping."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the heavy-ball buffer; 0: plain SGD."""
    nesterov: bool = False
    """Take Nesterov's step; needs `momentum` above 0."""
    shuffle: Literal["each-epoch", "once"] = "each-epoch"
    """Draw the order of the samples anew for each epoch, or once for all."""

    @model_validator(mode="before")
    @classmethod
    def settle_weight_decay(cls, values: object) -> object:
        """Take `weight_decay` of sgd and adam for `l2`, which it is there; give adamw its default."""
        if not isinstance(values, dict):
            return values
        # What came through here is checked as Python, where a list is no tuple.
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        decay, optimizer = values.get("weight_decay"), values.get("optimizer", "sgd")
        if optimizer == "adamw":
            return {**values, "weight_decay": 0.01 if decay is None else decay}
        if decay is None:
            return values
        if values.get("l2"):
            raise ValueError(
                f"training.weight_decay {decay} and training.l2 {values['l2']} are two names of one "
                f"term with optimizer {optimizer}; give one of them"
            )
        return {**values, "weight_decay": None, "l2": decay}

    @model_validator(mode="after")
    def check_optimizer(self) -> "TrainingConfig":
        """Refuse settings that another optimizer or schedule would need."""
        adaptive = self.optimizer != "sgd"
        if adaptive and (self.momentum or self.nesterov):
            raise ValueError(
                f"training.momentum and training.nesterov are sgd's; {self.optimizer} has betas"
            )
        if not adaptive and (self.betas, self.eps) != ((0.9, 0.999), 1e-8):
            raise ValueError(
                "training.betas and training.eps need training.optimizer adam or adamw"
            )
        if self.optimizer == "adamw" and self.l2:
            raise ValueError(
                f"training.l2 {self.l2} stands in the gradient, which adamw keeps free of decay; give "
                "training.weight_decay, or use adam"
            )
        if self.learning_rate_decay != 1 and self.schedule != "constant":
            raise ValueError(
                f"training.learning_rate_decay belongs to schedule constant, found {self.schedule}"
            )
        if (self.schedule == "step") != (self.step_size is not None):
            raise ValueError("training.schedule step and training.step_size need each other")
        if self.learning_rates and (self.schedule != "constant" or self.warmup_steps):
            raise ValueError("training.learning_rates replaces schedule and warmup_steps; give one")
        if self.schedule == "one-cycle" and self.warmup_steps:
            raise ValueError("schedule one-cycle has a warmup of its own; leave warmup_steps at 0")
        return self

    @model_validator(mode="after")
    def check_loss(self) -> "TrainingConfig":
        """Refuse an unknown loss, and settings that another one would need."""
        if ":" not in self.loss and self.loss not in LOSSES:
            raise ValueError(
                f"training.loss {self.loss!r:.60} {nearest(self.loss, LOSSES)} "
                '(or name your own as "module:function")'
            )
        for key in ("class_weights", "label_smoothing"):
            if getattr(self, key) and self.loss not in OVER_CLASSES:
                raise ValueError(
                    f"training.{key} needs training.loss {' or '.join(OVER_CLASSES)}, found "
                    f"{self.loss:.60}"
                )
        if self.huber_delta != 1 and self.loss != "huber":
            raise ValueError(
                f"training.huber_delta needs training.loss huber, found {self.loss:.60}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def refuse_what_cannot_be_followed(cls, values: object) -> object:
        """Say why a key is not there, instead of calling it unknown."""
        reasons = {
            "amsgrad": "its running maximum is not carried by the recursion; use adam or adamw as "
            "they are",
            "dropout": "it belongs to the network; put nn.Dropout into a factory of yours, whose draws "
            "can be replayed",
            "augmentation": "it belongs to the data; give data.augment, whose draws can be replayed",
        }
        if isinstance(values, dict):
            for key, reason in reasons.items():
                if key in values:
                    raise ValueError(f"training.{key} is not supported: {reason}; remove the key")
        return values


class RetrainingConfig(Section):
    """What retraining without the deleted units means; the approximators estimate its result."""

    denominator: Literal["remaining", "batch"] = "remaining"
    """Divide a minibatch's sum by the samples that remain, or by the original |B|."""
    l2_share: Literal["step", "sample"] = "step"
    """Keep the L2 term whole, or let each deleted sample take its share 1/|B| with it."""
