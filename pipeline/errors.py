"""What can go wrong in the mathematics and its inputs.

Every class derives from `PipelineError` and from the builtin that a caller would expect; the command
line prints the message of any of them as one line.
"""


class PipelineError(Exception):
    """Base of every error that `pipeline` raises on purpose."""


class ConfigError(PipelineError, ValueError):
    """The configuration asks for something that does not exist or does not fit together."""


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
