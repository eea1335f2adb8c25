"""What a run declares about its deletions, made once, before the first request arrives.

The declaration lies in `internal/declaration.json` and never changes afterwards: the noise must not
depend on the units that are deleted (docs/certificate.md).
"""

# n samples, m units of a set, P parameters, T steps

from collections.abc import Callable, Iterator
from math import sqrt

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.certificates.measured_bounds import (
    CLUSTERED,
    RANDOM,
    PublishedFormula,
    calibrated_declaration,
    published_residual,
)
from pipeline.certificates.sensitivity import (
    Declaration,
    UnitsBound,
    read_declaration,
    unit_buckets,
)
from pipeline.certificates.softmax_bound import (
    SoftmaxProblem,
    SoftmaxStep,
    TrainingFacts,
    certified_declaration,
    softmax_bounds,
)
from pipeline.config import RunConfig
from pipeline.data import Dataset
from pipeline.errors import ConfigError
from pipeline.models.losses import IGNORED
from pipeline.progress import Progress, silent
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.training.retraining import retrain
from storage.durable_write import write_atomically
from storage.encoding import DEFAULT_ERROR_CAPS
from storage.ledger_summary import summarize_ledger
from storage.run_lock import RunLock

Unlearn = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.floating]]
"""Returns the parameters (P,) that the stored approximators give without the units numbered."""

# Power iterations for the spectral radius; the published formula is no proof, so percents suffice.
POWER_ITERATIONS = 50


def declare(
    run: RunDirectory, problem: Problem, unlearn: Unlearn, progress: Progress = silent
) -> Declaration:
    """Return the run's declaration, making and storing it if the configuration asks for one.

    Raises:
        ConfigError: If the kind needs settings that are missing or do not fit the model, or
            deletions were asked for already.
    """
    config = run.config.certificate
    if config.kind == "none" or run.declaration_path.exists():
        return read_declaration(run)
    _refuse_after_requests(run)
    check_settings(run.config)
    assert config.max_units is not None, "checked just now"
    if config.max_units >= len(problem.data.units):
        raise ConfigError(
            f"certificate.max_units is {config.max_units}, but there are only "
            f"{len(problem.data.units)} units and one must remain"
        )
    if config.kind == "certified":
        made = _certified(problem, run.trajectory(), config.max_units)
    elif config.kind == "published":
        made = _published(problem, run.trajectory(), config.max_units)
    else:
        made = _calibrated(run, problem, unlearn, progress)
    run.declaration_path.parent.mkdir(mode=0o700, exist_ok=True)
    with RunLock(run.ledger_lock_path):
        _refuse_after_requests(run)
        write_atomically(run.declaration_path, made.to_json().encode(), mode=0o600)
    return made


def _refuse_after_requests(run: RunDirectory) -> None:
    summary = summarize_ledger(run.ledger_path)
    if summary is not None and (summary.releases or summary.requests_waiting or summary.unfinished):
        raise ConfigError(
            f"deletions of {run.path} were asked for before it declared anything, and the noise must "
            f"not depend on the deleted units; run `unlearn configure {run.path} "
            "certificate.kind=none`, or start a fresh run"
        )


