"""The certificate of a release: what is claimed, on what grounds, and what is not covered.

A certificate is a function of the run and of the ledger's releases alone, so `verify` can write it
again and compare every byte. The word "certified" stands on the first kind only.
"""

import json
from typing import Any

from pipeline.certificates.privacy import Mechanism, epsilon_spent, plan_release
from pipeline.deletion.context import DeletionContext
from pipeline.deletion.gate import bucket
from pipeline.errors import DamagedRunError
from pipeline.run.verdict import statement
from storage.ledger_records import RETRAINED, ReleaseRecord

DEFINITION = (
    "Released parameters are (epsilon, delta)-indistinguishable from those that the same "
    "procedure, run without the deleted units and with the same noise, releases "
    "(Sekhari et al. 2021)."
)

# Certificates say in which wording they are written, so that `verify` can write an old one again.
WORDING = 3

CLAIMS = {
    "certified": (
        "certified: the sensitivity is proved from constants known before the data, and every "
        "condition below held."
    ),
    "calibrated": (
        "calibrated: the sensitivity was measured on audit retrainings. This is not a proof; it "
        "holds for sets of units chosen as the audited ones were, for the share and with the "
        "confidence stated below."
    ),
    "published": (
        "published: the sensitivity comes from the formula of the paper's released code, which "
        "is neither proved nor measured here."
    ),
    "none": (
        "none: no noise was added, and nothing is claimed. Anyone who holds this model and the one "
        "before it can compute the approximators of the units deleted in between."
    ),
}
CLAIMS[RETRAINED] = (
    "retrained: the parameters are those of training without the deleted units: from the same start, "
    "through the same minibatches in the same order at the same rates, the deleted samples left out, "
    "each step taken on what remains of its minibatch and none where nothing does. They depend on no "
    "deleted unit. No noise was added, and no epsilon is claimed."
)
EARLIER = (
    "What earlier releases claim of their deleted units still holds: this model does not depend on "
    "them and adds nothing to what is spent. Its difference to an earlier release without noise is the "
    "effect of the units deleted since on training; its difference to one with noise is that noise and "
    "what was left of the units. Units deleted from now on are in this model: it declares no "
    "sensitivity, so no later release from it has an epsilon."
)
_CLAIM_NONE_1 = (
    "none: no noise was added, and nothing is claimed. Whoever holds this model and the one before "
    "has the vectors of the units deleted in between."
)

NOISE = (
    "N(0, sigma^2) on every parameter by the analytic Gaussian mechanism (Balle & Wang 2018), "
    "drawn in float64 from the operating system's entropy, added in float64, rounded once to "
    "float32"
)

POST_PROCESSING = (
    "running variances of batch normalisation are set to 0 where the sum and the noise made them "
    "negative; the running statistics are among the parameters above"
)

CLASS_TERMS = (
    "one vector for each class, from a retraining without half of it, was added times the square of "
    "how far the deleted share of that class lies from the mean of all classes. So the numbers of "
    "samples of each class deleted so far enter the parameters. The vectors are functions of all "
    "training data, those of deleted units included, as the trained parameters are; a deletion does "
    "not erase them"
)
_CLASS_TERMS_HELD = (
    "the class terms, in internal/, mode 0600: with the data and the approximators that remain, they "
    "tell the sum of the approximators of the deleted units of each half",
    "the mass deleted of each class so far, beside the weighted sum",
)

ERROR = (
    "distance of the parameters to those of retraining without the deleted units, divided by the "
    "distance without unlearning: 0 is retraining, 1 is no unlearning"
)

NOT_COVERED = (
    "someone who holds an earlier release as well: the difference of two releases shows the "
    "deleted vectors (Chen et al. 2021, Bertran et al. 2024)",
    "requests chosen from what the released model shows",
    "the internal state that the operator still holds",
    "other models trained from this one",
    "a dishonest operator (Thudi et al. 2022)",
    "legal compliance: this is no statement of it",
)

_SUM_1 = "the noise-free weighted sum of the deleted units' vectors, in internal/, mode 0600"
STILL_HELD = (
    "the noise-free weighted sum of the deleted units' approximators, in internal/, mode 0600",
    "the parameters before any deletion (release 0), the last checkpoint in trajectory/, mode 0600",
    "the checkpoints of training, in trajectory/, mode 0600",
    "the schedule, which names the samples of every minibatch, in trajectory/, mode 0600",
)


