"""The configuration: every section as plain data, and the whole, read from YAML.

This module stands at the bottom: it imports no torch and nothing that computes.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from pipeline.bounds import (
    MAX_BATCH,
    MAX_CHUNK,
    MAX_EPOCHS,
    MAX_GPUS,
    MAX_GROUPS,
    MAX_IMAGE_SIDE,
    MAX_NAME,
    MAX_PARAMETERS,
    MAX_REPEATS,
    MAX_SAMPLES,
    MAX_STEPS,
    MAX_THREADS,
    MAX_WAIT_SECONDS,
    MAX_WORKERS,
    NotNegative,
    NumSteps,
    NumUnits,
    Positive,
    Probability,
    Share,
    Widths,
    at_most,
)
from pipeline.config_text import apply_override, explain
from pipeline.config_yaml import one_line, parse, read, write
from pipeline.errors import ConfigError
from pipeline.schema import AbsolutePath, Section
from pipeline.suggestions import nearest
from storage.names import stem_of

Activation = Literal["relu", "tanh", "silu", "gelu"]
# Average pooling is smooth; max pooling has kinks like ReLU's, which no Hessian sees.
Pooling = Literal["max", "average"]
Normalization = Literal["frozen-batch", "batch", "group"]
Stem = Literal["imagenet", "small"]
Form = Literal["r-operator", "reverse", "forward-over-reverse"]
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


class FlipConfig(Section):
    """Mirroring a picture."""

    probability: Probability = 0.5
    """Of being mirrored: left and right by flip, top and bottom by vertical_flip."""


class CropConfig(Section):
    """Shifting a picture: zeros are put around it, and a part of its own size is cut out."""

    padding: Annotated[int, Field(ge=1), at_most(MAX_IMAGE_SIDE, "no picture is larger")]
    """Zeros on each side, below the picture's smaller side. Unit: pixels."""


class JitterConfig(Section):
    """Changing a picture's values by factors of 1 - b to 1 + b, drawn for each b below."""

    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """All values times a factor."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The distance to the picture's mean grey times a factor."""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The distance of each pixel to its own grey times a factor; three channels."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Colours turned around grey by at most this share of a whole turn; three channels."""

    @model_validator(mode="after")
    def check_any(self) -> "JitterConfig":
        """Refuse a jitter that changes nothing."""
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("expected one of brightness, contrast, saturation, hue above 0")
        return self


class NoiseConfig(Section):
    """Adding normal noise to each value."""

    deviation: Positive
    """Standard deviation, in the units of the data."""


class CutoutConfig(Section):
    """Setting a square to zero."""

    side: Annotated[int, Field(ge=1), at_most(MAX_IMAGE_SIDE, "no picture is larger")]
    """Of the square, below the picture's smaller side; its centre is drawn anywhere in the picture.
    Unit: pixels."""


