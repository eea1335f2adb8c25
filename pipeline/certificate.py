"""The certificate of a release: what is claimed, on what grounds, and what is not covered."""

import json
from typing import Any

from pipeline.run_facts import RunFacts
from storage.ledger_records import ReleaseRecord


def certificate_json(facts: RunFacts, record: ReleaseRecord) -> str:
    """Return the certificate as indented JSON, a function of the run and the ledger alone."""
    body: dict[str, Any] = {
        "kind": record.kind,
        "epsilon": record.epsilon,
        "delta": record.delta,
        "sensitivity": record.sensitivity,
        "sigma": record.sigma,
        "release": record.release,
        "unit": facts.unit_kind,
        "created": record.created,
        "ledger_head": record.chain_head,
        "model": {"after": record.model_digest},
    }
    return json.dumps(body, indent=2, allow_nan=False) + "\n"


def certificate_text(certificate: str) -> str:
    """Return the certificate as text for people."""
    return "\n".join(f"{key}: {value}" for key, value in json.loads(certificate).items()) + "\n"