def certificate_json(facts: DeletionContext, record: ReleaseRecord, wording: int = WORDING) -> str:
    """Return the certificate of a release as indented JSON.

    Args:
        facts: The run.
        record: The release, as the ledger has it.
        wording: 1 as version 0.1.0 wrote it, 2 without the measured error, 3 at present.
    """
    mechanism = plan_release(facts.declared, record.total_units, record.epsilon, record.delta)
    spent_epsilon, spent_delta = epsilon_spent(record, facts.budget)
    body: dict[str, Any] = {
        "kind": record.kind,
        "epsilon": record.epsilon,
        "delta": record.delta,
        "sensitivity": record.sensitivity,
        "sigma": record.sigma,
        "claim": _CLAIM_NONE_1 if wording == 1 and record.kind == "none" else CLAIMS[record.kind],
        "definition": DEFINITION,
        "release": record.release,
        "generation": record.generation,
        "created": record.created,
        "deleted": {"unit": facts.unit_kind, "at_most": _at_most(facts, record)},
        **(_error(record) if wording > 2 else {}),
        "grounds": _grounds(facts, mechanism),
        "all_releases": {
            "releases": record.release,
            "epsilon": spent_epsilon,
            "delta": spent_delta,
            "mu": record.spent_mu,
            "composition": "Gaussian differential privacy, mu^2 = sum (sensitivity / sigma)^2",
            "budget": None if facts.budget is None else vars(facts.budget),
        },
        "digests": {
            "run": facts.run_digest,
            "declaration": facts.declaration.digest(),
            "model_before": record.model_before,
            "model_after": record.model_digest,
            "ledger_before_commit": record.chain_head,
        },
        "not_covered": list(NOT_COVERED),
        "still_held_by_the_operator": [_SUM_1 if wording == 1 else STILL_HELD[0], *STILL_HELD[1:]],
    }
    if record.kind == RETRAINED:
        body["earlier_releases"] = EARLIER
        body["still_held_by_the_operator"] = list(STILL_HELD[1:])
    if facts.variances:
        body["post_processing"] = POST_PROCESSING
    if record.class_terms is not None:
        body["class_terms"] = {"statement": CLASS_TERMS, "digest": record.class_terms}
        body["still_held_by_the_operator"] += _CLASS_TERMS_HELD
    if wording > 1:
        body["wording"] = wording
    return json.dumps(body, indent=2, allow_nan=False) + "\n"


def _at_most(facts: DeletionContext, record: ReleaseRecord) -> int:
    """Return the rounded number of deleted units: of this generation, or ever where it is retrained."""
    if record.deleted_ever is not None:
        return bucket(0, record.deleted_ever)
    return bucket(facts.declaration.capacity, record.total_units)


def _error(record: ReleaseRecord) -> dict[str, Any]:
    """Return what was known of the error when the release was made, as the ledger recorded it."""
    stated = record.measured_error
    if stated is None:
        raise DamagedRunError(f"release {record.release} recorded nothing about the measured error")
    return {"error": {"statement": statement(stated), "meaning": ERROR, **stated}}


def _grounds(facts: DeletionContext, mechanism: Mechanism) -> dict[str, Any] | None:
    sensitivity, declaration = mechanism.sensitivity, facts.declared
    if sensitivity is None:
        return None
    return {
        "noise": NOISE,
        "update": "approximators added" if sensitivity.update else "none: trained parameters kept",
        "declared_for_at_most": sensitivity.max_units,
        "deletion_capacity": declaration.capacity,
        "terms": [vars(term) for term in sensitivity.terms],
        "sensitivity_of_the_other_update": sensitivity.alternative,
        "conditions": [vars(condition) for condition in declaration.conditions],
        "evidence": dict(declaration.evidence),
    }


def certificate_text(certificate: str) -> str:
    """Return a certificate's JSON as text for people."""
    body = json.loads(certificate)
    lines = [f"Certificate of release {body['release']}", "", body["claim"], ""]
    lines += [f"{name}: {body[name]}" for name in ("epsilon", "delta", "sensitivity", "sigma")]
    deleted = body["deleted"]
    lines += [f"deleted: at most {deleted['at_most']} (unit: {deleted['unit']})", ""]
    if "error" in body:
        lines += ["Error", f"  {body['error']['statement']}", f"  {body['error']['meaning']}", ""]
    lines += ["Definition", f"  {body['definition']}", ""]
    lines += ["All releases so far", *_items(body["all_releases"]), ""]
    if "earlier_releases" in body:
        lines += ["Earlier releases", f"  {body['earlier_releases']}", ""]
    if body["grounds"] is not None:
        lines += ["Grounds", *_items(body["grounds"]), ""]
    if "post_processing" in body:
        lines += ["Afterwards", f"  {body['post_processing']}", ""]
    if "class_terms" in body:
        lines += ["Class terms", f"  {body['class_terms']['statement']}"]
        lines += [f"  digest: {body['class_terms']['digest']}", ""]
    lines += ["Digests", *_items(body["digests"]), ""]
    lines += ["Not covered", *(f"  - {text}" for text in body["not_covered"]), ""]
    held = body["still_held_by_the_operator"]
    lines += ["Still held by the operator", *(f"  - {text}" for text in held)]
    return "\n".join(lines) + "\n"


def _items(value: dict[str, Any], indent: str = "  ") -> list[str]:
    lines = []
    for name, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{name}:", *_items(item, indent + "  ")]
        elif isinstance(item, list) and item:
            lines += [f"{indent}{name}:"]
            lines += [
                f"{indent}  - {'; '.join(f'{k}: {v}' for k, v in each.items())}" for each in item
            ]
        else:
            lines.append(f"{indent}{name}: {item}")
    return lines
