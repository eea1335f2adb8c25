import os
from pathlib import Path

import pytest
from blake3 import blake3

from storage.durable_write import file_digest, no_faults, sync_folder, write_durably

MIB = 1 << 20


@pytest.mark.parametrize("sizes", [[], [1], [4 * MIB], [4 * MIB + 1], [3 * MIB, 5, 6 * MIB, 4096]])
def test_a_file_is_its_parts_and_its_digest(tmp_path: Path, sizes: list[int]) -> None:
    parts = [os.urandom(size) for size in sizes]
    whole = b"".join(parts)
    digest = write_durably(tmp_path / "f", parts, no_faults)
    assert (tmp_path / "f").read_bytes() == whole
    assert digest == blake3(whole).hexdigest() == file_digest(tmp_path / "f")
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_a_part_may_be_reused_by_its_maker(tmp_path: Path) -> None:
    buffer = bytearray(5)

    def parts() -> object:
        for letter in b"abc":
            buffer[:] = bytes([letter]) * 5
            yield memoryview(buffer)

    write_durably(tmp_path / "f", parts(), no_faults)  # type: ignore[arg-type]
    assert (tmp_path / "f").read_bytes() == b"aaaaabbbbbccccc"


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    write_durably(tmp_path / "f", [b"a"], no_faults)
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "f", [b"b"], no_faults)
    assert (tmp_path / "f").read_bytes() == b"a"


def test_every_fsync_lies_between_two_crash_points(tmp_path: Path) -> None:
    points: list[str] = []
    write_durably(tmp_path / "f", [b"a"], points.append)
    sync_folder(tmp_path, points.append)
    name = tmp_path.name
    assert points == [
        "f:before-fsync",
        "f:after-fsync",
        f"{name}/:before-fsync",
        f"{name}/:after-fsync",
    ]


def test_a_file_system_without_direct_writes_gets_ordinary_ones() -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir():
        pytest.skip("this machine has no file system in memory")
    path = shared_memory / f"durable-write-{os.getpid()}"
    try:
        data = os.urandom(9 * MIB + 3)
        assert write_durably(path, [data], no_faults) == blake3(data).hexdigest()
        assert path.read_bytes() == data
    finally:
        path.unlink(missing_ok=True)