def check_settings(config: RunConfig) -> None:
    """Refuse settings that no declaration can be made with; asked before anything is trained.

    Raises:
        ConfigError: The message names the key.
    """
    certificate = config.certificate
    if certificate.kind == "none":
        return
    if certificate.max_units is None:
        raise ConfigError(
            f"certificate.kind {certificate.kind} needs certificate.max_units, the most units that "
            "will ever be deleted from this run"
        )
    cap = certificate.feature_norm_cap or config.model.feature_norm
    if certificate.kind == "certified" and (cap is None or not config.training.l2):
        raise ConfigError(
            "certificate.kind certified needs certificate.feature_norm_cap, the largest norm that "
            "any sample can have (known before the data: 8 for 64 pixels in 0..1), and training.l2 "
            "above 0"
        )
    training = config.training
    plain = training.loss == "cross-entropy" and training.class_weights is None
    if certificate.kind in ("certified", "published") and not plain:
        found = (
            "training.class_weights"
            if training.loss == "cross-entropy"
            else f"training.loss {training.loss:.60}"
        )
        raise ConfigError(
            f"certificate.kind {certificate.kind} is for plain cross-entropy, found {found}; choose "
            "calibrated"
        )
    if certificate.kind == "published" and (
        training.optimizer != "sgd"
        or training.schedule != "constant"
        or training.warmup_steps
        or training.learning_rates is not None
        or training.momentum
    ):
        raise ConfigError(
            "certificate.kind published is the formula of the paper's released code: plain sgd, a rate "
            "that decays by a factor per step; choose calibrated for this training"
        )
    if certificate.kind == "certified" and training.optimizer != "sgd":
        raise ConfigError(
            f"certificate.kind certified is proved for sgd, found {training.optimizer}; choose "
            "calibrated"
        )
    if certificate.kind in ("certified", "published") and config.data.augment is not None:
        raise ConfigError(
            f"certificate.kind {certificate.kind} holds for samples that no step changes, found "
            "data.augment; choose calibrated"
        )
    if certificate.kind in ("certified", "published") and config.recursion.class_terms:
        raise ConfigError(
            f"certificate.kind {certificate.kind} is of the sum of approximators alone, found "
            "recursion.class_terms; choose calibrated, whose bound is measured with the class terms"
        )
    if certificate.kind == "published" and config.training.clip_norm is None:
        raise ConfigError("certificate.kind published needs training.clip_norm, its constant G")


def _calibrated(
    run: RunDirectory, problem: Problem, unlearn: Unlearn, progress: Progress
) -> Declaration:
    """Measure residuals of audit retrainings without random and without clustered sets."""
    config = run.config.certificate
    assert config.max_units is not None, "checked by declare"
    sets = {
        RANDOM: list(_random_sets(problem, config.max_units, config.audit_sets)),
        CLUSTERED: list(_clustered_sets(problem, config.max_units, config.audit_sets)),
    }
    total, done = sum(map(len, sets.values())), 0
    residuals: dict[str, list[float]] = {}
    trajectory = run.trajectory()
    for choice, chosen in sets.items():
        residuals[choice] = []
        for units in chosen:
            residuals[choice].append(_residual(problem, trajectory, units, unlearn))
            done += 1
            progress(done, total)
    return calibrated_declaration(residuals, config.max_units)


def _residual(
    problem: Problem, trajectory: Trajectory, units: npt.NDArray[np.int64], unlearn: Unlearn
) -> float:
    """Return |retrained - unlearned| for one set, L2."""
    unlearned_P = torch.from_numpy(unlearn(units)).double()
    forgotten_n = problem.data.samples_of(torch.from_numpy(units).to(problem.device))
    retrained_P = retrain(problem, trajectory.schedule, forgotten_n).cpu().double()
    return float(torch.linalg.vector_norm(retrained_P - unlearned_P))


def _generator(problem: Problem) -> np.random.Generator:
    return np.random.default_rng([problem.config.seed, 3])


def _random_sets(problem: Problem, size: int, count: int) -> Iterator[npt.NDArray[np.int64]]:
    generator = _generator(problem)
    for _ in range(count):
        yield np.sort(generator.choice(len(problem.data.units), size, replace=False))