class TransformConfig(Section):
    """One random change of a picture; `data.augment` is a list of them, each with one name.

        augment: [{flip: {probability: 0.5}}, {crop: {padding: 4}}]

    They are applied in this order. What is drawn depends on the seed, the step and the sample's id
    alone. Values are not clamped.
    """

    flip: FlipConfig | None = None
    """Mirror left and right."""
    vertical_flip: FlipConfig | None = None
    """Mirror top and bottom."""
    crop: CropConfig | None = None
    """Shift."""
    jitter: JitterConfig | None = None
    """Change brightness and colours."""
    noise: NoiseConfig | None = None
    """Add noise."""
    cutout: CutoutConfig | None = None
    """Set a square to zero."""

    @model_validator(mode="before")
    @classmethod
    def check_form(cls, values: object) -> object:
        """Refuse what is no mapping with one name; take `flip:` without anything for its defaults."""
        if not isinstance(values, dict):
            raise ValueError("expected a mapping with one name, such as {flip: {probability: 0.5}}")
        if len(values) != 1:
            names = ", ".join(map(str, values)) or "none"
            raise ValueError(f"expected one name in each entry of the list, found {names:.80}")
        return {name: {} if value is None else value for name, value in values.items()}

    @property
    def name(self) -> str:
        """Which change it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def settings(self) -> Section:
        """Its settings."""
        found: Section = getattr(self, self.name)
        return found

    @model_serializer(mode="wrap")
    def _one_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


_FORMS_OF_AUGMENT = "expected a list such as [{flip: {probability: 0.5}}], or module:function"


def _form_of_augment(value: object) -> str | None:
    if isinstance(value, str):
        return "function"
    return "transforms" if isinstance(value, list | tuple) else None


class DataConfig(Section):
    """Where the samples come from and what is deleted as one."""

    source: str = "digits"
    """The data source: adult, arrays, celeba, cifar10, diabetes, digits, fashion-mnist, hapt, lfw,
    mnist, obesity, parquet or wine."""
    path: AbsolutePath | None = None
    """Folder or file of the source, for those that need one."""
    num_train: (
        Annotated[int, Field(ge=1), at_most(MAX_SAMPLES, "all are held in memory")] | None
    ) = None
    """Training samples to keep, drawn by `seed`; null: all. Unit: samples."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the samples held out for testing where the source has no test set of its own."""
    unit: Literal["sample", "user"] = "sample"
    """What is deleted as one: a sample, or a user with all samples that `user_column` gives them."""
    user_column: str | None = None
    """Column of the source that names the owner of each sample."""
    input_column: str | None = None
    """Parquet: column of image bytes or arrays; null: image, or else x."""
    label_column: str | None = None
    """Parquet: column of classes or numbers; null: label, or else y."""
    weight_column: str | None = None
    """Arrays and Parquet: what each training sample's loss is multiplied by; null: the array
    sample_weight if there is one, no column of Parquet."""
    image_size: (
        Annotated[
            int, Field(ge=8), at_most(MAX_IMAGE_SIDE, "all enlarged images are held in memory")
        ]
        | None
    ) = None
    """Side that images are brought to (digits); null: as they are. Unit: pixels."""
    sample_ids: Literal["source", "position"] = "source"
    """A sample's id: its row in the source, or (version 0.1.0) its position in the training set."""
    augment: (
        Annotated[
            Annotated[tuple[TransformConfig, ...], Tag("transforms")]
            | Annotated[str, Tag("function")],
            Discriminator(
                _form_of_augment,
                custom_error_type="augment",
                custom_error_message=_FORMS_OF_AUGMENT,
            ),
        ]
        | None
    ) = None
    """Random changes of the training samples at each step: a list of transforms, or
    "module:function" for a user's own; null: none."""

    @field_validator("augment")
    @classmethod
    def _check_augment(
        cls, augment: tuple[TransformConfig, ...] | str | None
    ) -> tuple[TransformConfig, ...] | str | None:
        if isinstance(augment, str) and augment:
            module, _, function = augment.partition(":")
            if not (module and function):
                raise ValueError(_FORMS_OF_AUGMENT)
        return augment or None


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


class RecursionConfig(Section):
    """How approximators are computed."""

    engine: Literal["hvp", "leave-one-out", "weighing", "auto"] = "hvp"
    """Propagate by Hessian-vector products, by one gradient at each unit's own weights, or by designed
    group retrainings (weighing), which serve sets on rough networks; auto: what a pilot finds nearer to
    retraining (`unlearn pilot`)."""
    leave_one_out: Literal["weights", "differences"] | None = None
    """What leave-one-out carries for each unit: its own weights, or their difference from the run's
    (runs begun with version 0.2.0). null: weights."""
    own_rows: Literal["left-out", "included"] = "left-out"
    """Leave a unit's own samples out of the Hessian (leave-one-out), or include them (full-batch)."""
    hvp: Form | Literal["auto"] = "auto"

    """Form of the Hessian-vector products; auto: the R-operator where it can follow the network."""
    chunk: (
        Annotated[int, Field(ge=2), at_most(MAX_CHUNK, "a chunk's tangents are held in memory")]
        | Literal["auto"]
    ) = "auto"
    """Units computed together, K. Unit: units."""
    dtype: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    """Arithmetic of the tangents; approximators are kept in float32 (float64 for float64)."""
    mass_exponent: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """rho of the correction ((n - n_u) / (n - M))**rho; auto: 1 with sgd, 0.5 with adam and adamw."""
    expected_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """With denominator `batch`, the fraction of the data expected to be deleted together."""
    relu_curvature: Literal["auto", "none", "softplus"] = "auto"

    """Second derivative given to ReLU; auto: softplus for ReLU networks without convolutions."""
    relu_beta: Positive = 20.0
    """Sharpness beta of that softplus."""
    checkpoint_every: NumSteps | Literal["auto"] = "auto"
    """Steps between stored parameters; auto: about 20 checkpoints in all. Unit: steps."""


