"""Checking a manifest in segments: its index against what its files hold."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from storage.errors import LayoutError, RowCorruptError
from storage.manifest_index import ManifestIndex, bucket_key, digest_of, erased_key, segment_key
from storage.name_index import Hashes, hashes_of, make_buckets
from storage.segment_files import SegmentFiles

# A list may change while it is read: what was found then is looked for again, so often.
_ATTEMPTS = 5


def check_index(file: SegmentFiles) -> Iterator[tuple[str, str]]:
    """Compare an index with what its segments and buckets hold: places, and what is wrong there."""
    for attempt in range(1, _ATTEMPTS + 1):
        index = file.index()
        found = list(_differences(file, index))
        if not found or file.index() is index or attempt == _ATTEMPTS:
            yield from found
            return


def _differences(file: SegmentFiles, index: ManifestIndex) -> Iterator[tuple[str, str]]:
    hashes: list[Hashes] = []
    rows: list[npt.NDArray[np.generic]] = []
    for number, line in enumerate(index.segments):
        try:
            segment = file.segment(index, number, hold=False)
        except (LayoutError, RowCorruptError) as error:
            yield f"{file.folder}/{segment_key(number, line.digest)}", str(error)
            continue
        if line[1:] != (len(segment), segment.num_written, segment.largest_error):
            yield file.key, f"it counts other lines than segment {number} has"
        hashes.append(hashes_of(segment.names()))
        rows.append(segment.columns["row"])
    # Of ten million units these are 160 MB; their names would be ten times that.
    all_hashes = np.concatenate([hashes_of(()), *hashes])
    all_rows = np.concatenate([np.empty(0, np.int64), *rows])
    for number, bucket in enumerate(make_buckets(all_hashes, all_rows, len(index.names))):
        if digest_of(bucket.to_bytes()) != index.names[number]:
            yield file.key, f"bucket {number} of the names lists other units than the rows do"
        try:
            file.bucket(index, number)
        except (LayoutError, RowCorruptError) as error:
            yield f"{file.folder}/{bucket_key(number, index.names[number])}", str(error)
    try:
        if len(file.erased(index)) != index.num_erased:
            yield file.key, "it counts other erased units than are listed"
    except (LayoutError, RowCorruptError) as error:
        yield f"{file.folder}/{erased_key(index.erased)}", str(error)