def _clustered_sets(problem: Problem, size: int, count: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield sets with as many samples of one group as possible: the hardest requests to predict."""
    shares = group_shares(problem)
    generator = _generator(problem).spawn(1)[0]
    for number in range(count):
        wanted = number % shares.shape[1]
        # Units with more of the class come first; ties are drawn.
        order = np.lexsort((generator.random(len(shares)), -shares[:, wanted]))
        pool = order[: max(size, int((shares[:, wanted] > 0.5).sum()))]
        yield np.sort(generator.choice(pool, size, replace=False))


def group_shares(problem: Problem) -> npt.NDArray[np.float64]:
    """Return which share of each unit's samples is of each group (`sample_groups`), (units, groups)."""
    data = problem.data
    groups_n, count = sample_groups(data)
    counts = torch.zeros(len(data.units), count, dtype=torch.float64)
    ones = torch.ones(data.num_samples, dtype=torch.float64)
    counts.index_put_((data.unit_of_sample.cpu(), groups_n), ones, accumulate=True)
    shares: npt.NDArray[np.float64] = (counts / counts.sum(1, keepdim=True)).numpy()
    return shares


def sample_groups(data: Dataset) -> tuple[torch.Tensor, int]:
    """Return the group of each sample (n,) int64, and how many groups there are.

    Groups are the classes; without these the quarters of the samples by their target's mean, or, of
    sequences, by the positions that count.
    """
    targets = data.targets.cpu()
    if data.has_classes:
        return targets, data.num_classes
    if targets.is_floating_point():
        values_n = targets.double().flatten(1).mean(1) if targets.dim() > 1 else targets.double()
    else:
        values_n = (targets != IGNORED).double().sum(1)
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    edges = torch.from_numpy(np.quantile(values_n.numpy(), quarters.numpy()))
    found, groups_n = torch.bucketize(values_n, edges, right=True).unique(return_inverse=True)
    return groups_n, len(found)


def _softmax_layer(problem: Problem) -> nn.Linear:
    linear = [layer for layer in problem.network.module.modules() if not list(layer.children())]
    linear = [layer for layer in linear if not isinstance(layer, nn.Flatten | nn.Identity)]
    if len(linear) == 1 and isinstance(linear[0], nn.Linear) and linear[0].bias is not None:
        return linear[0]
    raise ConfigError(
        "certificate.kind certified is proved for softmax regression only (model.name logistic, or "
        "model.trainable head); choose calibrated for this model"
    )


def _certified(problem: Problem, trajectory: Trajectory, max_units: int) -> Declaration:
    layer, config = _softmax_layer(problem), problem.config
    cap = config.certificate.feature_norm_cap
    if cap is None and config.model.feature_norm is not None:
        cap = config.model.feature_norm
    assert cap is not None, "checked by declare"
    softmax = SoftmaxProblem(
        feature_norm=sqrt(cap**2 + 1),  # the bias counts as a feature that is always 1
        l2=config.training.l2,
        num_features=layer.in_features + 1,
        num_classes=layer.out_features,
        initial_norm=float(torch.linalg.vector_norm(problem.initial_P)),
    )
    numbers = unit_buckets(max_units)
    try:
        bounds = softmax_bounds(
            softmax, _softmax_steps(problem, trajectory), len(problem.data.units), numbers
        )
    except ValueError as error:
        raise ConfigError(f"certificate.kind certified: {error}") from error
    norm_cap = config.storage.row_norm_cap
    row_error = _row_error_cap(problem) * (norm_cap or 0.0)
    return certified_declaration(softmax, _training_facts(problem, trajectory), bounds, row_error)


def _softmax_steps(problem: Problem, trajectory: Trajectory) -> Iterator[SoftmaxStep]:
    owners = problem.data.unit_of_sample.cpu()
    schedule = trajectory.schedule
    for sample_ids, rate in zip(schedule.sample_ids, schedule.learning_rates, strict=True):
        yield SoftmaxStep(rate, owners[sample_ids].numpy())


def _row_error_cap(problem: Problem) -> float:
    cap, encoding = problem.config.storage.row_error_cap, problem.config.storage.encoding
    if cap != "auto":
        return cap
    return DEFAULT_ERROR_CAPS["float16" if encoding == "auto" else encoding]


def _training_facts(problem: Problem, trajectory: Trajectory) -> TrainingFacts:
    config = problem.config
    norms = torch.linalg.vector_norm(problem.data.inputs.flatten(1).double(), dim=1)
    return TrainingFacts(
        denominator=config.retraining.denominator,
        own_rows=config.recursion.own_rows,
        l2_share=config.retraining.l2_share,
        optimizer=config.training.optimizer,
        label_smoothing=config.training.label_smoothing,
        loss=config.training.loss,
        momentum=config.training.momentum,
        clip_norm=config.training.clip_norm,
        starts_at_zero=not bool(problem.initial_P.any()),
        largest_learning_rate=max(trajectory.schedule.learning_rates),
        largest_feature_norm=sqrt(float(norms.max()) ** 2 + 1),
        row_norm_cap=config.storage.row_norm_cap,
        engine=config.recursion.engine,
        expected_fraction=config.recursion.expected_fraction,
        dtype=config.recursion.dtype,
        beyond=_beyond_plain_training(problem),
    )


def _beyond_plain_training(problem: Problem) -> tuple[str, ...]:
    """Return the settings of a run that neither the proof nor the published formula knows."""
    training = problem.config.training
    found = {
        "training.groups": bool(training.groups),
        "training.class_weights": training.class_weights is not None,
        "data.augment": problem.config.data.augment is not None,
        "recursion.class_terms": problem.config.recursion.class_terms,
        "weights of samples": problem.data.weights is not None,
        "dropout": problem.network.drops,
        "batch normalisation by the minibatch": problem.network.couples,
    }
    return tuple(name for name, is_set in found.items() if is_set)


def _published(problem: Problem, trajectory: Trajectory, max_units: int) -> Declaration:
    """Apply the formula of the paper's released code; it is neither proved nor measured here."""
    training = problem.config.training
    assert training.clip_norm is not None, "checked by declare"
    beyond = _beyond_plain_training(problem)
    beyond += () if training.loss == "cross-entropy" else (f"training.loss {training.loss}",)
    if beyond:
        raise ConfigError(
            f"certificate.kind published is a formula that does not know {', '.join(beyond)}; choose "
            "calibrated, or train without"
        )
    per_epoch = -(-problem.data.num_samples // training.batch_size)
    formula = PublishedFormula(
        learning_rate=training.learning_rate,
        decay=training.learning_rate_decay,
        num_steps=trajectory.num_steps,
        steps_per_epoch=per_epoch,
        batch_size=training.batch_size,
        clip_norm=training.clip_norm,
        rho=spectral_radius(problem, trajectory),
    )
    bounds = [UnitsBound(m, published_residual(formula, m)) for m in unit_buckets(max_units)]
    return Declaration(
        kind="published",
        bounds=tuple(bounds),
        residual_source="formula of the paper's released code; neither proved nor measured here",
        row_error_source="not accounted for by the formula",
        evidence={"rho": formula.rho, "G": training.clip_norm, "q": training.learning_rate_decay},
    )


def spectral_radius(problem: Problem, trajectory: Trajectory) -> float:
    """Return the measured spectral radius of I - eta H at w_T on the first minibatch, L2 included."""
    training = problem.config.training
    batch = problem.minibatch(trajectory.schedule.sample_ids[0])
    w_P = trajectory.trained().to(problem.initial_P)
    generator = torch.Generator().manual_seed(problem.config.seed)
    vector_P = torch.randn(len(w_P), generator=generator).to(w_P)
    radius = 0.0
    with problem.arithmetic():
        linearization = problem.network.linearize(w_P, batch)
        for _ in range(POWER_ITERATIONS):
            vector_P = vector_P / torch.linalg.vector_norm(vector_P)
            product = linearization.hessian_products(vector_P[None], None)[0] / batch.divisor
            vector_P = vector_P - training.learning_rate * (
                product + problem.coefficients.l2 * vector_P
            )
            radius = float(torch.linalg.vector_norm(vector_P))
    return radius
