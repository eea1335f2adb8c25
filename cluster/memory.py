"""How much memory a recursion worker needs, from the sizes of what it holds."""

from pipeline.problem import Problem

# A process that has imported torch, Ray, Arrow and Zarr and holds nothing (resident, measured).
BASE_BYTES = 620 << 20


def worker_bytes(problem: Problem, num_units: int) -> float:
    """Return the main memory that a worker needs at least for a block of at most `num_units`.

    What the arithmetic of a minibatch takes is not in it: `unlearn plan` measures that.
    """
    num_units = min(num_units, len(problem.data.units))
    width = problem.num_parameters * problem.initial_P.element_size()
    buffers = 2 if problem.config.training.momentum else 1
    data = problem.data.inputs.nelement() + problem.data.test_inputs.nelement()
    # A state that is saved stands beside the bytes of its file.
    rows = 2 * num_units * buffers
    return BASE_BYTES + data * problem.data.inputs.element_size() + rows * width