class StorageConfig(Section):
    """How approximators are encoded and where they are stored."""

    encoding: Literal["auto", "float32", "float16", "bfloat16", "int8", "int4"] = "auto"

    """Number format of approximators; auto: float16 below 100,000 parameters, int8 above."""
    block: NumUnits | Literal["auto"] = "auto"
    """Units that one worker computes and writes together; auto: 4 blocks or more of at most 256, of up
    to 4,096 where rows are small and units many. Unit: units."""
    row_error_cap: Positive | Literal["auto"] = "auto"
    """Relative L2 error above which a wider format is used; auto: the encoding's own."""
    row_norm_cap: Positive | None = None
    """Largest L2 norm of an approximator; larger ones are refused. null: no cap."""
    codec: Literal["none", "zstd", "gzip"] = "none"
    """Lossless compression of the codes."""
    url: str | None = None
    """A store outside the run directory: a URL or an absolute path that ends in .zarr."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None:
            stem_of(url)
            if "://" not in url and not Path(url).is_absolute():
                raise ValueError("expected a URL or an absolute path: workers have other folders")
        return url

    @property
    def units_per_block(self) -> int:
        """The settled `block`.

        Raises:
            ConfigError: While it is still "auto".
        """
        if self.block == "auto":
            raise ConfigError("storage.block is settled when the run is trained; it still is auto")
        return self.block


class ClusterConfig(Section):
    """Workers: how many, on which machines, with which resources."""

    address: str = "auto"
    """none (no Ray), local (Ray on this machine), a cluster's host:port, or auto, which chooses."""
    num_workers: (
        Annotated[int, Field(ge=1), at_most(MAX_WORKERS, "one driver follows every worker")]
        | Literal["auto"]
    ) = "auto"
    """Worker processes; auto: as many as processors, GPUs and memory allow. Unit: workers."""
    cpus_per_worker: Annotated[
        int, Field(ge=1), at_most(MAX_THREADS, "a worker starts a thread for each")
    ] = 1
    """Threads of each worker; training uses as many, since threads change the last bits. Unit:
    threads."""
    gpus_per_worker: (
        Annotated[float, Field(ge=0), at_most(MAX_GPUS, "a worker lives on one machine")]
        | Literal["auto"]
    ) = "auto"
    """GPUs of each worker, also a fraction; auto: one where there are any. Unit: GPUs."""
    save_every: NumSteps | Literal["auto"] = "auto"
    """Steps between saved states of a block; auto: every 15 seconds. Unit: steps."""
    group: str | None = None
    """Group of this machine's users that may read reports and releases; null: the owner alone."""
    grow_seconds: Annotated[
        float,
        Field(ge=0),
        at_most(MAX_WAIT_SECONDS, "a week; a cluster that grows later is started later"),
    ] = 0
    """How long to wait for a cluster at `address` to grow to what is asked for. Unit: seconds."""

    @field_validator("address", mode="before")
    @classmethod
    def _check_address(cls, address: object) -> object:
        """Take null for auto, as version 0.1 wrote it; refuse other words."""
        if address is None:
            return "auto"
        words = ("none", "local", "auto")
        if isinstance(address, str) and address not in words and ":" not in address:
            raise ValueError(
                "expected none, local, auto, or host:port of a Ray cluster's head such as "
                "10.0.0.5:6379"
            )
        return address


class BudgetConfig(Section):
    """What all releases of a run may spend together."""

    epsilon: Positive | None = None
    """Largest epsilon of all releases together; null: no budget. Needs `delta`."""
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest delta of all releases together; null: no budget. Needs `epsilon`."""


class CertificateConfig(Section):
    """Which claim a release carries."""

    kind: Literal["none", "calibrated", "certified", "published"] = "none"

    """The claim: none, measured on audit retrainings (calibrated), proved for softmax regression
    (certified), or the formula of the paper's released code (published)."""
    max_units: NumUnits | None = None
    """The most units that will ever be deleted from the run: its deletion capacity. Unit: units."""
    audit_sets: Annotated[int, Field(ge=1), at_most(MAX_REPEATS, "each is a whole retraining")] = 20
    """calibrated: retrainings without random sets, and as many without clustered ones. Unit: sets."""
    feature_norm_cap: Positive | None = None
    """certified: the largest L2 norm that any sample can have, known before the data."""
    budget: BudgetConfig = BudgetConfig()


