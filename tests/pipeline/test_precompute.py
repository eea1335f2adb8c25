"""Blocks: any cut, any order, any interruption gives the bits of the serial run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp

from pipeline.approximators.block import BlockRecursion
from pipeline.errors import DivergedError, StateError
from pipeline.run.checkpoints import checkpoint_path
from pipeline.training.replay import Replay
from pipeline.training.train import record
from tests import tolerances
from tests.cases import Case, Computed, compute, in_unit_order, problem_of, run_of
from tests.oracles import relative_error, weight_derivatives

# Chunks of 4 units: 0-3, 4-7, 8-10.
SAMPLES = Case("mlp-tanh", clip="active", momentum=0.6, chunk=4, checkpoint_every=4)
FLOAT32 = SAMPLES.but(dtype="float32")
USERS = SAMPLES.but(unit="user", chunk=2, dtype="float32", nesterov=True)
CASES = [
    SAMPLES,
    FLOAT32,
    USERS,
    FLOAT32.but(network="cnn-silu"),
    FLOAT32.but(hvp="reverse"),
    FLOAT32.but(hvp="forward-over-reverse"),
    FLOAT32.but(engine="leave-one-out"),
    FLOAT32.but(network="logistic", clip="none", momentum=0.0, own_rows="included"),
]


def block_of(computed: Computed, units: range) -> BlockRecursion:
    return BlockRecursion(computed.problem, computed.trajectory, units)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_cut_into_blocks_gives_the_same_bits(case: Case, tmp_path: Path) -> None:
    serial = compute(case, tmp_path)
    for size in (case.chunk, 2 * case.chunk):
        # Last blocks first: no block needs anything of another.
        for start in reversed(range(0, case.num_units, size)):
            block = block_of(serial, range(start, min(start + size, case.num_units)))
            block.advance(serial.trajectory.num_steps)
            stop = block.units.stop
            assert torch.equal(in_unit_order(block), serial.rows_NP[start:stop])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_block_restored_at_any_step_continues_to_the_same_bits(
    case: Case, tmp_path: Path
) -> None:
    serial = compute(case, tmp_path)
    num_steps = serial.trajectory.num_steps
    for stop in range(num_steps + 1):
        first = block_of(serial, range(case.num_units))
        first.advance(stop)
        first.save(tmp_path / "state")
        second = block_of(serial, range(case.num_units))
        second.restore(tmp_path / "state")
        assert second.step == stop
        second.advance(num_steps)
        assert torch.equal(in_unit_order(second), serial.rows_NP)


def test_a_state_of_an_earlier_step_takes_a_block_back(tmp_path: Path) -> None:
    serial = compute(FLOAT32, tmp_path)
    block = block_of(serial, range(FLOAT32.num_units))
    block.advance(3)
    block.save(tmp_path / "state")
    block.advance(7)
    block.restore(tmp_path / "state")
    assert block.step == 3
    block.advance(serial.trajectory.num_steps)
    assert torch.equal(in_unit_order(block), serial.rows_NP)


def test_saving_changes_nothing(tmp_path: Path) -> None:
    serial = compute(FLOAT32, tmp_path)
    block = block_of(serial, range(FLOAT32.num_units))
    for stop in range(1, serial.trajectory.num_steps + 1):
        block.advance(stop)
        block.save(tmp_path / "state")
    assert torch.equal(in_unit_order(block), serial.rows_NP)


@pytest.mark.parametrize("step", range(10))
def test_a_replay_may_start_anywhere(step: int, tmp_path: Path) -> None:
    serial = compute(FLOAT32, tmp_path)
    walked = Replay.start(serial.problem, serial.trajectory)
    for _ in walked.steps(step):
        pass
    started = Replay.start(serial.problem, serial.trajectory, step)
    assert started.step == step
    assert torch.equal(started.state.parameters_P, walked.state.parameters_P)


@pytest.mark.parametrize("chunk", [2, 3, 5, 11])
def test_rows_are_in_unit_order_for_any_order_of_first_visits(chunk: int, tmp_path: Path) -> None:
    case = Case("mlp-tanh", own_rows="included", chunk=chunk)
    computed = compute(case, tmp_path)
    expected = weight_derivatives(run_of(case), case.owned_Nn, case.convention)
    block = block_of(computed, range(case.num_units))
    block.advance(computed.trajectory.num_steps)
    assert block.rows().dtype == np.float32
    found = torch.from_numpy(block.rows()).double()
    assert relative_error(found, expected) < 1e-6


def test_a_unit_not_visited_yet_has_a_row_of_zeros(tmp_path: Path) -> None:
    computed = compute(FLOAT32, tmp_path)
    block = block_of(computed, range(FLOAT32.num_units))
    block.advance(1)
    seen = FLOAT32.owners_n[computed.trajectory.schedule.sample_ids[0]]
    moved = in_unit_order(block).abs().sum(1) > 0
    assert set(moved.nonzero().flatten().tolist()) == set(seen.tolist())


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_stored_rows_continue(momentum: float, tmp_path: Path) -> None:
    # Rows that start at a_0 end at the derivative of training by w_0 along a_0 and by the weights.
    case = Case("mlp-tanh", own_rows="included", momentum=momentum, chunk=4)
    run, problem = run_of(case), problem_of(case)
    trajectory = record(problem, tmp_path)
    generator = torch.Generator().manual_seed(1)
    rows_NP = torch.randn(
        case.num_units, len(run.initial_P), generator=generator, dtype=torch.float64
    )
    block = BlockRecursion(problem, trajectory, range(case.num_units), rows_NP.numpy().__getitem__)
    block.advance(trajectory.num_steps)

    def trained_from(initial_P: Tensor) -> Tensor:
        from dataclasses import replace

        moved = replace(run, initial_P=initial_P)
        *_, w_P = moved.follow(lambda t, w: grad(run.objective, argnums=1)(t, w))
        return w_P

    moved_NP = torch.stack([jvp(trained_from, (run.initial_P,), (row_P,))[1] for row_P in rows_NP])
    expected = moved_NP + weight_derivatives(run, case.owned_Nn, case.convention)
    assert relative_error(in_unit_order(block), expected) < tolerances.JVP


def damaged(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def with_a_flipped_bit_in(part: float) -> Callable[[bytes], bytes]:
    return lambda content: damaged(content, int(part * (len(content) - 1)))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "short": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "other": lambda content: b"not a state file at all, but long enough to hold a header",
    "flipped length": with_a_flipped_bit_in(0),
    "flipped header": with_a_flipped_bit_in(0.05),
    "flipped middle": with_a_flipped_bit_in(0.5),
    "flipped end": with_a_flipped_bit_in(1),
}


def check_refused(block: BlockRecursion, path: Path, reason: str = "remove it") -> None:
    """The state is refused, and the block stands exactly where it stood."""
    step, before = block.step, in_unit_order(block)
    parameters_P = block.replay.state.parameters_P.clone()
    with pytest.raises(StateError, match=reason) as caught:
        block.restore(path)
    assert str(path) in str(caught.value)
    assert block.step == step
    assert torch.equal(in_unit_order(block), before)
    assert torch.equal(block.replay.state.parameters_P, parameters_P)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: str, tmp_path: Path) -> None:
    computed = compute(FLOAT32, tmp_path)
    block = block_of(computed, range(FLOAT32.num_units))
    block.advance(5)
    path = tmp_path / "state"
    block.save(path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    block.advance(6)
    check_refused(block, path)


def test_a_flip_of_any_bit_of_a_state_is_noticed(tmp_path: Path) -> None:
    computed = compute(FLOAT32.but(network="logistic"), tmp_path)
    block = block_of(computed, range(4))
    block.advance(5)
    path = tmp_path / "state"
    block.save(path)
    content = path.read_bytes()
    # A prime stride visits header, names and tensors without taking minutes.
    for place in range(0, len(content), 37):
        path.write_bytes(damaged(content, place))
        check_refused(block, path)


def test_a_missing_state_is_refused(tmp_path: Path) -> None:
    computed = compute(FLOAT32, tmp_path)
    check_refused(block_of(computed, range(FLOAT32.num_units)), tmp_path / "nothing")


OTHERS = {
    "other learning": FLOAT32.but(batch_size=5),
    "other Hessian": FLOAT32.but(own_rows="included"),
    "other denominator": FLOAT32.but(denominator="batch"),
    "other L2 share": FLOAT32.but(l2_share="sample"),
    "other engine": FLOAT32.but(engine="leave-one-out"),
    "other chunk": FLOAT32.but(chunk=6),
    "other form": FLOAT32.but(hvp="reverse"),
    "other precision": FLOAT32.but(dtype="float64"),
    "no momentum": FLOAT32.but(momentum=0.0),
    "other units": FLOAT32.but(unit="user", chunk=4),
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_state_of_another_run_is_refused(other: str, tmp_path: Path) -> None:
    computed = compute(FLOAT32, tmp_path / "this")
    foreign = block_of(compute(OTHERS[other], tmp_path / "other"), range(4))
    foreign.advance(5)
    foreign.save(tmp_path / "state")
    check_refused(block_of(computed, range(4)), tmp_path / "state", "another run")


def test_a_checkpoint_is_no_state(tmp_path: Path) -> None:
    computed = compute(FLOAT32, tmp_path)
    path = checkpoint_path(tmp_path, 4)
    check_refused(block_of(computed, range(FLOAT32.num_units)), path, "another run")


def test_the_state_of_another_block_is_refused(tmp_path: Path) -> None:
    computed = compute(FLOAT32, tmp_path)
    foreign = block_of(computed, range(0, 4))
    foreign.save(tmp_path / "state")
    check_refused(block_of(computed, range(4, 8)), tmp_path / "state", "block")


def test_saving_over_a_state_leaves_the_old_one_if_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = compute(FLOAT32, tmp_path)
    block = block_of(computed, range(FLOAT32.num_units))
    path = tmp_path / "states" / "state"
    path.parent.mkdir()
    block.advance(3)
    block.save(path)
    content = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    block.advance(4)
    with pytest.raises(OSError, match="No space"):
        block.save(path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_saved_state_is_private(tmp_path: Path) -> None:
    block = block_of(compute(FLOAT32, tmp_path), range(4))
    block.save(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600


def test_a_row_that_is_not_finite_names_unit_and_step(tmp_path: Path) -> None:
    computed = compute(FLOAT32, tmp_path)
    rows = np.zeros((8, computed.problem.num_parameters), dtype=np.float32)
    rows[6, 1] = np.nan
    block = BlockRecursion(computed.problem, computed.trajectory, range(4, 8), rows.__getitem__)
    with pytest.raises(DivergedError, match=r"'unit-6'.*step 1\b"):
        block.advance(1)
    assert isinstance(DivergedError(""), FloatingPointError)


def test_products_are_counted_from_the_first_visit_on(tmp_path: Path) -> None:
    case = FLOAT32.but(chunk=11)
    computed = compute(case, tmp_path)
    visits = computed.trajectory.schedule.first_visits(case.owners_n, case.num_units)
    block = block_of(computed, range(case.num_units))
    counted = block.advance(computed.trajectory.num_steps)
    expected = sum(int((visits <= t).sum()) for t in range(computed.trajectory.num_steps))
    assert counted == expected
