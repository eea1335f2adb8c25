"""Errors of clusters and workers."""


class ClusterError(Exception):
    """Base of every error that `cluster` raises on purpose."""


class ResourcesError(ClusterError, ValueError):
    """More processors or GPUs were asked for than exist."""


class UnreachableError(ClusterError, ConnectionError):
    """No answer from the address, or from another version of Ray."""


class UnauthenticatedError(ClusterError, PermissionError):
    """A dashboard asks for no token where it must, or for one that is missing or wrong here."""


class WorkerFailedError(ClusterError, RuntimeError):
    """A worker's own computation failed; repeating it would fail again."""


class WorkersLostError(ClusterError, RuntimeError):
    """Workers keep dying; what they had saved is kept."""