class EvaluationConfig(Section):
    """Trial deletions that are compared with retraining."""

    deletions: Annotated[
        tuple[NumUnits | Annotated[float, Field(gt=0, lt=1)], ...], Field(max_length=MAX_REPEATS)
    ] = (1, 20, 0.2)
    """Sizes of the sets: whole numbers count units, fractions are a share of the units."""
    repeats: Annotated[int, Field(ge=1), at_most(MAX_REPEATS, "each is a whole retraining")] = 1
    """Random sets per entry of `deletions`. Unit: sets."""
    max_error: Positive | None = 0.5
    """Largest measured relative error at which a deletion is released. null: no limit."""
    require_measured: bool = False
    """Refuse deletions where no error was measured."""


class RunConfig(Section):
    """One run, whole: configs/ has examples, docs/configuration.md every key."""

    name: Annotated[str, Field(max_length=MAX_NAME)] = "run"
    """Of the run, in reports and jobs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seeds the split, the starting weights, the order of samples and the sets of trial deletions."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig
    retraining: RetrainingConfig = RetrainingConfig()
    recursion: RecursionConfig = RecursionConfig()
    storage: StorageConfig = StorageConfig()
    cluster: ClusterConfig = ClusterConfig()
    certificate: CertificateConfig = CertificateConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def check_together(self) -> "RunConfig":
        """Refuse settings that contradict each other."""
        if self.recursion.expected_fraction and self.retraining.denominator != "batch":
            raise ValueError(
                "recursion.expected_fraction needs retraining.denominator: batch; with remaining, "
                "the mass correction does its work"
            )
        if self.recursion.engine in ("leave-one-out", "weighing"):
            self._check_without_products()
        self._check_widths()
        if self.training.nesterov and not self.training.momentum:
            raise ValueError("training.nesterov needs training.momentum above 0")
        return self

    def _check_widths(self) -> None:
        """Refuse hidden layers whose weights alone no machine would hold."""
        for key, widths in (("hidden", self.model.hidden), ("head_hidden", self.model.head_hidden)):
            weights = sum(left * right for left, right in pairwise(widths))
            if weights > MAX_PARAMETERS:
                raise ValueError(
                    f"model.{key} makes {weights:,} weights between its layers; expected at most "
                    f"{MAX_PARAMETERS:,}, since every unit's approximator holds as many values"
                )

    def _check_without_products(self) -> None:
        """Refuse what the engines without Hessian products would ignore without a word."""
        if self.recursion.own_rows == "included":
            raise ValueError(
                f"recursion.own_rows: included needs recursion.engine: hvp; {self.recursion.engine} "
                "leaves own rows out by definition"
            )
        if self.recursion.expected_fraction:
            raise ValueError(
                f"recursion.expected_fraction needs recursion.engine: hvp; {self.recursion.engine} "
                "scales no Hessians"
            )

    @staticmethod
    def load(path: str | Path, overrides: Sequence[str] = ()) -> "RunConfig":
        """Read a YAML file and apply overrides of the form "section.key=value".

        Raises:
            ConfigError: If the file is missing, is no YAML mapping, or has keys or values that
                are not understood; the message names the key and the nearest known one.
        """
        return RunConfig.from_text(read(Path(path)), str(path), overrides)

    @staticmethod
    def from_text(text: str, source: str, overrides: Sequence[str] = ()) -> "RunConfig":
        """Parse YAML text; `source` names it in messages."""
        try:
            values = parse(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{source} is not valid YAML: {one_line(error)}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{source} must be a mapping of sections (name, data, model, ...)")
        for override in overrides:
            apply_override(values, override)
        return RunConfig.from_values(values, source)

    @staticmethod
    def from_values(values: dict[str, Any], source: str = "the configuration") -> "RunConfig":
        """Validate a mapping as it comes out of YAML or JSON."""
        try:
            # JSON mode is strict about numbers and text, and takes lists for tuples.
            return RunConfig.model_validate_json(json.dumps(values))
        except (TypeError, RecursionError) as error:
            raise ConfigError(
                f"{source}: {one_line(error)}; use plain numbers, text and lists"
            ) from error
        except ValidationError as error:
            raise ConfigError(f"{source}: {explain(RunConfig, error)}") from error
        except ValueError as error:
            # A value that holds itself, or a number of thousands of digits.
            raise ConfigError(f"{source}: {one_line(error)}") from error

    def to_yaml(self) -> str:
        """Return the configuration as YAML text that `load` reads back to an equal one."""
        return write(self.model_dump(mode="json"))
