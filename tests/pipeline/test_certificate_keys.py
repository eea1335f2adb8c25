"""Every key is a condition of `certified`, or has a reason here not to be one."""

from pipeline.config import DataConfig, RecursionConfig, RetrainingConfig, TrainingConfig

# Keys that conditions of the proof look at (pipeline/certificates/softmax_bound.py).
CONDITIONS = {
    "data.augment",
    "training.optimizer",
    "training.momentum",
    "training.label_smoothing",
    "training.loss",
    "training.class_weights",
    "data.weight_column",
    "training.groups",
    "training.clip_norm",
    "training.learning_rate",
    "retraining.denominator",
    "retraining.l2_share",
    "recursion.engine",
    "recursion.own_rows",
    "recursion.dtype",
    "recursion.expected_fraction",
    "recursion.class_terms",
}
_RATES = "the condition on eta and the bound take the rates of the recorded schedule"
_BATCHES = "the bound takes the recorded minibatches"
_DATA = "the proof holds for any data below the feature norm cap, which is compared with the data"
_ADAPTIVE = "read by adam and adamw alone, which the condition on the optimizer refuses"
_NAMES = "names units; the bound does not depend on names"
_SPEED = "forms and chunks change rounding alone, which the bound counts"
REASONS = {
    "training.epochs": _BATCHES,
    "training.batch_size": _BATCHES,
    "training.shuffle": _BATCHES,
    "training.learning_rate_decay": _RATES,
    "training.schedule": _RATES,
    "training.warmup_steps": _RATES,
    "training.step_size": _RATES,
    "training.gamma": _RATES,
    "training.learning_rates": _RATES,
    "training.l2": "a constant of the bound itself",
    "training.weight_decay": _ADAPTIVE + "; with sgd it is l2",
    "training.betas": _ADAPTIVE,
    "training.eps": _ADAPTIVE,
    "training.huber_delta": "needs the loss huber, which the condition on the loss refuses",
    "training.nesterov": "needs momentum, which the condition on momentum refuses",
    "data.source": _DATA,
    "data.path": _DATA,
    "data.num_train": _DATA,
    "data.test_fraction": _DATA,
    "data.input_column": _DATA,
    "data.label_column": _DATA,
    "data.image_size": _DATA,
    "data.unit": "the bound counts units and takes their samples from the recorded minibatches",
    "data.user_column": "the bound counts units and takes their samples from the recorded minibatches",
    "data.sample_ids": _NAMES,
    "recursion.hvp": _SPEED,
    "recursion.chunk": _SPEED,
    "recursion.leave_one_out": "read by leave-one-out alone, which the condition on the engine refuses",
    "recursion.mass_exponent": "read with denominator remaining alone; the condition asks for batch",
    "recursion.relu_curvature": "softmax regression has no ReLU",
    "recursion.relu_beta": "softmax regression has no ReLU",
    "recursion.checkpoint_every": "checkpoints are compared with the replay, and change nothing",
}
SECTIONS = {
    "training": TrainingConfig,
    "data": DataConfig,
    "retraining": RetrainingConfig,
    "recursion": RecursionConfig,
}


def test_every_key_is_a_condition_of_certified_or_has_a_reason() -> None:
    keys = {f"{name}.{key}" for name, model in SECTIONS.items() for key in model.model_fields}
    assert not CONDITIONS & REASONS.keys()
    assert keys == CONDITIONS | REASONS.keys()
    assert all(len(reason) > 20 for reason in REASONS.values())
