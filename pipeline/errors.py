"""Errors of training, approximators and deletions.

Every class derives from `PipelineError` or `ReleaseError` and from the builtin that a caller would
expect; the command line prints the message of any of them as one line. A refusal changes nothing and
spends nothing.
"""

from collections.abc import Collection, Sequence

from pipeline.suggestions import named


class PipelineError(Exception):
    """Base of every error that `pipeline` raises on purpose."""


class ConfigError(PipelineError, ValueError):
    """The configuration asks for something that does not exist or does not fit together."""


class GivenUpError(ConfigError):
    """The approximators of a retrained model were given up, and nothing can be deleted without them."""


class DataError(PipelineError, ValueError):
    """The data are not what the source promised."""


class ModelError(PipelineError, ValueError):
    """The model cannot be followed by the recursion."""


class TrajectoryError(PipelineError, ValueError):
    """The recorded run is damaged, or belongs to another configuration."""


class StateError(PipelineError, ValueError):
    """A saved block is damaged, or belongs to another run."""


class DivergedError(PipelineError, FloatingPointError):
    """Training or the recursion produced a value that is not finite."""


class ReleaseError(Exception):
    """Base of every refusal; the message is one line that says what to do."""


class RequestError(ReleaseError, ValueError):
    """The request itself is not one: empty, unreadable, an impossible epsilon or delta."""


class UnitsRefusedError(ReleaseError, ValueError):
    """Units of the request cannot be deleted.

    Attributes:
        unknown: Units that the run was not trained on.
        held_out: Those of them that are held out for testing.
        already: Units that are deleted, or that an accepted request already names.
    """

    def __init__(
        self, unknown: Sequence[str], already: Sequence[str], held_out: Collection[str] = ()
    ) -> None:
        self.unknown = tuple(unknown)
        self.already = tuple(already)
        self.held_out = tuple(unit for unit in unknown if unit in held_out)
        strange = [unit for unit in unknown if unit not in held_out]
        groups = {
            "not in the training set": strange,
            "held out for testing": self.held_out,
            "already deleted": already,
        }
        parts = [f"{what}: {named(units)}" for what, units in groups.items() if units]
        super().__init__(
            f"{'; '.join(parts)}. Nothing was deleted; correct the request, or skip such units "
            "with --skip-invalid"
        )


class UnknownUnitsError(UnitsRefusedError):
    """At least one unit of the request is unknown; others may be deleted already."""


class AlreadyDeletedError(UnitsRefusedError):
    """Every unit is known, and at least one is deleted already."""


class RequestConflictError(ReleaseError, ValueError):
    """A request id that was used for another set of units or another privacy."""


class RequestCancelledError(ReleaseError, RuntimeError):
    """A request id whose request was cancelled; it deletes nothing."""


class NotWaitingError(ReleaseError, RuntimeError):
    """A request that cannot be cancelled, because its batch has begun."""


class ReceiptError(ReleaseError, ValueError):
    """A signed receipt that is not valid, or cannot be made yet."""


class RetrainRequiredError(ReleaseError, RuntimeError):
    """The deletion capacity that the certificate was declared for does not hold this request."""


class BudgetSpentError(ReleaseError, RuntimeError):
    """The privacy budget does not hold this release."""


class ErrorLimitError(ReleaseError, RuntimeError):
    """The measured error of the deletion is above the limit, or must be measured and is not."""


class PrunedError(ReleaseError, RuntimeError):
    """What deletions need was removed on purpose."""


class WaitingError(ReleaseError, RuntimeError):
    """An accepted request still waits, and must not be made impossible to carry out."""


class DamagedRunError(ReleaseError, RuntimeError):
    """A file that the ledger vouches for is missing or changed."""


def refuse_units(
    unknown: Sequence[str], already: Sequence[str], held_out: Collection[str] = ()
) -> None:
    """Raise the error that fits, if either list holds anything."""
    if unknown:
        raise UnknownUnitsError(unknown, already, held_out)
    if already:
        raise AlreadyDeletedError(unknown, already)
