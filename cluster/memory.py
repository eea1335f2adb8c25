"""How much memory a recursion worker needs, from the sizes of what it holds."""

# m units of a block, P parameters

from pipeline.problem import Problem

# A process that has imported torch, Ray, Arrow and Zarr and holds nothing (resident, measured).
BASE_BYTES = 620 << 20


def worker_bytes(problem: Problem, num_units: int) -> float:
    """Return the main memory that a worker needs at its peak for a block of at most `num_units`.

    The peak comes at the end, when the block's rows (m, P) stand beside their copy in unit order,
    or when a state is saved, beside the bytes of its file.
    """
    num_units = min(num_units, len(problem.data.units))
    parameters, element = problem.num_parameters, problem.initial_P.element_size()
    state = num_units * parameters * element * (2 if problem.config.training.momentum else 1)
    rows = num_units * parameters * 4
    data = problem.data.inputs.nelement() + problem.data.test_inputs.nelement()
    held = state + max(state, rows)
    return BASE_BYTES + data * element + held + chunk_bytes(problem, num_units)


def chunk_bytes(problem: Problem, num_units: int) -> float:
    """Return what one step's arithmetic needs beside the state: tangents of one chunk, twice."""
    width = problem.num_parameters * problem.initial_P.element_size()
    return 2.0 * min(problem.chunk, num_units) * width
